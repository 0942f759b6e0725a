"""The activation kernel: torch's own bits on a GPU for every bfloat16 gate; in the interpreter, which has no CUDA math,
within one rounding. Shapes, strides and dtypes that it must leave to the reference.
"""

import sys

from sglang.test.triton_testing import DEVICE

# isort: split
import pytest
import torch

from sglang.srt.ops.norms import activation
from sglang.srt.ops.norms.activation import (
    can_use,
    gelu_tanh_and_mul,
    gelu_tanh_and_mul_reference,
    silu_and_mul,
    silu_and_mul_reference,
)
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci

register_cpu_ci(est_time=6, suite="base-a-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's, of huge gates

OPS = {
    "gelu_tanh": (gelu_tanh_and_mul, gelu_tanh_and_mul_reference),
    "silu": (silu_and_mul, silu_and_mul_reference),
}


def assert_same(got, want, gate, up):
    """Equal on a GPU. Interpreted: act(gate) and the product may round apart, and 1 + tanh is known to 2^-23."""
    assert got.dtype == want.dtype and got.shape == want.shape
    if DEVICE == "cuda":
        assert torch.equal(got, want)
        return
    limits = torch.finfo(want.dtype)
    got, want, gate, up = (t.double() for t in (got, want, gate, up))
    assert (got.isinf() == want.isinf()).all()
    off = torch.where(want.isinf(), 0.0, (got - want).abs())
    least = limits.smallest_normal * limits.eps  # step between denormals
    assert (off <= 2 * limits.eps * want.abs() + 2**-22 * (gate * up).abs() + least * (1 + up.abs())).all()


@pytest.mark.parametrize("name", OPS)
def test_every_finite_bfloat16_gate(name):
    op, reference = OPS[name]
    torch.manual_seed(0)
    gate = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    gate = gate[gate.isfinite()]
    gate = gate.repeat(16 if DEVICE == "cuda" else 1)
    up = torch.randn(len(gate)).to(torch.bfloat16)
    gate_up = torch.stack([gate, up], dim=1).to(DEVICE)  # rows of one gate and one up
    gate_up_rows = torch.cat([gate, up]).to(DEVICE)[None]  # one row
    assert can_use(gate_up, name) and can_use(gate_up_rows, name)
    assert_same(op(gate_up)[:, 0], reference(gate_up)[:, 0], gate.to(DEVICE), up.to(DEVICE))
    assert_same(op(gate_up_rows)[0], reference(gate_up_rows)[0], gate.to(DEVICE), up.to(DEVICE))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1408), (300, 96), (5, 7, 26), (2112,)])
def test_shapes_and_dtypes_write_every_element(name, dtype, shape, monkeypatch):
    """The result's buffer holds NaN before, so an element that was not written shows."""
    op, reference = OPS[name]
    torch.manual_seed(1)
    gate_up = (torch.randn(shape) * 4).to(dtype).to(DEVICE)
    want = reference(gate_up)
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))
    assert can_use(gate_up, name)
    assert_same(op(gate_up), want, *gate_up.chunk(2, -1))


@pytest.mark.parametrize("name", OPS)
def test_no_rows(name):
    assert OPS[name][0](torch.empty(0, 64, device=DEVICE)).shape == (0, 32)


@pytest.mark.parametrize("name", OPS)
def test_what_the_kernel_cannot_do_goes_to_the_reference(name, monkeypatch):
    op, reference = OPS[name]
    strided = torch.randn(4, 64, device=DEVICE)[:, :32]
    double = torch.randn(4, 64, device=DEVICE, dtype=torch.float64)
    for gate_up in (strided, double):
        assert not can_use(gate_up, name)
        assert torch.equal(op(gate_up), reference(gate_up))
    plain = torch.randn(4, 64, device=DEVICE)
    assert can_use(plain, name)
    monkeypatch.setattr(activation, "EXACT_KERNELS", ())
    assert not can_use(plain, name)
    assert torch.equal(op(plain), reference(plain))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
