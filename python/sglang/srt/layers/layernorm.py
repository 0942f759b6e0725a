"""RMSNorm. y = x * (mean(x^2) + eps)^(-1/2) * w in float32, rounded once to x's dtype (transformers' order).

The weight multiplies as it is: not 1 + w. Exact op: a kernel must give the same bits.
"""

from torch import Tensor, nn

from sglang.srt.layers.parameters import parameter


def rms_norm_reference(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x [..., D], weight [D], or any shape that broadcasts to x ([heads, 1, D] is one vector a head), or None."""
    xf = x.float()
    y = xf * (xf.pow(2).mean(-1, keepdim=True) + eps).pow(-0.5)
    if weight is not None:
        y = y * weight  # promotes the weight to float32, as weight.float() would
    return y.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """See rms_norm_reference; x is not changed."""
    return rms_norm_reference(x, weight, eps)


def llama_rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Llama's order of roundings: the normed x is rounded to x's dtype, then multiplied by w in that dtype.

    transformers uses rsqrt here, where Gemma 4 uses pow(-0.5); the two differ in the last float32 bit.
    """
    xf = x.float()
    return weight * (xf * (xf.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def llama_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See llama_rms_norm_reference; x is not changed."""
    return llama_rms_norm_reference(x, weight, eps)


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
