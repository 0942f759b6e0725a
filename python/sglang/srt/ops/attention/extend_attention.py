"""Extend (prefill) attention: the new tokens of a ragged batch over all keys of their requests, in one pass.

out[t, h] = sum over the keys n that t sees of softmax_n(scale q[t, h] . k[n, h // group]) v[n, h // group]. K and V of
the new tokens are in the pool already, so cached and new keys are the same to the kernel: token t at position i sees
0 <= i - n < window, with a tree mask instead what the mask allows among the request's new tokens.

A program takes one KV head and up to TOKENS query tokens, whose rows are (token, query head of that KV head) pairs:
each K and V tile is loaded once for all query heads. Programs with the most keys start first. Close op: float32 sums,
P rounded to the inputs' dtype. Floor: 4 D flops for each visible (query, head, key) on the tensor cores.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sglang.srt.ops.attention.attend_keys import LOG2_E, NO_WINDOW, Drafts, Keys, Rows, attend_keys, no_keys
from sglang.srt.ops.attention.key_blocks import NO_KEY_BLOCKS, KeyBlocks, attend_key_blocks
from sglang.srt.ops.attention.tiles import ExtendTile
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import cdiv, next_power_of_2, runs_triton, tl, triton


class Tree(NamedTuple):
    """Which new tokens see which, where they are a tree of drafts: request b's mask is n x n for its n new tokens."""

    positions: Tensor  # [T] int64 of the new tokens: a child's is its parent's + 1
    visible: Tensor  # [sum of n * n] bool, request by request; a token sees itself
    starts: Tensor  # [B] int64, where each request's mask begins


