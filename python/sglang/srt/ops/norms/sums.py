"""Means over the last dimension, for float32 rows.

torch's sums on a CPU take a row's numbers in an order that follows from the row's length alone. On CUDA it follows from
the number of rows too, so there the mode has an order of its own.
"""

from torch import Tensor

from sglang.srt.ops.invariance.mode import enabled
from sglang.srt.ops.norms.fixed_order import halving_sum


def row_mean(x: Tensor) -> Tensor:
    """x [..., N] -> [..., 1]."""
    return halving_sum(x) / x.shape[-1] if enabled() and x.is_cuda else x.mean(dim=-1, keepdim=True)
