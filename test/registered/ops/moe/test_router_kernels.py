"""The router's kernels give the bits of their references: on nasty rows, on random ones, and on a GPU over ten million.
In the interpreter without a GPU. No tolerance anywhere."""

import sys

import sglang.test.triton_testing

# isort: split

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sglang.srt.ops.moe import router_norm, topk
from sglang.srt.ops.moe.router_norm import router_norm_reference
from sglang.srt.ops.moe.topk import topk_softmax, topk_softmax_reference
from sglang.srt.ops.products.linear import float32_product
from sglang.test import numerics
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.numerics import wide_range

register_cpu_ci(est_time=10, suite="base-a-test-cpu")
register_cuda_ci(est_time=90, stage="base-b", runner_config="1-gpu-large")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of NaN and inf

DEVICE = sglang.test.triton_testing.DEVICE
GPU = DEVICE == "cuda"
ROWS = 20_000 if GPU else 3
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [(1, 1), (2, 1), (13, 5), (16, 4), (128, 8), (1000, 16)]  # experts, k
EPS = 1e-6


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def normal(rows, experts, k, dtype):
    return (torch.randn(rows, experts, device=DEVICE) * 3).to(dtype)


def all_ties(rows, experts, k, dtype):
    return torch.full((rows, experts), 1.7, device=DEVICE, dtype=dtype)


def ties_at_the_cut(rows, experts, k, dtype):
    """k - 1 clear choices, then half of the others are equal."""
    logits = normal(rows, experts, k, dtype).clamp(max=5)
    tied = torch.rand(rows, experts, device=DEVICE) < 0.5
    logits[tied] = 6
    best = torch.rand(rows, experts, device=DEVICE).argsort(dim=1)[:, : k - 1]
    return logits.scatter(1, best, (7 + torch.rand(rows, k - 1, device=DEVICE)).to(dtype))


def signed_zeros(rows, experts, k, dtype):
    return normal(rows, experts, k, dtype).sign() * 0.0


def one_ulp_apart(rows, experts, k, dtype):
    logits = all_ties(rows, experts, k, dtype)
    return torch.where(torch.rand(rows, experts, device=DEVICE) < 0.5, logits, logits * (1 + torch.finfo(dtype).eps))


def spread(rows, experts, k, dtype):
    return (torch.randn(rows, experts, device=DEVICE) * 1e4).to(dtype)


def subnormals(rows, experts, k, dtype):
    return (torch.randn(rows, experts, device=DEVICE) * torch.finfo(dtype).smallest_normal).to(dtype)


def one_huge(rows, experts, k, dtype):
    """All other probabilities are 0 and tie."""
    logits = normal(rows, experts, k, dtype)
    at = torch.randint(experts, (rows, 1), device=DEVICE)
    return logits.scatter(1, at, torch.finfo(dtype).max)


def underflow(rows, experts, k, dtype):
    """Probabilities on both sides of the least normal and the least subnormal float32."""
    logits = -80 - 30 * torch.rand(rows, experts, device=DEVICE)
    logits[:, -1] = 0
    return logits.to(dtype)


def without_softmax(rows, experts, k, dtype):
    """NaN, +inf, both, or -inf alone; the last row is fine."""
    logits = normal(rows, experts, k, dtype)
    at = torch.randint(experts, (rows, 2), device=DEVICE)
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf], device=DEVICE, dtype=dtype)
    logits = logits.scatter(1, at, bad[torch.randint(3, (rows, 2), device=DEVICE)])
    logits[0] = -torch.inf
    logits[-1] = 1.0
    return logits


def minus_infinities(rows, experts, k, dtype):
    """Experts that are ruled out, most of them."""
    logits = normal(rows, experts, k, dtype)
    out = torch.rand(rows, experts, device=DEVICE) < 0.9
    out[:, experts // 2] = False
    return logits.masked_fill(out, -torch.inf)


MAKERS = [
    normal,
    all_ties,
    ties_at_the_cut,
    signed_zeros,
    one_ulp_apart,
    spread,
    subnormals,
    one_huge,
    underflow,
    without_softmax,
    minus_infinities,
]


def same(got: Tensor, want: Tensor) -> bool:
    """The same bits; NaN, whose bits mean nothing, in the same places."""
    nan = want.isnan()
    return got.dtype == want.dtype and torch.equal(got.isnan(), nan) and torch.equal(got[~nan], want[~nan])


def check_topk(logits: Tensor, k: int, scale: Tensor) -> None:
    assert topk.can_use(logits, k, scale)  # else the reference is compared with itself
    weights, ids = topk_softmax(logits, k, scale)
    want_weights, want_ids = topk_softmax_reference(logits, k, scale)
    assert ids.dtype == torch.int64 and torch.equal(ids, want_ids)
    assert same(weights, want_weights)
    assert ids.numel() == 0 or (0 <= ids.min() and ids.max() < logits.shape[1])


def scales(experts: int, dtype: torch.dtype) -> Tensor:
    return (torch.rand(experts, device=DEVICE) + 0.5).to(dtype)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "k"), SIZES)
def test_topk_softmax(experts, k, dtype, make):
    check_topk(make(ROWS, experts, k, dtype), k, scales(experts, dtype))


