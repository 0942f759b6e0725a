"""The experts' feed-forward. y_e = down_e (gelu_tanh(gate_e x) * up_e x), out = sum over the chosen experts of w_e y_e.

The sum is transformers' default (grouped_mm): y_e is rounded to the model dtype, times the float32 weight, summed in
float32 over the slots in top-k order, one rounding at the end. Close op: GEMM summation order is free.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglang.srt.batch_invariant_ops import enabled, linear
from sglang.srt.distributed.tensor_parallel import SINGLE, TensorParallel
from sglang.srt.layers.activation import gelu_tanh_and_mul_reference
from sglang.srt.layers.moe.fused_moe_triton import fused_moe
from sglang.srt.layers.moe.fused_moe_triton.moe_sum import moe_sum
from sglang.srt.layers.parameters import parameter


def fused_experts_reference(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """x [T, H], gate_up [E, 2I, H] (gate rows first), down [E, H, I], weights [T, k] float32, ids [T, k] -> [T, H].

    Pairs (token, slot) are sorted by expert, so that each expert is one slice of one grouped product. No host sync.
    """
    tokens, k = ids.shape
    expert_of, order = torch.sort(ids.flatten(), stable=True)
    experts = torch.arange(gate_up.shape[0], device=x.device)
    ends = torch.searchsorted(expert_of, experts, right=True, out_int32=True)  # [E], end of each expert's slice
    h = gelu_tanh_and_mul_reference(F.grouped_mm(x[order // k], gate_up.transpose(1, 2), offs=ends))
    y = F.grouped_mm(h, down.transpose(1, 2), offs=ends)
    by_slot = torch.empty_like(y)
    by_slot[order] = y
    return (by_slot.view(tokens, k, -1) * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)


def fused_experts_by_row(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """The same for batch-invariant mode on a CPU: an expert at a time, through products that keep rows apart. The sum
    takes the slots one by one, where torch's reduction picks an order. Waits for the ids."""
    tokens, k = ids.shape
    order = torch.sort(ids.flatten(), stable=True).indices
    counts = torch.bincount(ids.flatten(), minlength=len(gate_up)).tolist()
    chosen = [expert for expert, count in enumerate(counts) if count]
    rows = x[order // k].split([counts[expert] for expert in chosen])
    h = torch.cat([linear(part, gate_up[expert]) for expert, part in zip(chosen, rows, strict=True)])
    parts = gelu_tanh_and_mul_reference(h).split([len(part) for part in rows])
    y = torch.cat([linear(part, down[expert]) for expert, part in zip(chosen, parts, strict=True)])
    by_slot = torch.empty_like(y)
    by_slot[order] = y
    return moe_sum(by_slot.view(tokens, k, -1), weights)


def fused_experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """See fused_experts_reference."""
    if fused_moe.can_use(x, gate_up, down, weights, ids):
        return fused_moe.fused_experts_triton(x, gate_up, down, weights, ids)
    if enabled():
        return fused_experts_by_row(x, gate_up, down, weights, ids)
    return fused_experts_reference(x, gate_up, down, weights, ids)


class Experts(nn.Module):
    """All experts' weights as the checkpoint stacks them. Every rank has a part of each expert's intermediate size."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, tp: TensorParallel = SINGLE):
        super().__init__()
        down = tp.share(intermediate_size, "the experts' intermediate size")
        intermediate_size, total = down.size, intermediate_size
        unit = 16 // torch.get_default_dtype().itemsize
        if hidden_size % unit or intermediate_size % unit:
            raise ValueError(
                f"experts of {hidden_size} x {intermediate_size} a rank: the grouped product needs rows of whole "
                f"16 bytes, so both sizes must be multiples of {unit}"
            )
        self.gate_up_proj = parameter(
            num_experts, tp.share_of_each_half(total, "the experts' intermediate size"), hidden_size
        )
        self.down_proj = parameter(num_experts, hidden_size, down)

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, H], weights and ids [T, k] from the router -> this rank's part of the sum, [T, H]."""
        return fused_experts(x, self.gate_up_proj, self.down_proj, weights, ids)
