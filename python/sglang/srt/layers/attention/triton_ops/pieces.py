"""Attention in pieces of fixed length, for batch-invariant mode: whoever computes a row, prefill or decode, one program
or many, adds in one order.

Keys are cut at multiples of `piece` of absolute positions. Each piece has a running state of its own (attend_keys.py),
from nothing, and the states are merged in ascending order:

    top' = max(top, top_p)    keep = 2^(scale (top - top'))    weight = 2^(scale (top_p - top'))
    acc' = acc keep + acc_p weight    total' = total keep + total_p weight

A piece of which a row sees nothing leaves the row's state as it was, at the start and at the end. The sum of a row of p
is a product with ones, so that it too is added up in the tensor cores' order and not in that of a tile's layout. What
remains is that tiles of all kernels walk over as many keys at a time and use the same tensor core instruction
(tiles.py, PIECE_TILES).
"""

from sglang.srt.layers.attention.triton_ops.attend_keys import TOP_START, attend_keys
from sglang.srt.utils.triton_runtime import tl, triton

MIN_PIECE = 256  # keys: short enough for programs to share a short context
MAX_PIECES = 32  # of a row, or one more where a window begins inside a piece


def piece_length(longest: int) -> int:
    """Keys of a piece where rows see up to `longest`: a window, or the longest context that is served."""
    return max(MIN_PIECE, 1 << (-(-longest // MAX_PIECES) - 1).bit_length())


def max_pieces(longest: int) -> int:
    """Pieces that a row may see keys of."""
    return (longest + piece_length(longest) - 2) // piece_length(longest) + 1


@triton.jit
def merge(acc, total, top, piece_acc, piece_total, piece_top, scale):
    """acc [M, DV], total and top [M]; `scale` is times log2(e)."""
    new_top = tl.maximum(top, piece_top)
    keep = tl.exp2((top - new_top) * scale)
    weight = tl.exp2((piece_top - new_top) * scale)
    total = tl.fma(piece_total, weight, total * keep)
    acc = tl.fma(piece_acc, tl.broadcast_to(weight[:, None], acc.shape), acc * keep[:, None])
    return acc, total, new_top


@triton.jit
def attend_pieces(
    q,
    scale,
    table,
    k_cache,
    v_cache,
    k_stride,
    v_stride,
    begin,  # as those of attend_keys
    end,
    first_key,
    end_key,
    row_first,
    row_end,
    tree_rows,
    tree_positions,
    prefix,
    path_slots,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PIECE: tl.constexpr,  # a multiple of BLOCK_N
    TREE: tl.constexpr,
    PATH: tl.constexpr,
):
    """acc, total, top (see attend_keys) over the keys of [begin, end), piece by piece."""
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], TOP_START, tl.float32)
    for piece in range(begin // PIECE * PIECE, end, PIECE):
        piece_acc, piece_total, piece_top = attend_keys(
            tl.zeros([BLOCK_M, BLOCK_DV], tl.float32),
            tl.zeros([BLOCK_M], tl.float32),
            tl.full([BLOCK_M], TOP_START, tl.float32),
            q,
            scale,
            table,
            k_cache,
            v_cache,
            k_stride,
            v_stride,
            tl.maximum(piece, begin),
            tl.minimum(piece + PIECE, end),
            first_key,
            end_key,
            row_first,
            row_end,
            tree_rows,
            tree_positions,
            prefix,
            path_slots,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            BLOCK_N,
            MASKED=True,
            TREE=TREE,
            PATH=PATH,
            ORDERED=True,
        )
        acc, total, top = merge(acc, total, top, piece_acc, piece_total, piece_top, scale)
    return acc, total, top
