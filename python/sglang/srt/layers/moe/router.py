"""Gemma 4's router: a norm without weight, a learned scale, a projection to expert logits, the choice (topk.py).

r = norm(h) rounded; r * scale rounded; * H^(-1/2) rounded: three separate roundings, which decide near ties.
"""

from torch import Tensor, nn

from sglang.srt.layers.layernorm import rms_norm
from sglang.srt.layers.linear import Linear
from sglang.srt.layers.moe.topk import topk_softmax
from sglang.srt.layers.parameters import parameter


def router_input(h: Tensor, scale: Tensor, root: float, eps: float) -> Tensor:
    """h [T, H] raw residual stream, scale [H] in h's dtype, root = H^(-1/2) -> [T, H]. Exact op."""
    return rms_norm(h, None, eps) * scale * root


class Router(nn.Module):
    """`scale` [H] acts on the input; `per_expert_scale` [E] on the chosen weights. Their names are the checkpoint's."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, eps: float):
        super().__init__()
        self.top_k = top_k
        self.eps = eps
        self.root = hidden_size**-0.5
        self.scale = parameter(hidden_size)
        self.per_expert_scale = parameter(num_experts)
        self.proj = Linear(hidden_size, num_experts)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h [T, H] -> weights [T, k] float32, expert ids [T, k] int64."""
        logits = self.proj(router_input(h, self.scale, self.root, self.eps))
        return topk_softmax(logits, self.top_k, self.per_expert_scale)
