"""Experts: the stacked weights of all experts of a layer, and their feed-forward (ops/moe/fused_experts.py)."""

import torch
from torch import Tensor, nn

from sglang.srt.distributed.tensor_parallel import SINGLE, TensorParallel
from sglang.srt.layers.parameters import parameter
from sglang.srt.ops.moe.fused_experts import fused_experts


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
