"""RMSNorm. y = x * (mean(x^2) + eps)^(-1/2) * w in float32, rounded once to x's dtype (transformers' order).

The weight multiplies as it is: not 1 + w. Two eager references differ in float32's last bit only: `rms_norm_reference`
is transformers' formula to the letter and what a CPU runs; `rms_norm_ordered` also fixes the order of the sum
(fixed_order.py) and takes the root by correctly rounded operations, which makes it the same on every device and for
every batch. Exact op: the kernel gives the bits of the latter. Floor: x read once, y written once.
"""

import torch
from torch import Tensor

from sglang.srt.ops.norms.fixed_order import halving_sum, halving_sum_kernel
from sglang.srt.ops.norms.sums import row_mean
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import next_power_of_2, runs_triton, tl, triton

MAX_WIDTH = 16384  # a row is held in the registers of one program


@triton.jit
def inverse_rms_kernel(squares, eps, WIDTH: tl.constexpr):
    """The float32 sum of WIDTH squares -> (mean + eps)^(-1/2)."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, WIDTH * 1.0) + eps))


@triton.jit
def normed_kernel(x, eps, WIDTH: tl.constexpr, LEVELS: tl.constexpr):
    """x [2**LEVELS] float32, zeros from WIDTH on -> x * (mean(x^2) + eps)^(-1/2), WIDTH numbers in the mean."""
    return x * inverse_rms_kernel(halving_sum_kernel(x * x, LEVELS), eps, WIDTH)


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    out,
    eps,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """One row of x [rows, WIDTH] a program."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    dims = tl.arange(0, 1 << LEVELS)
    inside = dims < WIDTH
    wait_for_previous(DEPENDENT)
    y = normed_kernel(tl.load(x + row + dims, mask=inside, other=0.0).to(tl.float32), eps, WIDTH, LEVELS)
    if HAS_WEIGHT:
        y = y * tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + dims, y.to(out.dtype.element_ty), mask=inside)


def warps_for(width: int) -> int:
    """Warps of a program that holds `width` numbers: as few as their registers allow, since a sum that crosses warps
    waits for all of them at each halving. Measured in benchmark/kernels/norms.md, "Norms and rotation"; the bits do not
    depend on it."""
    return max(1, next_power_of_2(width) // 4096)


def launch(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The kernel over x [..., D], contiguous; returns a new tensor."""
    out = torch.empty_like(x)
    width = x.shape[-1]
    if x.numel():
        _rms_norm_kernel[(x.numel() // width,)](
            x,
            weight,
            out,
            eps,
            WIDTH=width,
            LEVELS=(width - 1).bit_length(),
            HAS_WEIGHT=weight is not None,
            num_warps=warps_for(width),
            enable_fp_fusion=False,
            **launch_options(x.device),
        )
    return out


def unit_rows(x: Tensor, eps: float) -> Tensor:
    """x [..., D] float32 -> x * (mean(x^2) + eps)^(-1/2)."""
    return x * (row_mean(x.pow(2)) + eps).pow(-0.5)


def rms_norm_reference(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x [..., D], weight [D], or any shape that broadcasts to x ([heads, 1, D] is one vector a head), or None."""
    y = unit_rows(x.float(), eps)
    if weight is not None:
        y = y * weight  # promotes the weight to float32, as weight.float() would
    return y.to(x.dtype)


def rms_norm_ordered(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The same with a fixed order of the sum: the bits every kernel of this norm must give."""
    xf = x.float()
    squares = halving_sum(xf * xf)
    mean = squares / torch.full_like(squares, x.shape[-1])  # by a plain number, CUDA would take its reciprocal
    root = (mean + eps).double().sqrt().float()  # by way of float64: torch's float32 root on a CPU is not exact
    y = xf * (1.0 / root)
    if weight is not None:
        y = y * weight
    return y.to(x.dtype)


def can_use(x: Tensor, weight: Tensor | None) -> bool:
    """Whether the kernel takes this input; on a GPU it is the rule."""
    rows = x.is_contiguous() and x.shape[-1] <= MAX_WIDTH
    return runs_triton(x) and rows and (weight is None or weight.shape == x.shape[-1:])


def can_use_torch(x: Tensor, weight: Tensor | None) -> bool:
    """Whether torch's own norm has the reference's bits: on a CPU it is the same operations, started by one call."""
    return x.is_cpu and (weight is None or weight.shape == x.shape[-1:])


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """See rms_norm_reference; x is not changed."""
    if can_use(x, weight):
        return launch(x, weight, eps)
    if can_use_torch(x, weight):
        return torch.rms_norm(x, x.shape[-1:], weight, eps)
    return rms_norm_reference(x, weight, eps)


def llama_rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Llama's order of roundings: the normed x is rounded to x's dtype, then multiplied by w in that dtype.

    transformers uses rsqrt here, where Gemma 4 uses pow(-0.5).
    """
    xf = x.float()
    return weight * (xf * (row_mean(xf.pow(2)) + eps).rsqrt()).to(x.dtype)


def llama_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See llama_rms_norm_reference; x is not changed."""
    return llama_rms_norm_reference(x, weight, eps)
