"""Attention in plain torch: the reference backend, and the one a CPU serves with.

Slot tables become a few work items, made by the first layer of each kind (full, or sliding by W) of a step and shared
by the others. An item is a rectangle of queries by keys: the gather indices of its keys and a mask. Decode rows of the
batch are one padded item; a prefill chunk is one item for every QUERY_BLOCK of its tokens. Only slots a query may see
are gathered: on sliding layers those of earlier positions may have been given back. Rows that verify one draft share
their keys: they stand beside each other in the rectangle, and the mask says what each sees.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sglang.srt.layers.attention.forward_batch import Attention, AttentionBackend, DraftRows, ForwardBatch

# Bounds a prefill mask to QUERY_BLOCK x (keys), and a sliding layer's work to QUERY_BLOCK + W keys a query.
QUERY_BLOCK = 1024


Plan = TypeVar("Plan")


@dataclass(frozen=True)
class _Decode:
    """All decode rows, `queries` for each of `batch` requests: `slots` [B * L] of their keys, request by request,
    `mask` [B, 1, queries, L] true where a key is seen, or None where all are."""

    first: int  # token row of the first decode
    batch: int
    queries: int
    slots: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Prefill:
    """Queries in token rows [start, end), their keys' `slots` [L], `mask` [end - start, L] true where seen."""

    start: int
    end: int
    slots: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Plan:
    prefills: list[_Prefill]
    decode: _Decode | None


class PlanningBackend(AttentionBackend, Generic[Plan]):
    """A backend in torch: a step's work is planned by the first layer of each window and shared by the others."""

    def __init__(self) -> None:
        self._plans: dict[int | None, Plan] = {}

    @abstractmethod
    def plan(self, batch: ForwardBatch, table: Tensor, window: int | None) -> Plan:
        """The step's work for layers with this window, whose slots are in `table`."""

    @abstractmethod
    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: Plan, scale: float) -> Tensor:
        """q [T, Hq, D] -> [T, Hq, D]."""

    def prepare(self, batch: ForwardBatch) -> None:
        """Forget the last step's plans."""
        self._plans.clear()

    def forward(self, q: Tensor, k: Tensor | None, v: Tensor | None, layer: Attention, batch: ForwardBatch) -> Tensor:
        """See Attention.forward."""
        sliding, window = batch.kv_pool.is_sliding(layer.kv_layer), layer.sliding_window
        if k is not None:
            batch.kv_slots(layer.kv_layer).write(k, v)
        if window not in self._plans:
            self._plans[window] = self.plan(batch, batch.req_to_token_swa if sliding else batch.req_to_token, window)
        return self.attend(q, *batch.kv_pool.get_kv(layer.kv_layer), self._plans[window], layer.scale).flatten(1)


class TorchNativeBackend(PlanningBackend[_Plan]):
    """The reference: torch's kernel over rectangles of queries by keys."""

    def plan(self, batch: ForwardBatch, table: Tensor, window: int | None) -> _Plan:
        """Reads lengths from the host's copies, so it never waits."""
        return _plan(batch, table, window)

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: _Plan, scale: float) -> Tensor:
        if plan.decode is not None and not plan.prefills:
            return _decode(q, k_cache, v_cache, plan.decode, scale)
        out = torch.empty_like(q)
        for item in plan.prefills:
            out[item.start : item.end] = _prefill(q[item.start : item.end], k_cache, v_cache, item, scale)
        if plan.decode is not None:
            out[plan.decode.first :] = _decode(q[plan.decode.first :], k_cache, v_cache, plan.decode, scale)
        return out


def _plan(batch: ForwardBatch, table: Tensor, window: int | None) -> _Plan:
    prefills = []
    start = 0
    for row in range(batch.num_extends):
        new, total = batch.extend_seq_lens_cpu[row], batch.seq_lens_cpu[row]
        for offset in range(0, new, QUERY_BLOCK):
            count = min(QUERY_BLOCK, new - offset)
            position = total - new + offset  # of the block's first query
            prefills.append(_plan_prefill(batch, table, row, start + offset, count, position, window))
        start += new
    if batch.drafts is not None:
        decode = _plan_drafts(batch, table, batch.drafts, window)
    else:
        decode = _plan_decode(batch, table, start, window) if batch.num_extends < batch.batch_size else None
    return _Plan(prefills, decode)


