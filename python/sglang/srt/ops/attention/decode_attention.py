"""Decode attention: one new token a request over all of its keys, which several programs share.

out[b, h] = sum over the visible keys n of softmax_n(scale q[b, h] . k[n, h // group]) v[n, h // group]. The visible
keys of a request, the last `window` of it, are cut at multiples of BLOCK_N into splits that depend only on the length
and on their number. A program takes one split for all query heads of a KV head and leaves its normalised sum and
log2-sum-exp in scratch; a second kernel weighs and adds the splits in a fixed order (Dao et al., Flash-Decoding).
With one split the first kernel writes the result itself.

A row may verify a node of a draft tree: its last keys are then those of its path, not of the table.

Close op: float32 sums, P rounded to the inputs' dtype. Floor: K and V of the visible keys read once.
"""

import torch
from torch import Tensor

from sglang.srt.ops.attention.attend_keys import LOG2_E, NO_WINDOW, Drafts, Keys, Rows, attend_keys, no_keys
from sglang.srt.ops.attention.extend_attention import can_use, extend_attention_reference
from sglang.srt.ops.attention.key_blocks import (
    NO_KEY_BLOCKS,
    KeyBlocks,
    attend_key_blocks,
    block_begin,
    blocks_below,
    merge,
)
from sglang.srt.ops.attention.tiles import DecodeTile
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import cdiv, next_power_of_2, tl, triton

MAX_SPLITS = 64  # outside batch-invariant mode
COMBINED_COLUMNS = 128  # a program of the combining kernel takes; with MAX_SPLITS rows, 64 registers a thread
MAX_ROWS = 64  # query heads a program takes; a larger group goes to more programs


@triton.jit
def _cut(length, window, splits, BLOCK_N: tl.constexpr):
    """(where the first split begins, keys of a split); splits past the last key are empty."""
    begin = tl.maximum(length - window, 0) // BLOCK_N * BLOCK_N
    return begin, tl.cdiv(tl.cdiv(length - begin, BLOCK_N), splits) * BLOCK_N


