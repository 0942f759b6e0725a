"""Linear layers and how their weights are laid out. They know nothing of files; the loader asks for `parts`.

A layer that fuses several checkpoint tensors names them, so that each is copied into its slice of the one parameter.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglang.srt.layers.parameters import parameter


class Linear(nn.Module):
    """y = x W^T (+ b); weight [out, in]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__()
        self.weight = parameter(out_features, in_features)
        self.bias = parameter(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class FusedLinear(nn.Module):
    """Several linear layers of one input as one product: `outputs` maps each checkpoint name to its rows, in order.

    Returns the results side by side, [T, sum of rows].
    """

    def __init__(self, in_features: int, outputs: dict[str, int], bias: bool = False):
        super().__init__()
        self.outputs = outputs
        rows = sum(outputs.values())
        self.weight = parameter(rows, in_features)
        self.bias = parameter(rows) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def parts(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(checkpoint name, its rows as a view) of the weight or the bias."""
        return zip(self.outputs, torch.split(tensor, list(self.outputs.values())), strict=True)


class QKVLinear(FusedLinear):
    """q_proj, k_proj and v_proj in one; with `has_v` off only q and k (V is made of the raw K)."""

    def __init__(
        self, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool = False, has_v: bool = True
    ):
        outputs = {"q_proj": num_heads * head_dim, "k_proj": num_kv_heads * head_dim}
        if has_v:
            outputs["v_proj"] = num_kv_heads * head_dim
        super().__init__(hidden_size, outputs, bias)


class GateUpLinear(FusedLinear):
    """gate_proj and up_proj in one."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False):
        super().__init__(hidden_size, {"gate_proj": intermediate_size, "up_proj": intermediate_size}, bias)
