"""Gemma 4's router: its input (ops/moe/router_norm.py), a projection to expert logits, the choice (ops/moe/topk.py)."""

from torch import Tensor, nn

from sglang.srt.layers.linear import Linear
from sglang.srt.layers.parameters import parameter
from sglang.srt.ops.moe.router_norm import router_norm
from sglang.srt.ops.moe.topk import topk_softmax
from sglang.srt.ops.products.linear import float32_product


class Router(nn.Module):
    """`scale` [H] acts on the input; `per_expert_scale` [E] on the chosen weights. Their names are the checkpoint's.

    With `float32_logits` logits are not rounded to the model dtype, which no released model's own code does.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, eps: float, float32_logits: bool = False):
        super().__init__()
        self.top_k = top_k
        self.eps = eps
        self.root = hidden_size**-0.5
        self.float32_logits = float32_logits
        self.scale = parameter(hidden_size)
        self.per_expert_scale = parameter(num_experts)
        self.proj = Linear(hidden_size, num_experts)

    def logits(self, r: Tensor) -> Tensor:
        """r [T, H] from router_norm -> [T, E] in the model dtype or in float32."""
        return float32_product(r, self.proj.weight) if self.float32_logits else self.proj(r)

    def forward(self, h: Tensor, r: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """h [T, H], r = router_norm(h) where it is made already -> weights [T, k] float32, expert ids [T, k] int64."""
        if r is None:
            r = router_norm(h, self.scale, self.root, self.eps)
        return topk_softmax(self.logits(r), self.top_k, self.per_expert_scale)
