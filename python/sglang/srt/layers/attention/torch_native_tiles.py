"""Attention in plain torch for batch-invariant mode on a CPU: a row is always computed over the same rectangle of keys.

Positions are cut into tiles of TILE, anchored at position 0. A row in the tile that ends at `end` takes the keys of
[begin, end): begin is 0 on full layers, and on sliding layers the tile's start less the window in whole tiles, so that
the rectangle holds all that any row of the tile sees. Which rows of a tile a step holds, and what is batched beside
them, changes neither the rectangle nor the place of a key in it; what a row does not see is masked. torch's kernel
takes (request, KV head) pairs one by one, each on one thread, so a rectangle's numbers are its own; the number of query
rows of a call is one that agrees (ops/invariance/agreement.py). K and V are widened to float32 for it: there the
kernel has one way of multiplying, in bfloat16 it picks one by the batch. Close op.

A draft that is a line is computed as new tokens of its request are. A node of a tree is a decode row like any other:
the key at each position is that of its own path.

A tile's keys that no row of the step sees (given back, or not there yet) are read from slot 0, which is finite.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from sglang.srt.layers.attention.forward_batch import DraftRows, ForwardBatch
from sglang.srt.layers.attention.torch_native_backend import PlanningBackend
from sglang.srt.ops.invariance.agreement import agreeing_sizes, next_size, zero_sums

TILE = 32  # positions
ROW_SIZES = (1, 2, 4, 8, 16, 32)  # query rows of a call: the kernel takes 32 at a time
MAX_ELEMENTS = 1 << 18  # of float32 K that decode rows make at a time, so that caches hold it


@dataclass(frozen=True)
class _Chunk:
    """New tokens of one request, in token rows [start, end), all in one tile: keys [first, last) of the step's gathered
    ones, `mask` [end - start, last - first] true where a key is seen."""

    start: int
    end: int
    first: int
    last: int
    mask: Tensor


@dataclass(frozen=True)
class _Prefill:
    """A request's chunks and the `slots` [L] of all keys that they take."""

    slots: Tensor
    chunks: list[_Chunk]


@dataclass(frozen=True)
class _Decodes:
    """Decode rows whose rectangles are equally long: token `rows` [n], `slots` [n, L], `mask` [n, 1, 1, L]."""

    rows: Tensor
    slots: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Plan:
    prefills: list[_Prefill]
    decodes: list[_Decodes]


