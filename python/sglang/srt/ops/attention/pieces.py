"""Attention in pieces at fixed places, for batch-invariant mode: whoever computes a row, prefill or decode, one program
or many, adds in one order.

Keys are cut at fixed absolute positions: under a window at multiples of WINDOW_PIECE, without one into pieces that
grow, LEVEL of each length from FIRST_PIECE doubling on, so that programs share a short context and a long one has few
pieces. Each piece has a running state of its own (attend_keys.py), from nothing, and the states are merged in ascending
order:

    top' = max(top, top_p)    keep = 2^(scale (top - top'))    weight = 2^(scale (top_p - top'))
    acc' = acc keep + acc_p weight    total' = total keep + total_p weight

A piece of which a row sees nothing leaves the row's state as it was, at the start and at the end. The sum of a row of p
is a product with ones, so that it too is added up in the tensor cores' order and not in that of a tile's layout. What
remains is that tiles of all kernels walk over as many keys at a time and that their tensor core instructions add alike
(tiles.py, ops/products/matmul.py).
"""

from typing import NamedTuple

from sglang.srt.ops.attention.attend_keys import attend_keys, no_keys
from sglang.srt.utils.triton_runtime import tl, triton

# keys; measured in benchmark/kernels/attention/README.md, "Keys in pieces"
WINDOW_PIECE, FIRST_PIECE = 256, 128
LEVEL = 8  # pieces of a length
MAX_LEVELS = 14  # 16 million keys


class Pieces(NamedTuple):
    """How keys are cut: pieces of `length` keys or, `growing`, `length` the first ones."""

    length: int
    growing: bool


NO_PIECES = Pieces(0, False)


def pieces_for(window: int | None) -> Pieces:
    return Pieces(FIRST_PIECE, True) if window is None else Pieces(WINDOW_PIECE, False)


def max_pieces(pieces: Pieces, longest: int) -> int:
    """Pieces that a row may see keys of, up to `longest`: a window that may begin inside a piece, or a context."""
    if not pieces.growing:
        return (longest + pieces.length - 2) // pieces.length + 1
    count, begin, length = 0, 0, pieces.length
    while begin < longest:
        count, begin = count + 1, begin + length
        if count % LEVEL == 0:
            length *= 2
    return count


@triton.jit
def piece_begin(index, PIECE: tl.constexpr, GROWING: tl.constexpr, LEVEL: tl.constexpr = LEVEL):
    """The first key of piece `index`."""
    if GROWING:
        level = index // LEVEL
        return PIECE * (LEVEL * ((1 << level) - 1) + (index % LEVEL << level))
    return index * PIECE


@triton.jit
def pieces_below(
    key, PIECE: tl.constexpr, GROWING: tl.constexpr, LEVEL: tl.constexpr = LEVEL, LEVELS: tl.constexpr = MAX_LEVELS
):
    """Pieces that begin below `key`."""
    if GROWING:
        level = 0
        for done in tl.static_range(1, LEVELS):
            level += (key > PIECE * LEVEL * ((1 << done) - 1)).to(tl.int32)
        return level * LEVEL + tl.cdiv(key - PIECE * LEVEL * ((1 << level) - 1), PIECE << level)
    return tl.cdiv(key, PIECE)


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
    rows,  # arguments as those of attend_keys
    scale,
    keys,
    begin,
    end,
    drafts,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PIECE: tl.constexpr,  # a multiple of BLOCK_N
    GROWING: tl.constexpr,
    TREE: tl.constexpr,
    PATH: tl.constexpr,
):
    """acc, total, top (see attend_keys) over the keys of [begin, end), piece by piece. `begin` may lie inside a piece
    only where pieces do not grow."""
    acc, total, top = no_keys(BLOCK_M, BLOCK_DV)
    first = pieces_below(begin + 1, PIECE, GROWING) - 1
    for piece in range(first, pieces_below(end, PIECE, GROWING)):
        piece_acc, piece_total, piece_top = no_keys(BLOCK_M, BLOCK_DV)
        piece_acc, piece_total, piece_top = attend_keys(
            piece_acc,
            piece_total,
            piece_top,
            rows,
            scale,
            keys,
            tl.maximum(piece_begin(piece, PIECE, GROWING), begin),
            tl.minimum(piece_begin(piece + 1, PIECE, GROWING), end),
            drafts,
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
