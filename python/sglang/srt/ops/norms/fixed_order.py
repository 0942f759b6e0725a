"""Sums of float32 numbers in one fixed order, in torch and in Triton, so that both give the same bits.

torch's own CUDA reductions choose their order by the number of rows, so a row's sum depends on its batch; this one
depends on the row alone. The order: pad with zeros to a power of two, add the second half to the first, repeat.
"""

import torch
from torch import Tensor

from sglang.srt.utils.triton_runtime import tl, triton


def halving_sum(x: Tensor) -> Tensor:
    """x [..., N] -> [..., 1]."""
    missing = (1 << (x.shape[-1] - 1).bit_length()) - x.shape[-1]
    if missing:
        x = torch.nn.functional.pad(x, (0, missing))
    while x.shape[-1] > 1:
        first, second = x.chunk(2, dim=-1)
        x = first + second
    return x


@triton.jit
def halving_sum_kernel(x, LEVELS: tl.constexpr):
    """x [2**LEVELS] -> scalar. A sum over two numbers has one order only, whatever layout the compiler picks.

    Launch with enable_fp_fusion=False: x is often a product, which must not be fused into the first additions.
    """
    for _ in tl.static_range(LEVELS):
        x = tl.sum(tl.reshape(x, (2, x.shape[0] // 2)), axis=0)
    return tl.sum(x, axis=0)
