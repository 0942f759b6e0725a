"""The norms of a model as modules: a learned weight and the op of ops/norms/rms_norm.py."""

from torch import Tensor, nn

from sglang.srt.layers.parameters import parameter
from sglang.srt.ops.norms.rms_norm import llama_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """Gemma 4's norm with a learned weight [dim]."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = parameter(dim)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LlamaRMSNorm(RMSNorm):
    """Llama's norm: the same formula, two roundings."""

    def forward(self, x: Tensor) -> Tensor:
        return llama_rms_norm(x, self.weight, self.eps)
