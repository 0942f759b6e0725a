"""The experts' feed-forward. y_e = down_e (gelu_tanh(gate_e x) * up_e x), out = sum over the chosen experts of w_e y_e.

The sum is transformers' default (grouped_mm): y_e is rounded to the model dtype, times the float32 weight, summed in
float32 over a token's experts in top-k order, one rounding at the end. Close op: GEMM summation order is free. On a
GPU fused_moe.py does it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sglang.srt.ops.invariance.mode import enabled
from sglang.srt.ops.moe import fused_moe
from sglang.srt.ops.moe.moe_sum import moe_sum
from sglang.srt.ops.norms.activation import gelu_tanh_and_mul_reference
from sglang.srt.ops.products import widened
from sglang.srt.ops.products.linear import linear


def fused_experts_reference(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """x [T, H], gate_up [E, 2I, H] (gate rows first), down [E, H, I], weights [T, k] float32, ids [T, k] -> [T, H].

    Pairs (token, expert slot) are sorted by expert, so that each expert is one slice of one grouped product. No
    host sync.
    """
    tokens, k = ids.shape
    expert_of, order = torch.sort(ids.flatten(), stable=True)
    experts = torch.arange(gate_up.shape[0], device=x.device)
    ends = torch.searchsorted(expert_of, experts, right=True, out_int32=True)  # [E], end of each expert's slice
    h = gelu_tanh_and_mul_reference(F.grouped_mm(x[order // k], gate_up.transpose(1, 2), offs=ends))
    y = F.grouped_mm(h, down.transpose(1, 2), offs=ends)
    in_order = torch.empty_like(y)
    in_order[order] = y
    return (in_order.view(tokens, k, x.shape[1]) * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)


def can_use_one(x: Tensor) -> bool:
    """Whether fused_experts_of_one is the faster one: on a CPU, for one token."""
    return x.is_cpu and x.shape[0] == 1


def fused_experts_of_one(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """The same for one token: the chosen experts' products with a vector, and no others'. Waits for the ids."""
    chosen = ids[0].tolist()
    h = gelu_tanh_and_mul_reference(torch.cat([linear(x, gate_up[expert]) for expert in chosen]))
    y = torch.cat([linear(row, down[expert]) for expert, row in zip(chosen, h.split(1), strict=True)])
    return (y * weights[0, :, None]).sum(dim=0, keepdim=True).to(x.dtype)


# Multiply-adds of the first product over all experts, up to which that takes less time than a product an expert: 16
# experts of 48 x 256 took 0.15 ms instead of 0.29 for one token, 0.36 instead of 0.84 for 8, and for 32 tokens 1.0
# instead of 1.6 with two threads and as long with one; in float32 nothing was gained with one thread.
ALL_EXPERTS_WORK = 1 << 24


def can_use_all(x: Tensor, gate_up: Tensor) -> bool:
    """Whether fused_experts_of_all is the faster one: on a CPU, in 16 bits, for few tokens and small experts."""
    return x.device.type == "cpu" and x.dtype.itemsize == 2 and len(x) * gate_up.numel() <= ALL_EXPERTS_WORK


def fused_experts_of_all(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """The same, for few tokens: two products give every token the output of every expert, of which the chosen are kept.
    On a CPU a grouped product is one for each expert, and starting those is most of the time."""
    experts, rows, hidden = gate_up.shape
    tokens, k = ids.shape
    h = linear(x, gate_up.view(experts * rows, hidden)).view(tokens * experts, rows)
    h = gelu_tanh_and_mul_reference(h).view(tokens, experts, rows // 2).transpose(0, 1)
    bmm = widened.bmm if widened.needs_widening(x) else torch.bmm
    y = bmm(h, down.transpose(1, 2)).transpose(0, 1)  # [T, E, H]
    chosen = y.gather(1, ids.unsqueeze(-1).expand(tokens, k, hidden))
    return (chosen * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)


def fused_experts_by_row(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """The same on a CPU, an expert at a time, through linear(): in batch-invariant mode its products keep rows apart,
    outside it they may be widened ones. The sum takes a token's experts one by one, where torch's reduction picks an
    order. Waits for the ids."""
    tokens, k = ids.shape
    order = torch.sort(ids.flatten(), stable=True).indices
    counts = torch.bincount(ids.flatten(), minlength=len(gate_up)).tolist()
    chosen = [expert for expert, count in enumerate(counts) if count]
    rows = x[order // k].split([counts[expert] for expert in chosen])
    h = torch.cat([linear(part, gate_up[expert]) for expert, part in zip(chosen, rows, strict=True)])
    parts = gelu_tanh_and_mul_reference(h).split([len(part) for part in rows])
    y = torch.cat([linear(part, down[expert]) for expert, part in zip(chosen, parts, strict=True)])
    in_order = torch.empty_like(y)
    in_order[order] = y
    return moe_sum(in_order.view(tokens, k, -1), weights)


def fused_experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """See fused_experts_reference."""
    if fused_moe.can_use(x, gate_up, down, weights, ids):
        return fused_moe.fused_experts_triton(x, gate_up, down, weights, ids)
    if enabled():
        return fused_experts_by_row(x, gate_up, down, weights, ids)
    if can_use_one(x):
        return fused_experts_of_one(x, gate_up, down, weights, ids)
    if can_use_all(x, gate_up):
        return fused_experts_of_all(x, gate_up, down, weights, ids)
    if widened.needs_widening(x):
        return fused_experts_by_row(x, gate_up, down, weights, ids)
    return fused_experts_reference(x, gate_up, down, weights, ids)