def test_topk_softmax_of_rows_with_gaps_and_of_none():
    wide = normal(4, 40, 4, torch.bfloat16)
    check_topk(wide[:, 3:35], 4, scales(32, torch.bfloat16))
    check_topk(wide[:0], 4, scales(40, torch.float32))


def test_what_the_topk_kernel_cannot_do_goes_to_the_reference(monkeypatch):
    fine = normal(2, 32, 4, torch.float32)
    scale = scales(32, torch.float32)
    cases = [
        (normal(2, 1025, 4, torch.float32), 4, scales(1025, torch.float32)),
        (fine, 17, scale),
        (fine.double(), 4, scale),
        (normal(32, 2, 1, torch.float32).T, 4, scale),
        (fine, 4, scales(64, torch.float32)[::2]),
    ]
    for logits, k, some_scale in cases:
        assert not topk.can_use(logits, k, some_scale)
        assert same(topk_softmax(logits, k, some_scale)[0], topk_softmax_reference(logits, k, some_scale)[0])
    assert topk.can_use(fine, 16, scale)
    monkeypatch.setattr(topk, "DISABLED", True)
    assert not topk.can_use(fine, 16, scale)


FINITE = st.floats(width=16, allow_nan=False, allow_infinity=False)
# few values, so that they tie; any; and those that no softmax takes
LOGITS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0078125, -90.0, -104.0, 65504.0]),
    FINITE,
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
)


@settings(max_examples=2000 if GPU else 60, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from([1, 2, 5, 16, 40]))  # few: each is a compilation
def test_topk_softmax_of_anything(data, dtype, experts):
    row = data.draw(st.lists(LOGITS, min_size=experts, max_size=experts))
    k = data.draw(st.sampled_from([k for k in (1, 3, 8, 16) if k <= experts]))
    logits = torch.tensor([row], device=DEVICE).to(dtype)
    check_topk(logits, k, torch.linspace(0.25, 2.0, experts, device=DEVICE).to(dtype))


def not_finite(shape, dtype):
    x = wide_range(shape, dtype)
    x[0, 0], x[1, -1] = torch.nan, torch.inf
    return x


def check_norm(h: Tensor, scale: Tensor) -> None:
    root = h.shape[1] ** -0.5
    assert router_norm.can_use(h, scale)
    assert same(router_norm.router_norm(h, scale, root, EPS), router_norm_reference(h, scale, root, EPS))


@pytest.mark.parametrize("make", [wide_range, numerics.signed_zeros, numerics.subnormals, numerics.huge, not_finite])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 96, 256, 2816])
def test_router_norm(width, dtype, make):
    check_norm(make((ROWS, width), dtype), (torch.rand(width, device=DEVICE) + 0.5).to(dtype))


def test_router_norm_of_no_rows():
    check_norm(torch.empty(0, 64, device=DEVICE), torch.ones(64, device=DEVICE))


def test_router_norm_without_its_kernel(monkeypatch):
    """Switched off it still gives these bits, by the norm's own kernel; rows with gaps take the reference."""
    h, scale = wide_range((3, 512), torch.bfloat16), (torch.rand(512, device=DEVICE) + 0.5).bfloat16()
    gaps = wide_range((3, 1024), torch.bfloat16)[:, ::2]
    assert not router_norm.can_use(gaps, scale)
    monkeypatch.setattr(router_norm, "DISABLED", True)
    assert not router_norm.can_use(h, scale)
    for x in (h, gaps):
        want = router_norm_reference(x, scale, 512**-0.5, EPS)
        assert torch.equal(router_norm.router_norm(x, scale, 512**-0.5, EPS), want)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_product(dtype):
    """The sums come out as they are: far nearer to float64 than any rounding to dtype would leave them."""
    x, weight = torch.randn(100, 2816, device=DEVICE).to(dtype), torch.randn(128, 2816, device=DEVICE).to(dtype)
    exact = x.double() @ weight.double().T
    got = float32_product(x, weight)
    assert got.dtype == torch.float32 and (got - exact).abs().max() < 1e-4 * exact.std()


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_million_rows(dtype):
    scale = scales(128, dtype)
    for chunk in range(20):
        logits = normal(500_000, 128, 8, dtype)
        if chunk % 4 == 3:
            logits = logits.round()  # many ties
        check_topk(logits, 8, scale)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_ten_million_rows_of_the_norm():
    scale = (torch.rand(2816, device=DEVICE) + 0.5).bfloat16()
    for _ in range(100):
        check_norm((torch.randn(100_000, 2816, device=DEVICE) * 3).bfloat16(), scale)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_the_bits_of_a_cpu(dtype):
    """The same reference on both devices, products left out."""
    for logits in (normal(100_000, 128, 8, dtype), underflow(10_000, 128, 8, dtype), spread(10_000, 128, 8, dtype)):
        scale = scales(128, dtype)
        here = topk_softmax_reference(logits, 8, scale)
        there = topk_softmax_reference(logits.cpu(), 8, scale.cpu())
        assert all(torch.equal(a.cpu(), b) for a, b in zip(here, there, strict=True))
    h, scale = wide_range((10_000, 2816), dtype), (torch.rand(2816, device=DEVICE) + 0.5).to(dtype)
    here = router_norm_reference(h, scale, 2816**-0.5, EPS)
    assert torch.equal(here.cpu(), router_norm_reference(h.cpu(), scale.cpu(), 2816**-0.5, EPS))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
