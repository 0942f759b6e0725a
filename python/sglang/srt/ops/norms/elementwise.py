"""Activations whose every element has the same bits wherever it stands.

On a CPU torch's gelu and silu take one routine for whole vector registers and another for the few elements left at the
end of a thread's share, and the two differ in the last bit: an element's bits depend on how many rows there are. Here
they are made of operations that IEEE 754 rounds in one way only, and of tanh and exp, whose tails take the routine of
the rest. CUDA computes each element by itself.
"""

import math

from torch import Tensor
from torch.nn import functional as F

from sglang.srt.ops.invariance.mode import enabled

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def gelu_tanh(x: Tensor) -> Tensor:
    """gelu(x), tanh form, any shape; computed in float32 and rounded once to x's dtype."""
    if not enabled() or x.is_cuda:
        return F.gelu(x, approximate="tanh")
    f = x.float()
    inner = (f * f).mul_(f).mul_(0.044715).add_(f).mul_(SQRT_2_OVER_PI)
    return inner.tanh_().add_(1.0).mul_(f * 0.5).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), any shape; computed in float32 and rounded once to x's dtype."""
    if not enabled() or x.is_cuda:
        return F.silu(x)
    f = x.float()
    return (f / f.neg().exp_().add_(1.0)).to(x.dtype)