def _plan_prefill(
    batch: ForwardBatch, table: Tensor, row: int, start: int, count: int, position: int, window: int | None
) -> _Prefill:
    first_key = 0 if window is None else max(0, position - window + 1)
    end_key = position + count
    slots = table[batch.req_pool_indices[row : row + 1], first_key:end_key][0]  # [row] alone would wait for the device
    query = torch.arange(position, end_key, device=slots.device)[:, None]
    key = torch.arange(first_key, end_key, device=slots.device)
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    return _Prefill(start, start + count, slots, mask)


def _plan_decode(batch: ForwardBatch, table: Tensor, first: int, window: int | None) -> _Decode:
    """The last `width` positions of every row, right-aligned: column j of a row is position length - width + j."""
    lengths = batch.seq_lens_cpu[batch.num_extends :]
    width = max(lengths) if window is None else min(window, max(lengths))
    rows = batch.req_pool_indices[batch.num_extends :, None]
    position = batch.seq_lens[batch.num_extends :, None] - width + torch.arange(width, device=table.device)
    if min(lengths) >= width:
        return _Decode(first, len(lengths), 1, table[rows, position].flatten(), None)
    seen = position >= 0
    slots = table[rows, position.clamp(min=0)] * seen  # unseen keys read slot 0, the padding slot
    return _Decode(first, len(lengths), 1, slots.flatten(), seen[:, None, None])


def _plan_drafts(batch: ForwardBatch, table: Tensor, drafts: DraftRows, window: int | None) -> _Decode:
    """The last `width` table entries of every request, right-aligned: those of its nodes and before."""
    nodes = drafts.nodes
    ends = batch.seq_lens.view(-1, nodes)  # [B, nodes]; the root's is n + 1
    before = ends[:, :1] - 1  # n
    longest = max(batch.seq_lens_cpu)
    width = longest if window is None else min(window + nodes - 1, longest)
    entry = before + nodes - width + torch.arange(width, device=table.device)  # [B, width]
    node = entry - before  # the node whose slot it is, if not negative
    slots = table[batch.req_pool_indices[::nodes, None], entry.clamp(min=0)] * (entry >= 0)
    if drafts.paths is None:
        position, seen = entry[:, None], entry[:, None] < ends[:, :, None]
    else:
        on_path = torch.zeros(len(ends), nodes, nodes, dtype=torch.bool, device=table.device)
        on_path.scatter_(2, drafts.paths, True)
        drafted = node.clamp(min=0)[:, None].expand(-1, nodes, -1)
        seen = (node < 0)[:, None] | on_path.gather(2, drafted)
        depths = (ends - ends[:, :1])[:, None].expand(-1, nodes, -1)
        position = torch.where((node < 0)[:, None], entry[:, None], before[:, None] + depths.gather(2, drafted))
    seen = seen & (entry >= 0)[:, None]
    if window is not None:
        seen &= position >= ends[:, :, None] - window
    return _Decode(0, len(ends), nodes, slots.flatten(), seen[:, None])


def _decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, item: _Decode, scale: float) -> Tensor:
    """q [rows, Hq, D] -> [rows, Hq, D]. A request's queries, and the query heads of a KV head, stand where SDPA has
    query positions, so that neither K nor V is repeated."""
    kv_heads, dim = k_cache.shape[1:]
    group = q.shape[1] // kv_heads
    k = k_cache.index_select(0, item.slots).view(item.batch, -1, kv_heads, dim).transpose(1, 2)
    v = v_cache.index_select(0, item.slots).view(item.batch, -1, kv_heads, dim).transpose(1, 2)
    q = q.view(item.batch, item.queries, kv_heads, group, dim).transpose(1, 2).flatten(2, 3)
    mask = item.mask if item.queries == 1 else item.mask.repeat_interleave(group, 2)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.unflatten(2, (item.queries, group)).transpose(1, 2).reshape(-1, kv_heads * group, dim)


def _prefill(q: Tensor, k_cache: Tensor, v_cache: Tensor, item: _Prefill, scale: float) -> Tensor:
    """q [n, Hq, D] -> [n, Hq, D]; a KV head serves Hq / Hk query heads that follow each other."""
    group = q.shape[1] // k_cache.shape[1]
    k = k_cache.index_select(0, item.slots).repeat_interleave(group, dim=1).transpose(0, 1)
    v = v_cache.index_select(0, item.slots).repeat_interleave(group, dim=1).transpose(0, 1)
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], attn_mask=item.mask[None, None], scale=scale
    )
    return out[0].transpose(0, 1)
