"""Gemma 4's router: its input (router_norm.py), a projection to expert logits, the choice (topk.py)."""

from torch import Tensor, nn

from sglang.srt.layers.linear import Linear
from sglang.srt.layers.moe.router_norm import router_norm
from sglang.srt.layers.moe.topk import topk_softmax
from sglang.srt.layers.parameters import parameter


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
        logits = self.proj(router_norm(h, self.scale, self.root, self.eps))
        return topk_softmax(logits, self.top_k, self.per_expert_scale)
