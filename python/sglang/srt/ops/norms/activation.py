"""Gated activations over the fused [gate, up] rows. Exact ops: act(gate) is rounded, then multiplied by up, rounded.

The kernel repeats torch's CUDA kernels (ActivationGeluKernel.cu, ActivationSiluKernel.cu): float32, the same
association, CUDA's own tanhf and expf. It reads two values and writes one; memory is the floor.
"""

import torch
from torch import Tensor

from sglang.srt.ops.invariance.row_room import empty_rows
from sglang.srt.ops.norms import elementwise
from sglang.srt.utils.dependent_launch import launch_options, wait_for_previous
from sglang.srt.utils.triton_runtime import HAS_TRITON, INTERPRETED, cdiv, libdevice, runs_triton, tl, triton

# Activations whose kernel gives torch's bits for every bfloat16 gate on the GPU (test_activation.py). One that does
# not must not be named here: then the reference runs.
EXACT_KERNELS = ("gelu_tanh", "silu")
BLOCK = 1024  # elements of the result one program makes
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

cuda_math = libdevice() if HAS_TRITON else None
CUDA_MATH = not INTERPRETED  # the interpreter has only tl.exp, whose bits are not CUDA's


@triton.jit
def gelu_tanh(x, CUDA_MATH: tl.constexpr):
    """x float32 -> gelu(x), tanh form, float32. The one sum of a product is a fused multiply-add, as nvcc makes it."""
    inner = 0.7978845608028654 * tl.fma(x * x * x, 0.044715, x)  # sqrt(2 / pi)
    if CUDA_MATH:
        tanh = cuda_math.tanh(inner)
    else:
        tanh = 1.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0)
    return 0.5 * x * (1.0 + tanh)


@triton.jit
def silu(x, CUDA_MATH: tl.constexpr):
    """x float32 -> x / (1 + exp(-x)), float32."""
    if CUDA_MATH:
        exp = cuda_math.exp(-x)
    else:
        exp = tl.exp(-x)
    return tl.div_rn(x, 1.0 + exp)  # `/` would be CUDA's approximate division


@triton.jit
def gate_with(gate, up, ACTIVATION: tl.constexpr, CUDA_MATH: tl.constexpr):
    """gate, up in one dtype -> act(gate) rounded to it, times up, rounded to it."""
    if ACTIVATION == "gelu_tanh":
        act = gelu_tanh(gate.to(tl.float32), CUDA_MATH)
    else:
        act = silu(gate.to(tl.float32), CUDA_MATH)
    return (act.to(gate.dtype).to(tl.float32) * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def _gated_kernel(
    gate_up_ptr,  # [rows, 2 * width]
    out_ptr,  # [rows, width]
    elements,  # rows * width
    width,
    ACTIVATION: tl.constexpr,
    CUDA_MATH: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_previous(DEPENDENT)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gate_at = gate_up_ptr + at + at // width * width  # row * 2 width + column = at + row * width
    gate = tl.load(gate_at, mask=at < elements)
    up = tl.load(gate_at + width, mask=at < elements)
    tl.store(out_ptr + at, gate_with(gate, up, ACTIVATION, CUDA_MATH), mask=at < elements)


def _launch(gate_up: Tensor, activation: str) -> Tensor:
    width = gate_up.shape[-1] // 2
    out = empty_rows(*gate_up.shape[:-1], width, like=gate_up)
    if out.numel():
        grid = (cdiv(out.numel(), BLOCK),)
        options = launch_options(out.device)
        _gated_kernel[grid](gate_up, out, out.numel(), width, activation, CUDA_MATH, BLOCK, **options)
    return out


def can_use(gate_up: Tensor, activation: str) -> bool:
    return (
        runs_triton(gate_up)
        and activation in EXACT_KERNELS
        and gate_up.dtype in DTYPES
        and gate_up.shape[-1] % 2 == 0
        and gate_up.is_contiguous()
        and gate_up.numel() < 2**31  # the kernel's offsets are 32 bits wide
    )


def gelu_tanh_and_mul_reference(gate_up: Tensor) -> Tensor:
    """gelu(gate, tanh form) * up; gate_up [..., 2I] with the gate half first -> [..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return elementwise.gelu_tanh(gate) * up


def gelu_tanh_and_mul(gate_up: Tensor) -> Tensor:
    """See gelu_tanh_and_mul_reference."""
    return _launch(gate_up, "gelu_tanh") if can_use(gate_up, "gelu_tanh") else gelu_tanh_and_mul_reference(gate_up)


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """silu(gate) * up; gate_up [..., 2I] with the gate half first -> [..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return elementwise.silu(gate) * up


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See silu_and_mul_reference."""
    return _launch(gate_up, "silu") if can_use(gate_up, "silu") else silu_and_mul_reference(gate_up)
