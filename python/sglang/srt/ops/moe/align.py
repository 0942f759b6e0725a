"""Sorts (token, expert slot) pairs by expert and pads each expert to whole blocks of rows, for the grouped GEMM.

Pair p is expert slot p % k, one of the token's k experts, of token p // k. An expert's pairs stay in ascending order,
experts that no token chose take no block, and the result depends on nothing but the ids: a stable counting sort,
without atomics whose order could show. Few pairs (decode) take one launch; more take a second one before it, which
counts. Nothing waits for the host.
"""

import dataclasses

import torch
from torch import Tensor

from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import cdiv, next_power_of_2, runs_triton, tl, triton

# Pairs one program reads: the smallest that holds all pairs, else the largest, several times. Each is a compilation.
SEGMENTS = (128, 1024, 4096)
MIN_BINS = 32  # of a histogram: fewer than a warp has lanes save nothing


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Row blocks of the grouped GEMM. What lies behind the used blocks is undefined."""

    pairs: Tensor  # [capacity * block_m] int32: pair of each row; num_pairs on rows that only pad
    experts: Tensor  # [capacity] int32: expert of each block
    used: Tensor  # [1] int32: blocks in use
    num_pairs: int
    block_m: int

    @property
    def capacity(self) -> int:
        return self.experts.shape[0]


def max_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Blocks that the worst routing takes. Each of the n experts hit wastes at most block_m - 1 rows, n <= pairs."""
    hit = min(num_experts, num_pairs)
    return (num_pairs + hit * (block_m - 1)) // block_m


@triton.jit(do_not_specialize=["num_pairs"])
def _count_kernel(ids_ptr, counts_ptr, num_pairs, BINS: tl.constexpr, SEGMENT: tl.constexpr, DEPENDENT: tl.constexpr):
    """counts[segment, e] = pairs of the segment that chose expert e."""
    segment = tl.program_id(0)
    pair = segment * SEGMENT + tl.arange(0, SEGMENT)
    wait_for_previous(DEPENDENT)
    chosen = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=0).to(tl.int32)
    counts = tl.histogram(chosen, BINS, mask=pair < num_pairs)
    tl.store(counts_ptr + segment * BINS + tl.arange(0, BINS), counts)


@triton.jit(do_not_specialize=["num_pairs", "num_segments"])
def _place_kernel(
    ids_ptr,  # [num_pairs] int64
    counts_ptr,  # [num_segments, BINS] int32; not read if there is one segment, which is counted here
    pairs_ptr,
    experts_ptr,
    used_ptr,
    num_pairs,
    num_segments,
    BLOCK_M: tl.constexpr,
    BINS: tl.constexpr,  # num_experts, rounded up to a power of two
    SEGMENT: tl.constexpr,
    SEGMENT_ROWS: tl.constexpr,  # num_segments, rounded up to a power of two
    DEPENDENT: tl.constexpr,
):
    """Program (e, s) places expert e's pairs of segment s."""
    expert = tl.program_id(0)
    segment = tl.program_id(1)
    pair = segment * SEGMENT + tl.arange(0, SEGMENT)
    wait_for_previous(DEPENDENT)
    chosen = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32)

    bins = tl.arange(0, BINS)
    if SEGMENT_ROWS == 1:
        totals = tl.histogram(chosen, BINS, mask=pair < num_pairs)
        before = 0
    else:
        row = tl.arange(0, SEGMENT_ROWS)
        counts = tl.load(counts_ptr + row[:, None] * BINS + bins[None, :], mask=(row < num_segments)[:, None], other=0)
        totals = tl.sum(counts, axis=0)
        before = tl.sum(tl.load(counts_ptr + row * BINS + expert, mask=row < segment, other=0))
    blocks = (totals + BLOCK_M - 1) // BLOCK_M
    first_block = tl.sum(tl.where(bins < expert, blocks, 0))
    rows_ptr = pairs_ptr + first_block * BLOCK_M

    mine = chosen == expert
    rank = before + tl.cumsum(mine.to(tl.int32), axis=0) - 1
    tl.store(rows_ptr + rank, pair, mask=mine)

    if segment == 0:
        count = tl.sum(tl.where(bins == expert, totals, 0))
        my_blocks = (count + BLOCK_M - 1) // BLOCK_M
        padding = count + tl.arange(0, BLOCK_M)
        tl.store(rows_ptr + padding, num_pairs, mask=padding < my_blocks * BLOCK_M)
        for start in range(0, my_blocks, 128):
            block = start + tl.arange(0, 128)
            tl.store(experts_ptr + first_block + block, expert, mask=block < my_blocks)
        if expert == 0:
            tl.store(used_ptr, tl.sum(blocks))


def align_reference(ids: Tensor, num_experts: int, block_m: int) -> Alignment:
    """ids [T, k] int64, each in [0, num_experts). On the host; without the rows and blocks behind the used ones."""
    flat = ids.flatten().tolist()
    chosen_by: list[list[int]] = [[] for _ in range(num_experts)]
    for pair, expert in enumerate(flat):
        chosen_by[expert].append(pair)
    pairs, experts = [], []
    for expert, mine in enumerate(chosen_by):
        blocks = -(-len(mine) // block_m)
        pairs += mine + [len(flat)] * (blocks * block_m - len(mine))
        experts += [expert] * blocks
    as_int = dict(dtype=torch.int32, device=ids.device)
    used = torch.tensor([len(experts)], **as_int)
    return Alignment(torch.tensor(pairs, **as_int), torch.tensor(experts, **as_int), used, len(flat), block_m)


def can_use(ids: Tensor) -> bool:
    return runs_triton(ids) and ids.dtype == torch.int64 and ids.is_contiguous() and ids.numel() > 0


def align(ids: Tensor, num_experts: int, block_m: int) -> Alignment:
    """ids [T, k] int64, each in [0, num_experts); num_experts and T * k are sizes that fix the buffers. Exact op."""
    assert can_use(ids), f"{ids.numel()} ids of {ids.dtype} on {ids.device}, contiguous: {ids.is_contiguous()}"
    num_pairs = ids.numel()
    segment = next((size for size in SEGMENTS if size >= num_pairs), SEGMENTS[-1])
    num_segments = cdiv(num_pairs, segment)
    bins = max(MIN_BINS, next_power_of_2(num_experts))
    capacity = max_blocks(num_pairs, num_experts, block_m)
    as_int = dict(dtype=torch.int32, device=ids.device)
    pairs = torch.empty(capacity * block_m, **as_int)
    experts = torch.empty(capacity, **as_int)
    used = torch.empty(1, **as_int)
    counts, options = used, launch_options(ids.device)
    if num_segments > 1:
        counts = torch.empty(num_segments, bins, **as_int)
        _count_kernel[(num_segments,)](ids, counts, num_pairs, bins, segment, num_warps=8, **options)
    _place_kernel[(num_experts, num_segments)](
        ids,
        counts,
        pairs,
        experts,
        used,
        num_pairs,
        num_segments,
        BLOCK_M=block_m,
        BINS=bins,
        SEGMENT=segment,
        SEGMENT_ROWS=next_power_of_2(num_segments),
        num_warps=4 if segment <= 1024 else 8,
        **options,
    )
    return Alignment(pairs, experts, used, num_pairs, block_m)
