"""The loop over keys that extend and decode attention share: an online softmax over tiles of paged keys and values.

For rows m and their visible keys n: p[m, n] = 2^(scale (q[m] . k[n]) - scale top[m]), total[m] = sum of p[m, n],
acc[m] = sum of p[m, n] v[n], where top[m] is the largest q . k so far (Dao, FlashAttention-2). All in float32 but the
operands of the two products, which keep the inputs' dtype. Tiles lie at multiples of BLOCK_N of absolute key positions
and are visited in ascending order, and every product-and-sum is spelled as one fused operation: a row's bits depend on
its own keys, not on the rows it shares a tile with nor on where masking begins.
"""

from typing import NamedTuple

from sglang.srt.utils.triton_runtime import tl, triton

LOG2_E = 1.4426950408889634
NO_WINDOW = 1 << 30  # a window longer than any context
# Where `top` starts: finite, so that rows which have not met a visible key yet make no -inf - -inf.
TOP_START = tl.constexpr(-1e30)


class Rows(NamedTuple):
    """The rows of a program, M (query token, query head) pairs of one KV head."""

    q: tl.tensor  # [M, BLOCK_D]
    first: tl.tensor  # [M] row m sees keys from first[m] up to end[m]
    end: tl.tensor


class Keys(NamedTuple):
    """Keys and values of a request, of one KV head."""

    table: tl.tensor  # slots of the request's tokens by key position
    k_cache: tl.tensor  # of slot 0
    v_cache: tl.tensor
    k_stride: tl.tensor  # elements from slot to slot
    v_stride: tl.tensor
    first: tl.tensor  # [first, end) may be loaded: the union of what the rows see
    end: tl.tensor


class Drafts(NamedTuple):
    """What a request's last tokens are to each other where they are drafts."""

    tree_rows: tl.tensor  # [M] pointers to each row's mask over the request's new tokens; used with TREE only
    tree_positions: tl.tensor  # positions of the request's new tokens
    prefix: tl.tensor  # tokens before them, or before the path
    path_slots: tl.tensor  # slots of the keys from `prefix` on, the same for all rows; used with PATH only


@triton.jit
def no_keys(M: tl.constexpr, BLOCK_DV: tl.constexpr):
    """acc, total, top (see attend_keys) of M rows before they have seen a key."""
    return tl.zeros([M, BLOCK_DV], tl.float32), tl.zeros([M], tl.float32), tl.full([M], TOP_START, tl.float32)


@triton.jit
def attend_keys(
    acc,  # [M, BLOCK_DV] float32, the running state
    total,  # [M] float32
    top,  # [M] float32
    rows,
    scale,  # times log2(e); positive
    keys,
    begin,  # the tiles to visit: a multiple of BLOCK_N
    end,
    drafts,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,  # powers of two from D and DV up
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,  # False: every row sees all keys of [begin, end)
    TREE: tl.constexpr,
    PATH: tl.constexpr,
    ORDERED: tl.constexpr,  # sum rows of p by a product with ones: in one order, whatever the layout of p
):
    dims = tl.arange(0, BLOCK_D)
    v_dims = tl.arange(0, BLOCK_DV)
    # constant masks cost nothing: the compiler drops them
    real = dims < D if BLOCK_D != D else tl.full([BLOCK_D], True, tl.int1)
    v_real = v_dims < DV if BLOCK_DV != DV else tl.full([BLOCK_DV], True, tl.int1)
    for start in range(begin, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        loaded = (key >= keys.first) & (key < keys.end) if MASKED else tl.full([BLOCK_N], True, tl.int1)
        if PATH:
            own = loaded & (key >= drafts.prefix)
            slot = tl.load(keys.table + key, mask=loaded & (key < drafts.prefix), other=0)
            own_slot = tl.load(drafts.path_slots + (key - drafts.prefix), mask=own, other=0)
            slot = tl.where(own, own_slot, slot).to(tl.int64)
        else:
            slot = tl.load(keys.table + key, mask=loaded, other=0).to(tl.int64)
        k = tl.load(
            keys.k_cache + slot[None, :] * keys.k_stride + dims[:, None],
            mask=loaded[None, :] & real[:, None],
            other=0.0,
        )
        scores = tl.dot(rows.q, k, input_precision="ieee")
        if MASKED:
            if TREE:
                new = key - drafts.prefix
                is_new = loaded & (new >= 0)
                position = tl.where(is_new, tl.load(drafts.tree_positions + new, mask=is_new, other=0), key)
                allowed = tl.load(drafts.tree_rows[:, None] + new[None, :], mask=is_new[None, :], other=1) != 0
                visible = loaded[None, :] & allowed & (position[None, :] >= rows.first[:, None])
            else:
                visible = (key[None, :] >= rows.first[:, None]) & (key[None, :] < rows.end[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(tl.fma(scores, scale, -(new_top * scale)[:, None]))
        keep = tl.exp2((top - new_top) * scale)
        if ORDERED:
            ones = tl.full([BLOCK_N, 16], 1.0, tl.float32).to(keys.v_cache.dtype.element_ty)
            sums = tl.max(tl.dot(p.to(keys.v_cache.dtype.element_ty), ones, input_precision="ieee"), 1)
        else:
            sums = tl.sum(p, 1)
        total = tl.fma(total, keep, sums)
        v = tl.load(
            keys.v_cache + slot[:, None] * keys.v_stride + v_dims[None, :],
            mask=loaded[:, None] & v_real[None, :],
            other=0.0,
        )
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
        top = new_top
    return acc, total, top
