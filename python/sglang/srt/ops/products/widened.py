"""y = x W^T (+ b) in 16 bits on a CPU that has no instructions for it: in float32, part of the weight at a time.

Without them torch makes a product of 16 bits row by row, each as a product with a vector: 8 rows take 8 times as long
as one, and multiply a tenth of what the cores can. Here a block of the weight that stays in the caches is widened and
multiplied by the library's float32 product, so memory is read once and no copy is kept. Every term is exact in
float32, sums are float32, one rounding at the end: what the other way does too. Close op.

Floor: few rows read the weight once; many are bound by float32 multiply-adds. Measured:
benchmark/kernels/products.md, "16 bits on a CPU without instructions for them".
"""

import functools

import torch
from torch import Tensor

BLOCK = 1 << 20  # elements of a weight that are widened at a time, 4 MB
FEW_ROWS = 3  # up to so many torch's own way takes less than widening the weight


@functools.cache
def has_instructions(dtype: torch.dtype) -> bool:
    """Whether torch has a product of `dtype` here that takes many rows at a time: where oneDNN says so of the CPU."""
    match dtype:
        case torch.bfloat16:
            return torch.ops.mkldnn._is_mkldnn_bf16_supported()
        case torch.float16:
            return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


def needs_widening(x: Tensor) -> bool:
    """Whether products of x's dtype are faster in float32, from some number of rows on."""
    return x.is_cpu and not has_instructions(x.dtype)


def can_use(x: Tensor) -> bool:
    """Whether linear() here is the faster one for the rows x [T, K]."""
    return x.shape[0] > FEW_ROWS and needs_widening(x)  # len(x) of a tensor takes a microsecond


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K], weight [N, K], bias [N] -> [T, N], all of one dtype."""
    wide = x.float()
    blocks = weight.split(max(1, BLOCK // weight.shape[1]))
    if bias is None:
        return torch.cat([torch.mm(wide, block.float().T).to(x.dtype) for block in blocks], dim=1)
    biases = bias.split(len(blocks[0]))
    parts = zip(biases, blocks, strict=True)
    return torch.cat([torch.addmm(b.float(), wide, block.float().T).to(x.dtype) for b, block in parts], dim=1)


def bmm(x: Tensor, weights: Tensor) -> Tensor:
    """x [E, T, K], weights [E, K, N], small ones -> [E, T, N], all of one dtype."""
    return torch.bmm(x.float(), weights.float()).to(x.dtype)