# Decode rows start anywhere in the batch's arrays: neither that nor their number must make another kernel.
@triton.jit(
    do_not_specialize=["splits", "nodes"], do_not_specialize_on_alignment=["req_rows", "seq_lens", "path_slots"]
)
def _decode_kernel(
    q,
    k_cache,
    v_cache,
    out,
    sums,  # [B, Hq, splits, DV] float32
    lses,  # [B, Hq, splits] float32; with KEY_BLOCK [B, Hq, splits, 2], total and top
    table,
    req_rows,
    seq_lens,
    path_slots,  # [B, path_stride] int32; used with PATH only
    scale,
    window,
    splits,
    nodes,  # rows of one draft; the first sees one key of its own
    q_token_stride,
    q_head_stride,
    k_slot_stride,
    k_head_stride,
    v_slot_stride,
    v_head_stride,
    table_stride,
    path_stride,
    GROUP: tl.constexpr,  # query heads of a KV head
    HEADS: tl.constexpr,  # of them in one program
    HEAD_BLOCKS: tl.constexpr,  # programs that share a KV head's split
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONE_SPLIT: tl.constexpr,
    PATH: tl.constexpr,
    KEY_BLOCK: tl.constexpr,  # keys of a block, or of the first ones (key_blocks.py): a split is one; 0: see _cut
    GROWING: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_previous(DEPENDENT)
    request, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    kv_head = (tl.program_id(1) // HEAD_BLOCKS).to(tl.int64)
    length = tl.load(seq_lens + request).to(tl.int32)
    first_key = tl.maximum(length - window, 0)
    if KEY_BLOCK:
        block = blocks_below(first_key + 1, KEY_BLOCK, GROWING) - 1 + split
        begin = block_begin(block, KEY_BLOCK, GROWING)
        end = length if ONE_SPLIT else tl.minimum(block_begin(block + 1, KEY_BLOCK, GROWING), length)
    else:
        begin, size = _cut(length, window, splits, BLOCK_N)
        begin += split * size
        end = tl.minimum(begin + size, length)
    begin = tl.maximum(begin, first_key // BLOCK_N * BLOCK_N)
    if begin >= end and not ONE_SPLIT:
        return

    prefix = 0
    if PATH:
        prefix = tl.load(seq_lens + request // nodes * nodes).to(tl.int32) - 1
        path_slots += request * path_stride
    row = tl.arange(0, BLOCK_M)
    head_in_group = tl.program_id(1) % HEAD_BLOCKS * HEADS + row
    is_real = (row < HEADS) & (head_in_group < GROUP)
    head = kv_head * GROUP + tl.minimum(head_in_group, GROUP - 1)  # rows that are not real repeat one that is
    dims = tl.arange(0, BLOCK_D)
    v_dims = tl.arange(0, BLOCK_DV)
    q_tile = tl.load(
        q + request * q_token_stride + (head * q_head_stride)[:, None] + dims[None, :],
        mask=dims[None, :] < D,
        other=0.0,
    )
    table += tl.load(req_rows + request) * table_stride
    k_cache += kv_head * k_head_stride
    v_cache += kv_head * v_head_stride
    rows = Rows(q_tile, first_key + row * 0, length + row * 0)
    keys = Keys(table, k_cache, v_cache, k_slot_stride, v_slot_stride, first_key, length)
    drafts = Drafts(row, None, prefix, path_slots)  # no tree
    if KEY_BLOCK:
        acc, total, top = attend_key_blocks(
            rows,
            scale,
            keys,
            begin,
            end,
            drafts,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            BLOCK_M,
            BLOCK_N,
            KEY_BLOCK,
            GROWING,
            TREE=False,
            PATH=PATH,
        )
    else:
        acc, total, top = no_keys(BLOCK_M, BLOCK_DV)
        acc, total, top = attend_keys(
            acc,
            total,
            top,
            rows,
            scale,
            keys,
            begin,
            end,
            drafts,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            BLOCK_N,
            MASKED=True,
            TREE=False,
            PATH=PATH,
            ORDERED=False,
        )
    mean = acc / tl.where(total == 0, 1.0, total)[:, None]  # a padding row without keys gives zeros
    flat = request * tl.num_programs(1) // HEAD_BLOCKS * GROUP + head  # (request, head) in out and scratch
    mask = is_real[:, None] & (v_dims[None, :] < DV)
    if ONE_SPLIT:
        tl.store(out + flat[:, None] * DV + v_dims[None, :], mean.to(out.dtype.element_ty), mask=mask)
    else:
        place = flat * splits + split
        if KEY_BLOCK:
            tl.store(sums + place[:, None] * DV + v_dims[None, :], acc, mask=mask)
            tl.store(lses + 2 * place, total, mask=is_real)
            tl.store(lses + 2 * place + 1, top, mask=is_real)
        else:
            tl.store(sums + place[:, None] * DV + v_dims[None, :], mean, mask=mask)
            tl.store(lses + place, tl.fma(top, scale, tl.log2(total)), mask=is_real)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["seq_lens"])
def _combine_kernel(
    sums,
    lses,
    out,
    seq_lens,
    window,
    splits,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """BLOCK_DV columns of one (request, head) a program. No load waits for another: what lies in the scratch of splits
    without keys is read too, and passed over."""
    wait_for_previous(DEPENDENT)
    request, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v_dims = tl.program_id(2) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    flat = request * tl.num_programs(1) + head
    index = tl.arange(0, MAX_SPLITS)
    place = flat * splits + index
    means = tl.load(
        sums + place[:, None] * DV + v_dims[None, :],
        mask=(index < splits)[:, None] & (v_dims < DV)[None, :],
        other=0.0,
    )
    lse = tl.load(lses + place, mask=index < splits, other=0.0)
    length = tl.load(seq_lens + request).to(tl.int32)
    begin, size = _cut(length, window, splits, BLOCK_N)
    is_used = index < tl.cdiv(length - begin, tl.maximum(size, 1))
    largest = tl.max(tl.where(is_used, lse, float("-inf")), 0)
    weights = tl.where(is_used, tl.exp2(lse - largest), 0.0)
    total = tl.sum(weights, 0)
    acc = tl.sum(tl.where(is_used[:, None], means, 0.0) * weights[:, None], 0)
    acc = acc / tl.where(total == 0, 1.0, total)  # a padding row without keys gives zeros
    tl.store(out + flat * DV + v_dims, acc.to(out.dtype.element_ty), mask=v_dims < DV)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["seq_lens"])
def _merge_kernel(
    sums,
    states,  # [B, Hq, splits, 2]
    out,
    seq_lens,
    scale,
    window,
    splits,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    GROWING: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """_combine_kernel for key blocks: what one program would do that takes them all."""
    wait_for_previous(DEPENDENT)
    request, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(seq_lens + request).to(tl.int32)
    first = blocks_below(tl.maximum(length - window, 0) + 1, KEY_BLOCK, GROWING) - 1
    place = (request * tl.num_programs(1) + head) * splits + tl.arange(0, 1)
    v_dims = tl.arange(0, BLOCK_DV)
    acc, total, top = no_keys(1, BLOCK_DV)
    # The loads of four blocks are in flight together.
    for _ in tl.range(first, blocks_below(length, KEY_BLOCK, GROWING), loop_unroll_factor=4):
        block_acc = tl.load(sums + place[:, None] * DV + v_dims[None, :], mask=v_dims[None, :] < DV, other=0.0)
        block_total, block_top = tl.load(states + 2 * place), tl.load(states + 2 * place + 1)
        acc, total, top = merge(acc, total, top, block_acc, block_total, block_top, scale)
        place += 1
    mean = acc / tl.where(total == 0, 1.0, total)[:, None]
    at = (request * tl.num_programs(1) + head) * DV + v_dims
    tl.store(out + at[None, :], mean.to(out.dtype.element_ty), mask=v_dims[None, :] < DV)


def num_splits(batch: int, kv_heads: int, sm_count: int) -> int:
    """Splits of a request's keys: programs enough for about two on each multiprocessor, a power of two."""
    wanted = max(1, min(MAX_SPLITS, 2 * sm_count // (batch * kv_heads)))
    return 1 << (wanted.bit_length() - 1)


def scratch_size(max_batch: int, num_heads: int, kv_heads: int, v_dim: int, sm_count: int) -> int:
    """Elements (float32) of scratch that serve every batch of up to `max_batch` requests."""
    splits = [(batch, num_splits(batch, kv_heads, sm_count)) for batch in range(1, max_batch + 1)]
    return max((batch * n * num_heads * (v_dim + 1) for batch, n in splits if n > 1), default=0)


def key_block_splits(batch: int, kv_heads: int, sm_count: int, most: int) -> int:
    """In batch-invariant mode: a program for each of up to `most` key blocks, or one for all where there are many
    rows. The choice changes no bit."""
    return most if batch * kv_heads <= sm_count else 1


def key_block_scratch_size(max_batch: int, num_heads: int, kv_heads: int, v_dim: int, sm_count: int, most: int) -> int:
    """scratch_size for key_block_splits."""
    return min(max_batch, sm_count // kv_heads) * num_heads * most * (v_dim + 2)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    table: Tensor,
    req_rows: Tensor,
    seq_lens: Tensor,
    scratch: Tensor,
    splits: int,
    tile: DecodeTile,
    scale: float,
    window: int | None = None,
    paths: tuple[Tensor, int] | None = None,
    key_blocks: KeyBlocks = NO_KEY_BLOCKS,
) -> None:
    """Attention of q [B, Hq, D] over k_cache [slots, Hk, D] and v_cache [slots, Hk, DV] into out [B, Hq, DV].

    `table` [rows, max_len] int32 holds slots by request row and key position; `req_rows` (its rows) and `seq_lens` (the
    new token included; 0 gives zeros) are [B] int64. `scratch` is float32 with at least B * Hq * splits * (DV + 1)
    elements if `splits` > 1. `window` counts keys, the query's own included; None: all. `scale` is positive. Nothing
    but visible keys is read from the caches. It allocates nothing and waits for nothing.

    `paths` (slots [B, P] int32, nodes): rows come in groups of `nodes`, the nodes of one request's draft tree. With n
    one less than the first node's length, the slots of a row's keys from position n on are those of its row of `slots`.

    `key_blocks`: how keys are cut in batch-invariant mode (key_blocks.py). `splits` is then 1, all blocks in one
    program, or as many as there may be, one a program; both give the same bits. Scratch has B * Hq * splits * (DV + 2)
    elements.
    """
    assert can_use(q, k_cache, v_cache) and out.is_contiguous() and table.stride(1) == 1 and scale > 0
    batch, num_heads = q.shape[:2]
    kv_heads, dim = k_cache.shape[1:]
    v_dim = v_cache.shape[2]
    group = num_heads // kv_heads
    heads = min(group, MAX_ROWS)
    places = batch * num_heads * splits
    assert splits >= 1 and (splits <= MAX_SPLITS or key_blocks.length)
    assert key_blocks.length % tile.block_n == 0 and (window is None or not key_blocks.growing), (
        f"{key_blocks}, {tile}, {window}"
    )
    path_slots, nodes = (table, 1) if paths is None else paths
    assert paths is None or (batch % nodes == 0 and path_slots.stride(1) == 1)
    assert req_rows.is_contiguous() and seq_lens.is_contiguous(), f"{req_rows.stride()}, {seq_lens.stride()}"
    needed = places * (v_dim + (2 if key_blocks.length else 1))
    assert splits == 1 or scratch.numel() >= needed, f"scratch of {scratch.numel()}, needed {needed}"
    sums, lses = scratch[: places * v_dim], scratch[places * v_dim :]
    window = NO_WINDOW if window is None else window
    head_blocks, options = cdiv(group, heads), launch_options(q.device)
    _decode_kernel[(batch, kv_heads * head_blocks, splits)](
        q,
        k_cache,
        v_cache,
        out,
        sums,
        lses,
        table,
        req_rows,
        seq_lens,
        path_slots,
        scale * LOG2_E,
        window,
        splits,
        nodes,
        *q.stride()[:2],
        *k_cache.stride()[:2],
        *v_cache.stride()[:2],
        table.stride(0),
        path_slots.stride(0),
        GROUP=group,
        HEADS=heads,
        HEAD_BLOCKS=head_blocks,
        D=dim,
        DV=v_dim,
        BLOCK_D=next_power_of_2(dim),
        BLOCK_DV=next_power_of_2(v_dim),
        BLOCK_M=max(16, next_power_of_2(heads)),
        BLOCK_N=tile.block_n,
        ONE_SPLIT=splits == 1,
        PATH=paths is not None,
        KEY_BLOCK=key_blocks.length,
        GROWING=key_blocks.growing,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **options,
    )
    if splits > 1 and key_blocks.length:
        _merge_kernel[(batch, num_heads)](
            sums,
            lses,
            out,
            seq_lens,
            scale * LOG2_E,
            window,
            splits,
            DV=v_dim,
            BLOCK_DV=next_power_of_2(v_dim),
            KEY_BLOCK=key_blocks.length,
            GROWING=key_blocks.growing,
            num_warps=4,
            **options,
        )
    elif splits > 1:
        _combine_kernel[(batch, num_heads, cdiv(v_dim, COMBINED_COLUMNS))](
            sums,
            lses,
            out,
            seq_lens,
            window,
            splits,
            DV=v_dim,
            BLOCK_DV=COMBINED_COLUMNS,
            BLOCK_N=tile.block_n,
            MAX_SPLITS=MAX_SPLITS,
            num_warps=4,
            **options,
        )


def decode_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    table: Tensor,
    req_rows: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """The same [B, Hq, DV] in the inputs' dtype, which may be float64: an extend by one token."""
    one = torch.ones_like(seq_lens)
    return extend_attention_reference(q, k_cache, v_cache, table, req_rows, seq_lens - 1, one, scale, window)
