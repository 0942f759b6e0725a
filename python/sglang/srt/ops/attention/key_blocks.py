"""Attention over key blocks, keys at fixed places, for batch-invariant mode: whoever computes a row, prefill or decode,
one program or many, adds in one order.

Keys are cut at fixed absolute positions: under a window at multiples of WINDOW_BLOCK, without one into blocks that
grow, LEVEL of each length from FIRST_BLOCK doubling on, so that programs share a short context and a long one has few
blocks. Each has a running state of its own (attend_keys.py), from nothing, and the states are merged in ascending
order:

    top' = max(top, top_p)    keep = 2^(scale (top - top'))    weight = 2^(scale (top_p - top'))
    acc' = acc keep + acc_p weight    total' = total keep + total_p weight

A block of which a row sees nothing leaves the row's state as it was, at the start and at the end. The sum of a row of p
is a product with ones, so that it too is added up in the tensor cores' order and not in that of a tile's layout. What
remains is that tiles of all kernels walk over as many keys at a time and that their tensor core instructions add alike
(tiles.py, ops/products/matmul.py).
"""

from typing import NamedTuple

from sglang.srt.ops.attention.attend_keys import attend_keys, no_keys
from sglang.srt.utils.triton_runtime import tl, triton

# keys; measured in benchmark/kernels/attention/README.md, "Key blocks"
WINDOW_BLOCK, FIRST_BLOCK = 256, 128
LEVEL = 8  # blocks of a length
MAX_LEVELS = 14  # 16 million keys


class KeyBlocks(NamedTuple):
    """How keys are cut: blocks of `length` keys or, `growing`, `length` the first ones."""

    length: int
    growing: bool


NO_KEY_BLOCKS = KeyBlocks(0, False)


def key_blocks_for(window: int | None) -> KeyBlocks:
    return KeyBlocks(FIRST_BLOCK, True) if window is None else KeyBlocks(WINDOW_BLOCK, False)


def max_key_blocks(key_blocks: KeyBlocks, longest: int) -> int:
    """Blocks that a row may see keys of, up to `longest`: a window that may begin inside a block, or a context."""
    if not key_blocks.growing:
        return (longest + key_blocks.length - 2) // key_blocks.length + 1
    count, begin, length = 0, 0, key_blocks.length
    while begin < longest:
        count, begin = count + 1, begin + length
        if count % LEVEL == 0:
            length *= 2
    return count


@triton.jit
def block_begin(index, KEY_BLOCK: tl.constexpr, GROWING: tl.constexpr, LEVEL: tl.constexpr = LEVEL):
    """The first key of block `index`."""
    if GROWING:
        level = index // LEVEL
        return KEY_BLOCK * (LEVEL * ((1 << level) - 1) + (index % LEVEL << level))
    return index * KEY_BLOCK


@triton.jit
def blocks_below(
    key, KEY_BLOCK: tl.constexpr, GROWING: tl.constexpr, LEVEL: tl.constexpr = LEVEL, LEVELS: tl.constexpr = MAX_LEVELS
):
    """Blocks that begin below `key`."""
    if GROWING:
        level = 0
        for done in tl.static_range(1, LEVELS):
            level += (key > KEY_BLOCK * LEVEL * ((1 << done) - 1)).to(tl.int32)
        return level * LEVEL + tl.cdiv(key - KEY_BLOCK * LEVEL * ((1 << level) - 1), KEY_BLOCK << level)
    return tl.cdiv(key, KEY_BLOCK)


@triton.jit
def merge(acc, total, top, block_acc, block_total, block_top, scale):
    """acc [M, DV], total and top [M]; `scale` is times log2(e)."""
    new_top = tl.maximum(top, block_top)
    keep = tl.exp2((top - new_top) * scale)
    weight = tl.exp2((block_top - new_top) * scale)
    total = tl.fma(block_total, weight, total * keep)
    acc = tl.fma(block_acc, tl.broadcast_to(weight[:, None], acc.shape), acc * keep[:, None])
    return acc, total, new_top


@triton.jit
def attend_key_blocks(
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
    KEY_BLOCK: tl.constexpr,  # a multiple of BLOCK_N
    GROWING: tl.constexpr,
    TREE: tl.constexpr,
    PATH: tl.constexpr,
):
    """acc, total, top (see attend_keys) over the keys of [begin, end), block by block. `begin` may lie inside a block
    only where blocks do not grow."""
    acc, total, top = no_keys(BLOCK_M, BLOCK_DV)
    first = blocks_below(begin + 1, KEY_BLOCK, GROWING) - 1
    for block in range(first, blocks_below(end, KEY_BLOCK, GROWING)):
        block_acc, block_total, block_top = no_keys(BLOCK_M, BLOCK_DV)
        block_acc, block_total, block_top = attend_keys(
            block_acc,
            block_total,
            block_top,
            rows,
            scale,
            keys,
            tl.maximum(block_begin(block, KEY_BLOCK, GROWING), begin),
            tl.minimum(block_begin(block + 1, KEY_BLOCK, GROWING), end),
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
        acc, total, top = merge(acc, total, top, block_acc, block_total, block_top, scale)
    return acc, total, top