# Parts of the batch's arrays start anywhere: their alignment must not make another kernel.
@triton.jit(do_not_specialize_on_alignment=["req_rows", "prefix_lens", "new_lens", "start_locs", "work"])
def _extend_kernel(
    q,
    k_cache,
    v_cache,
    out,
    table,
    req_rows,
    prefix_lens,
    new_lens,
    start_locs,
    work,
    tree_positions,
    tree_visible,
    tree_starts,
    scale,
    window,
    q_token_stride,
    q_head_stride,
    k_slot_stride,
    k_head_stride,
    v_slot_stride,
    v_head_stride,
    out_token_stride,
    table_stride,
    GROUP: tl.constexpr,  # query heads of a KV head
    HEADS: tl.constexpr,  # of them in one program
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    TREE: tl.constexpr,
    KEY_BLOCK: tl.constexpr,  # keys of a block, or of the first ones (key_blocks.py); 0: all keys are one
    GROWING: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_previous(DEPENDENT)
    request = tl.load(work + 2 * tl.program_id(0))
    first = tl.load(work + 2 * tl.program_id(0) + 1)  # of the tile's tokens, among the request's new ones
    new = tl.load(new_lens + request).to(tl.int32)
    if first >= new:  # one of a graph's tiles that this step leaves over
        return
    kv_head = tl.program_id(1).to(tl.int64)
    prefix = tl.load(prefix_lens + request).to(tl.int32)
    last = tl.minimum(first + BLOCK_M // HEADS, new) - 1

    row = tl.arange(0, BLOCK_M)
    is_real = (first + row // HEADS <= last) & (tl.program_id(2) * HEADS + row % HEADS < GROUP)
    token = tl.minimum(first + row // HEADS, last)  # rows that are not real repeat one that is
    head = kv_head * GROUP + tl.minimum(tl.program_id(2) * HEADS + row % HEADS, GROUP - 1)
    q_row = tl.load(start_locs + request) + token
    dims = tl.arange(0, BLOCK_D)
    v_dims = tl.arange(0, BLOCK_DV)
    q_tile = tl.load(
        q + (q_row * q_token_stride + head * q_head_stride)[:, None] + dims[None, :], mask=dims[None, :] < D, other=0.0
    )

    # Positions of the tile's queries lie in [low, high]; each sees keys of [row_first, row_end).
    row_end = prefix + token + 1
    if TREE:
        low, high = prefix, prefix + new - 1
        row_first = tl.load(tree_positions + q_row).to(tl.int32) - window + 1
        tree_positions += tl.load(start_locs + request)
        tree_rows = tree_visible + tl.load(tree_starts + request) + token.to(tl.int64) * new
    else:
        low, high = prefix + first, prefix + last
        row_first = row_end - window
        tree_rows = row
    first_key = tl.maximum(low - window + 1, 0)
    end_key = high + 1

    table += tl.load(req_rows + request) * table_stride
    k_cache += kv_head * k_head_stride
    v_cache += kv_head * v_head_stride
    rows = Rows(q_tile, row_first, row_end)
    keys = Keys(table, k_cache, v_cache, k_slot_stride, v_slot_stride, first_key, end_key)
    drafts = Drafts(tree_rows, tree_positions, prefix, table)  # no path
    begin = first_key // BLOCK_N * BLOCK_N
    if KEY_BLOCK:
        acc, total, top = attend_key_blocks(
            rows,
            scale,
            keys,
            begin,
            end_key,
            drafts,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            BLOCK_M,
            BLOCK_N,
            KEY_BLOCK,
            GROWING,
            TREE=TREE,
            PATH=False,
        )
    else:
        # Keys of [inner_begin, inner_end) are visible to every row, so their tiles need no masks.
        inner_end = tl.maximum(low // BLOCK_N * BLOCK_N, begin)
        inner_begin = tl.minimum(tl.cdiv(tl.maximum(high - window + 1, 0), BLOCK_N) * BLOCK_N, inner_end)
        acc, total, top = no_keys(BLOCK_M, BLOCK_DV)
        for part in tl.static_range(0 if WINDOWED else 1, 3):  # where windows begin, the wholly visible, the diagonal
            part_begin = begin if part == 0 else inner_begin if part == 1 else inner_end
            part_end = inner_begin if part == 0 else inner_end if part == 1 else end_key
            acc, total, top = attend_keys(
                acc,
                total,
                top,
                rows,
                scale,
                keys,
                part_begin,
                part_end,
                drafts,
                D,
                DV,
                BLOCK_D,
                BLOCK_DV,
                BLOCK_N,
                MASKED=part != 1,
                TREE=TREE,
                PATH=False,
                ORDERED=False,
            )
    tl.store(
        out + (q_row * out_token_stride + head * DV)[:, None] + v_dims[None, :],
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=is_real[:, None] & (v_dims[None, :] < DV),
    )


def tokens_per_tile(group: int, tile: ExtendTile) -> int:
    """Query tokens of a tile where a KV head serves `group` query heads; heads beyond block_m go to more programs."""
    return tile.block_m // min(group, tile.block_m)


def padded_dim(dim: int) -> int:
    """Columns of a tile of heads of `dim`: a power of two, and at least 64 (128 bytes).

    A narrower operand lies in shared memory in another pattern than a wide one. Where K and V differ in that, the ptxas
    of Triton 3.6 steps through one of them from a register it never set: sums that are wrong and vary, or a fault.
    """
    return max(64, next_power_of_2(dim))


def make_work(prefix_lens: list[int], new_lens: list[int], tokens: int) -> np.ndarray:
    """The tiles of a batch: [n, 2] int32 rows of (request, first new token of the tile), `tokens` new tokens a tile.

    Those at the highest positions, which have the most keys, come first, so that no long one is left over at the end.
    """
    new = np.asarray(new_lens, dtype=np.int64)
    counts = -(-new // tokens)
    request = np.repeat(np.arange(len(new)), counts)
    first = (np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)) * tokens
    order = np.argsort(-(np.asarray(prefix_lens, dtype=np.int64)[request] + first), kind="stable")
    return np.stack([request, first], axis=1)[order].astype(np.int32)


def extend_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    table: Tensor,
    req_rows: Tensor,
    prefix_lens: Tensor,
    new_lens: Tensor,
    start_locs: Tensor,
    work: Tensor,
    tile: ExtendTile,
    scale: float,
    window: int | None = None,
    tree: Tree | None = None,
    key_blocks: KeyBlocks = NO_KEY_BLOCKS,
) -> None:
    """Attention of q [T, Hq, D] over k_cache [slots, Hk, D] and v_cache [slots, Hk, DV] into out [T, Hq, DV].

    `table` [rows, max_len] int32 holds slots by request row and key position; `req_rows` (its rows), `prefix_lens`,
    `new_lens` and `start_locs` (first row in q) are [B] int64. `work` is make_work's for tokens_per_tile(Hq / Hk,
    `tile`), on the device. `window` counts keys, the query's own included; None: all. `scale` is positive.
    `key_blocks`: how keys are cut in batch-invariant mode (key_blocks.py). Nothing but visible keys is read from
    the caches.
    """
    assert can_use(q, k_cache, v_cache) and out.is_contiguous() and table.stride(1) == 1 and scale > 0
    kv_heads, dim = k_cache.shape[1:]
    v_dim = v_cache.shape[2]
    assert all(t.is_contiguous() for t in (req_rows, prefix_lens, new_lens, start_locs, work))
    group = q.shape[1] // kv_heads
    heads = min(group, tile.block_m)
    if len(work) == 0:
        return
    _extend_kernel[(len(work), kv_heads, cdiv(group, heads))](
        q,
        k_cache,
        v_cache,
        out,
        table,
        req_rows,
        prefix_lens,
        new_lens,
        start_locs,
        work,
        None if tree is None else tree.positions,
        None if tree is None else tree.visible.view(torch.uint8),
        None if tree is None else tree.starts,
        scale * LOG2_E,
        NO_WINDOW if window is None else window,
        *q.stride()[:2],
        *k_cache.stride()[:2],
        *v_cache.stride()[:2],
        out.stride(0),
        table.stride(0),
        GROUP=group,
        HEADS=heads,
        D=dim,
        DV=v_dim,
        BLOCK_D=padded_dim(dim),
        BLOCK_DV=padded_dim(v_dim),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        WINDOWED=window is not None,
        TREE=tree is not None,
        KEY_BLOCK=key_blocks.length,
        GROWING=key_blocks.growing,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(q.device),
    )


def extend_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    req_rows: Tensor,
    prefix_lens: Tensor,
    new_lens: Tensor,
    scale: float,
    window: int | None = None,
    tree: Tree | None = None,
) -> Tensor:
    """The same [T, Hq, DV] by matrix products and a softmax in the inputs' dtype, which may be float64."""
    out, start = [], 0
    for b, (prefix, new) in enumerate(zip(prefix_lens.tolist(), new_lens.tolist(), strict=True)):
        first = 0 if window is None else max(0, prefix - window + 1)
        key = torch.arange(first, prefix + new, device=q.device)
        query = key[prefix - first :]
        if tree is None:
            visible = key <= query[:, None]
        else:
            query = tree.positions[start : start + new]
            mask = tree.visible[tree.starts[b] :][: new * new].view(new, new)
            visible = torch.cat([mask.new_ones(new, prefix - first), mask], dim=1)
            key = torch.cat([key[: prefix - first], query])
        if window is not None:
            visible = visible & (key > query[:, None] - window)
        slots = table[req_rows[b], first : prefix + new].long()
        group = q.shape[1] // k_cache.shape[1]
        k, v = (cache[slots].repeat_interleave(group, dim=1) for cache in (k_cache, v_cache))
        scores = torch.einsum("thd,khd->htk", q[start : start + new], k) * scale
        probs = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out.append(torch.einsum("htk,khd->thd", probs, v))
        start += new
    return torch.cat(out)


def can_use(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> bool:
    """Whether the attention kernels take these tensors; head sizes are multiples of 16 up to 512."""
    sizes = all(dim % 16 == 0 and 16 <= dim <= 512 for dim in (q.shape[-1], v_cache.shape[-1]))
    shapes = q.shape[-1] == k_cache.shape[-1] and q.shape[1] % k_cache.shape[1] == 0
    dense = all(x.stride(-1) == 1 for x in (q, k_cache, v_cache))
    dtype = q.dtype in (torch.bfloat16, torch.float16, torch.float32) and q.dtype == k_cache.dtype == v_cache.dtype
    return runs_triton(q) and sizes and shapes and dense and dtype