class TorchNativeTilesBackend(PlanningBackend[_Plan]):
    """Raises ValueError where attention over heads of the sizes `head_dims` can't keep rows apart on this machine."""

    def __init__(self, head_dims: Iterable[int] = ()) -> None:
        super().__init__()
        for dim in head_dims:
            row_sizes(dim, dim)

    def plan(self, batch: ForwardBatch, table: Tensor, window: int | None) -> _Plan:
        return _plan(batch, table, window)

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: _Plan, scale: float) -> Tensor:
        out = torch.empty_like(q)
        for item in plan.prefills:
            keys, values = (cache.index_select(0, item.slots).float().transpose(0, 1) for cache in (k_cache, v_cache))
            for chunk in item.chunks:
                mine = slice(chunk.start, chunk.end)
                seen = slice(chunk.first, chunk.last)
                out[mine] = _attend_chunk(q[mine], keys[:, seen], values[:, seen], chunk.mask, scale)
        for item in plan.decodes:
            size = max(1, MAX_ELEMENTS // (item.slots.shape[1] * k_cache[0].numel()))
            parts = (part.split(size) for part in (item.rows, item.slots, item.mask))
            for rows, slots, mask in zip(*parts, strict=True):
                out[rows] = _attend_decodes(q[rows], k_cache, v_cache, slots, mask, scale)
        return out


def rectangle(position: int, window: int | None) -> tuple[int, int]:
    """[begin, end): the keys that a row at `position` is computed over. It sees those of them that causality and the
    window allow."""
    end = (position // TILE + 1) * TILE
    return (0 if window is None else max(0, end - TILE - -(-(window - 1) // TILE) * TILE)), end


def _plan(batch: ForwardBatch, table: Tensor, window: int | None) -> _Plan:
    prefills = []
    start = 0
    for row in range(batch.num_extends):
        new, total = batch.extend_seq_lens_cpu[row], batch.seq_lens_cpu[row]
        prefills.append(_plan_prefill(table[int(batch.req_pool_indices[row])], start, total - new, total, window))
        start += new
    lengths = batch.seq_lens.tolist()  # the host's copies are too long for nodes of a draft
    if batch.drafts is not None and batch.drafts.paths is None:  # a line is new tokens of its request, one by one
        for row in range(0, batch.batch_size, batch.drafts.nodes):
            slots, before = table[int(batch.req_pool_indices[row])], lengths[row] - 1
            prefills.append(_plan_prefill(slots, row, before, before + batch.drafts.nodes, window))
        return _Plan(prefills, [])
    alike = defaultdict(list)  # decode rows by their rectangle's length
    for row in range(batch.num_extends, batch.batch_size):
        begin, end = rectangle(lengths[row] - 1, window)
        alike[end - begin].append((start + row - batch.num_extends, row, begin))
    return _Plan(prefills, [_plan_decodes(batch, table, length, rows, window) for length, rows in alike.items()])


def _plan_prefill(slots: Tensor, start: int, prefix: int, total: int, window: int | None) -> _Prefill:
    """`slots` [max_len] of the request's positions; its new tokens, of positions [prefix, total), are token rows from
    `start` on."""
    begin, end = rectangle(prefix, window)[0], rectangle(total - 1, window)[1]
    first_seen = 0 if window is None else max(0, prefix - window + 1)
    gathered = slots.new_zeros(end - begin)
    gathered[first_seen - begin : total - begin] = slots[first_seen:total]
    chunks = []
    position = prefix
    while position < total:
        first, last = rectangle(position, window)
        after = min(last, total)
        mask = _visible(torch.arange(first, last), torch.arange(position, after)[:, None], window)
        chunks.append(_Chunk(start + position - prefix, start + after - prefix, first - begin, last - begin, mask))
        position = after
    return _Prefill(gathered, chunks)


def _plan_decodes(
    batch: ForwardBatch, table: Tensor, length: int, rows: list[tuple[int, int, int]], window: int | None
) -> _Decodes:
    token_rows, batch_rows, begins = torch.tensor(rows).unbind(1)
    keys = begins[:, None] + torch.arange(length)
    seen = _visible(keys, batch.seq_lens[batch_rows, None] - 1, window)
    entries = keys if batch.drafts is None else _entries(keys, batch_rows, batch.drafts, batch.seq_lens)
    slots = table[batch.req_pool_indices[batch_rows, None], entries.clamp(max=table.shape[1] - 1)] * seen
    return _Decodes(token_rows, slots, seen[:, None, None])


def _entries(keys: Tensor, rows: Tensor, drafts: DraftRows, seq_lens: Tensor) -> Tensor:
    """Where in the table the slots of the keys at positions `keys` [n, L] stand for nodes of drafts, batch rows `rows`:
    those of the row's own path lie where its nodes are."""
    if drafts.paths is None:
        return keys
    before = (seq_lens[rows // drafts.nodes * drafts.nodes] - 1)[:, None]
    paths = drafts.paths.flatten(0, 1)[rows]
    nodes = paths.gather(1, (keys - before).clamp(0, paths.shape[1] - 1))
    return torch.where(keys < before, keys, before + nodes)


def _visible(keys: Tensor, positions: Tensor, window: int | None) -> Tensor:
    seen = keys <= positions
    return seen if window is None else seen & (keys > positions - window)


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q [n, Hq, D], k and v [Hk, L, D] float32, mask [n, L] -> [n, Hq, DV]. The rows of a KV head, (token, head)
    pairs, go in calls of equally many."""
    tokens, kv_heads = len(q), len(k)
    rows = q.unflatten(1, (kv_heads, -1)).transpose(0, 1).flatten(1, 2).float()  # [Hk, n * group, D]
    group = rows.shape[1] // tokens
    size = next_size(rows.shape[1], row_sizes(k.shape[-1], v.shape[-1]))
    missing = -rows.shape[1] % size
    rows = pad(rows, (0, 0, 0, missing)).unflatten(1, (-1, size)).transpose(0, 1)  # [calls, Hk, size, D]
    # rows that only fill up see all keys: one without any would be NaN
    mask = pad(mask.repeat_interleave(group, 0), (0, 0, 0, missing), value=True).unflatten(0, (-1, 1, size))
    k, v = (x.expand(len(rows), *x.shape) for x in (k, v))
    out = scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale)
    out = out.transpose(0, 1).flatten(1, 2)[:, : tokens * group].unflatten(1, (tokens, group))
    return out.transpose(0, 1).flatten(1, 2).to(q.dtype)


def _attend_decodes(q: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q [n, Hq, D], slots [n, L], mask [n, 1, 1, L] -> [n, Hq, DV]."""
    kv_heads = k_cache.shape[1]
    k, v = (
        cache.index_select(0, slots.flatten()).float().unflatten(0, slots.shape).transpose(1, 2)
        for cache in (k_cache, v_cache)
    )
    rows = q.unflatten(1, (kv_heads, -1)).float()  # [n, Hk, group, D]
    group = rows.shape[2]
    size = next_size(group, row_sizes(k.shape[-1], v.shape[-1]))
    calls = pad(rows, (0, 0, 0, -group % size)).split(size, dim=2)  # one, unless the group is very large
    out = [scaled_dot_product_attention(part, k, v, attn_mask=mask, scale=scale) for part in calls]
    return torch.cat(out, dim=2)[:, :, :group].flatten(1, 2).to(q.dtype)


@functools.cache
def row_sizes(dim: int, v_dim: int) -> tuple[int, ...]:
    """Numbers of query rows that agree for heads of `dim`, over short and long rectangles."""
    sizes = set(ROW_SIZES)
    for length in (TILE, 5 * TILE, 512 + 3 * TILE):
        q, k = zero_sums(ROW_SIZES[-1], length, dim, torch.float32)
        _, v = zero_sums(1, v_dim, length, torch.float32)
        k, v = k[None, None], v.T.contiguous()[None, None]  # scores and sums are rounding errors alone

        def attend(rows: Tensor, k: Tensor = k, v: Tensor = v) -> Tensor:
            return scaled_dot_product_attention(rows[None, None], k, v, scale=1.0)[0, 0]

        sizes &= set(agreeing_sizes(attend, q, ROW_SIZES))
    if not sizes:
        raise ValueError(
            f"--enable-deterministic-inference: torch's attention over heads of {dim} gives a row bits that depend on "
            f"its place among {ROW_SIZES[-1]} rows on this CPU"
        )
    return tuple(sorted(sizes))
