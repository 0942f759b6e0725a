"""The kernels of RMSNorm, of q, k and v's norms and of the rotation give the bits of their eager references, on every
input and by every launch. In the interpreter without a GPU."""

import sys

import sglang.test.triton_testing

# isort: split

import pytest
import torch

from sglang.srt.ops.norms import qkv_rms_norm, rope
from sglang.srt.ops.norms import rms_norm as rms_norm_ops
from sglang.srt.ops.norms.qkv_rms_norm import qkv_rms_norm_reference
from sglang.srt.ops.norms.rms_norm import rms_norm, rms_norm_ordered, rms_norm_reference
from sglang.srt.ops.norms.rope import apply_rope, apply_rope_reference
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.numerics import huge, normal, signed_zeros, subnormals, wide_range

register_cpu_ci(est_time=6, suite="base-a-test-cpu")
register_cuda_ci(est_time=30, stage="base-b", runner_config="1-gpu-large")

DEVICE = sglang.test.triton_testing.DEVICE
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EPS = 1e-6


MAKERS = [normal, signed_zeros, subnormals, huge, wide_range]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2816), (7, 64), (2, 3, 256), (2, 96), (0, 64)])
def test_rms_norm(shape, dtype, make):
    x, weight = make(shape, dtype), normal(shape[-1:], dtype)
    assert rms_norm_ops.can_use(x, weight)
    assert torch.equal(rms_norm(x, weight, EPS), rms_norm_ordered(x, weight, EPS))
    assert torch.equal(rms_norm(x, None, EPS), rms_norm_ordered(x, None, EPS))


def test_the_two_references_differ_in_float32s_last_bits_only():
    x, weight = wide_range((50, 2816), torch.float32), normal((2816,), torch.float32)
    close = {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(rms_norm_ordered(x, weight, EPS), rms_norm_reference(x, weight, EPS), **close)


def test_a_row_does_not_depend_on_the_others():
    x = wide_range((9, 2816), torch.bfloat16)
    assert torch.equal(rms_norm(x, None, EPS)[4:5], rms_norm(x[4:5].contiguous(), None, EPS))


def qkv_case(tokens: int, width: int, parts: str, dtype, make, heads: int = 4, kv_heads: int = 2):
    """A view of a wider buffer, the weights, and (num_heads, num_kv_heads) for rows of q k v, of q k, or of q."""
    kv_heads = 0 if parts == "q" else kv_heads
    row = (heads + kv_heads * (len(parts) - 1)) * width
    buffer = make((tokens, row + 64), dtype)
    weights = [normal((width,), dtype) for _ in range(2)]
    return buffer[:, :row], weights[0], weights[1] if kv_heads else None, heads, kv_heads


TOKENS = [1, 2, 255, 256, 257, 4096] if DEVICE == "cuda" else [0, 1, 2, 5]


@pytest.mark.parametrize("parts", ["qkv", "qk", "q"])
@pytest.mark.parametrize("width", [256, 512])
@pytest.mark.parametrize("tokens", TOKENS)
def test_both_launches_equal_the_reference(tokens, width, parts):
    qkv, *rest = qkv_case(tokens, width, parts, torch.bfloat16, wide_range)
    assert qkv_rms_norm.can_use(qkv, rest[0])
    want = qkv_rms_norm_reference(qkv.clone(), *rest, EPS)
    for per_head in (True, False):
        room = torch.full((tokens, qkv.shape[1] + 32), torch.nan, dtype=qkv.dtype, device=DEVICE)  # rows with gaps
        ours = room[:, : qkv.shape[1]].copy_(qkv)
        got = qkv_rms_norm.launch(ours, *rest, EPS, per_head=per_head)
        for mine, theirs in zip(got, want, strict=True):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)
        assert room[:, qkv.shape[1] :].isnan().all()  # nothing written beside the row


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_qkv_norm_on_nasty_inputs(dtype, make):
    qkv, *rest = qkv_case(2, 64, "qkv", dtype, make, heads=3, kv_heads=1)
    want = qkv_rms_norm_reference(qkv.clone(), *rest, EPS)
    got = qkv_rms_norm.qkv_rms_norm(qkv.clone(), *rest, EPS)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "width"), [(3, 256), (2, 96), (1, 512)])
def test_rope(heads, width, dtype, make):
    x = make((4, heads + 2, width), dtype)[:, 1:-1]  # a view, as q and k are of the qkv buffer
    angles = torch.rand(4, width // 2, device=DEVICE) * 7
    cos, sin = (torch.cat((f(angles), f(angles)), dim=-1).to(dtype) for f in (torch.cos, torch.sin))
    assert rope.can_use_rope(x, cos)
    got = apply_rope(x, cos, sin)
    assert got.is_contiguous() and torch.equal(got, apply_rope_reference(x, cos, sin))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
