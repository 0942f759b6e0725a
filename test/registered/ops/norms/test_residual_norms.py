"""The residual stream's kernels give the bits of the norms, sums and products they stand for, on every input and with
and without each part. In the interpreter without a GPU. No tolerance anywhere."""

import sys

import sglang.test.triton_testing

# isort: split

import pytest
import torch
from torch import Tensor

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.loader import load_model
from sglang.srt.ops.moe import router_norm
from sglang.srt.ops.norms import residual_norms
from sglang.srt.ops.norms.residual_norms import (
    ExpertSum,
    LayerEnd,
    MoeReaders,
    add_norm,
    add_norm_moe,
    add_norm_moe_reference,
    add_norm_reference,
)
from sglang.srt.ops.norms.rms_norm import rms_norm
from sglang.test.ci.ci_register import is_weekly, register_cpu_ci, register_cuda_ci
from sglang.test.numerics import normal, signed_zeros, subnormals, wide_range
from sglang.test.paged_harness import PagedHarness
from sglang.test.tiny_models import make_tiny_gemma4

register_cpu_ci(est_time=16, suite="base-a-test-cpu")
register_cpu_ci(est_time=30, suite="weekly-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of NaN and inf

DEVICE = sglang.test.triton_testing.DEVICE
GPU = DEVICE == "cuda"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
WIDTHS = [1, 16, 97, 256, 2816, 5376] if GPU or is_weekly() else [1, 97, 256, 2816]
EPS = 1e-6
PARTS = [(experts, scaled, norm) for experts in (False, True) for scaled in (False, True) for norm in (False, True)]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def ties(shape, dtype):
    """Sums that lie halfway between two numbers of the dtype, many of them."""
    return torch.where(randn(*shape) < 0, 1.0, torch.finfo(dtype).eps / 2).to(dtype) * normal(shape, dtype).sign()


def huge(shape, dtype):
    """At the dtype's end: sums overflow to infinity in it, squares in float32 where the dtype reaches so far."""
    return (randn(*shape).sign() * torch.finfo(dtype).max).to(dtype)


def not_finite(shape, dtype):
    """NaN in the first row, infinity in the last."""
    x = wide_range(shape, dtype)
    if x.numel():
        x[-1, 0], x[0, -1] = torch.inf, torch.nan
    return x


MAKERS = [normal, ties, signed_zeros, subnormals, wide_range, huge, not_finite]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def same(got: Tensor | None, want: Tensor | None) -> bool:
    """The same bits, a zero's sign included; NaN, whose bits mean nothing, in the same places."""
    if got is None or want is None:
        return got is want
    nan = want.isnan()
    equal = torch.equal(got.isnan(), nan) and torch.equal(got[~nan], want[~nan])
    return equal and got.dtype == want.dtype and torch.equal(got[~nan].signbit(), want[~nan].signbit())


def weight(width: int, dtype: torch.dtype, at: float = 1.0) -> Tensor:
    return (at + 0.3 * randn(width)).to(dtype)


def check(op, reference, *args) -> None:
    """Op against reference, bit for bit; nothing that is given may change."""
    tensors = [x for x in flat(args) if isinstance(x, Tensor)]
    before = [x.clone() for x in tensors]
    got = op(*args)
    assert all(map(same, tensors, before))
    assert all(same(mine, theirs) for mine, theirs in zip(flat(got), flat(reference(*args)), strict=True))


def flat(parts) -> list:
    """What tuples hold, those in tuples too."""
    return [x for part in parts for x in flat(part)] if isinstance(parts, tuple) else [parts]


def check_add_norm(make, shape, dtype, experts=True, scaled=True, norm=True, scalar: float = 0.7) -> None:
    h, m, y = (make(shape, dtype) for _ in range(3))
    w = [weight(shape[1], dtype) for _ in range(4)]
    assert residual_norms.can_use(h, m, y)  # else the reference is compared with itself
    check(
        add_norm,
        add_norm_reference,
        h,
        m,
        w[0],
        EPS,
        ExpertSum(y, w[1], w[2]) if experts else None,
        LayerEnd(torch.tensor([scalar], device=DEVICE, dtype=dtype) if scaled else None, w[3] if norm else None),
    )


def check_add_norm_moe(make, shape, dtype) -> None:
    h, a = (make(shape, dtype) for _ in range(2))
    w = [weight(shape[1], dtype) for _ in range(4)]
    assert residual_norms.can_use(h, a) and router_norm.can_use(h, w[3])
    check(add_norm_moe, add_norm_moe_reference, h, a, w[0], MoeReaders(*w[1:], shape[1] ** -0.5), EPS)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nasty_inputs(width, dtype, make):
    rows = 257 if GPU else 2
    check_add_norm(make, (rows, width), dtype)
    check_add_norm_moe(make, (rows, width), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "scaled", "norm"), PARTS)
def test_with_and_without_each_part(experts, scaled, norm, dtype):
    check_add_norm(wide_range, (3, 256), dtype, experts, scaled, norm)
    check_add_norm(not_finite, (3, 97), dtype, experts, scaled, norm)


@pytest.mark.parametrize("rows", [0, 1, 3, 257, 8192] if GPU else [0, 1, 3])
def test_rows(rows):
    check_add_norm(wide_range, (rows, 2816), torch.bfloat16)
    check_add_norm_moe(wide_range, (rows, 2816), torch.bfloat16)


@pytest.mark.parametrize("scalar", [0.0, -1.0, 1.0, 0.0123, 300.0, 3e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars(dtype, scalar):
    for make in (wide_range, subnormals, huge):
        check_add_norm(make, (2, 96), dtype, experts=False, scalar=scalar)


def test_the_widest_row():
    check_add_norm(wide_range, (2, 16384), torch.bfloat16)
    check_add_norm_moe(wide_range, (2, 16384), torch.bfloat16)


def test_each_rounding_reaches_the_result():
    """The inputs tell the chain from one that rounds less: here without the norm's rounding before the sum, and
    without the sum's before the scalar."""
    h, m = (normal((50, 2816), torch.bfloat16) for _ in range(2))
    w, scalar = weight(2816, torch.bfloat16), torch.tensor([0.7], device=DEVICE, dtype=torch.bfloat16)
    want, _ = add_norm(h, m, w, EPS, None, LayerEnd(scalar))
    normed = add_norm_reference(torch.zeros_like(h).float(), m.float(), w.float(), EPS)[0]
    assert not torch.equal((h.float() + normed).bfloat16() * scalar, want)
    assert not torch.equal(((h.float() + normed.bfloat16().float()) * scalar.float()).bfloat16(), want)


def test_a_row_does_not_depend_on_the_others():
    h, m, y = (wide_range((5, 2816), torch.bfloat16) for _ in range(3))
    w = weight(2816, torch.bfloat16)
    m[3] = torch.nan

    def both(h: Tensor, m: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        last = add_norm(h, m, w, EPS, ExpertSum(y, w, w), LayerEnd(None, w))
        return *last, *flat(add_norm_moe(h, m, w, MoeReaders(w, w, w, 2816**-0.5), EPS))

    for got, alone in zip(both(h, m, y), both(h[:3], m[:3], y[:3]), strict=True):
        assert torch.equal(got[:3], alone) and got[3].isnan().all() and not got[4].isnan().any()


def test_without_the_kernels(monkeypatch):
    """Rows with gaps, and all where they are switched off, go through the norms' own kernels with the same bits."""
    h, a = (wide_range((3, 512), torch.bfloat16) for _ in range(2))
    gaps = wide_range((3, 1024), torch.bfloat16)[:, ::2]
    w, scalar = weight(512, torch.bfloat16), torch.tensor([0.7], device=DEVICE, dtype=torch.bfloat16)
    readers = MoeReaders(w, w, w, 512**-0.5)
    too_wide = torch.empty(2, 16385, device=DEVICE)
    assert not residual_norms.can_use(too_wide, too_wide)
    assert not residual_norms.can_use(h, a, a[:1]) and not residual_norms.can_use(h, a.float())
    for disabled, other in ((False, gaps), (True, a)):
        monkeypatch.setattr(residual_norms, "DISABLED", disabled)
        assert not residual_norms.can_use(h, other)
        rest = ExpertSum(other, w, w), LayerEnd(scalar, w)
        got = add_norm(h, other.contiguous() if disabled else a, w, EPS, *rest)
        want = add_norm_reference(h, a, w, EPS, *rest, norm=rms_norm)
        assert all(map(same, got, want))
        *got, r = flat(add_norm_moe(h, other, w, readers, EPS))
        h_want, x_want = add_norm_reference(h, other, w, EPS, end=LayerEnd(next_norm=w), norm=rms_norm)
        assert all(map(same, got, (h_want, x_want, rms_norm(h_want, w, EPS)))) and r is None
    for mine, theirs in zip(got, flat(add_norm_moe_reference(h, a, w, readers, EPS)), strict=False):
        assert torch.equal(mine, theirs)


def test_the_routers_norm_may_be_apart(monkeypatch):
    """Its own switch still means its own launches; all else is made as before."""
    h, a = (wide_range((3, 512), torch.bfloat16) for _ in range(2))
    w, root = weight(512, torch.bfloat16), 512**-0.5
    readers = MoeReaders(w, w, w, root)
    monkeypatch.setattr(router_norm, "DISABLED", True)
    *got, r = flat(add_norm_moe(h, a, w, readers, EPS))
    assert r is None
    *want, r_want = flat(add_norm_moe_reference(h, a, w, readers, EPS))
    assert all(map(same, got, want)) and torch.equal(router_norm.router_norm(got[0], w, root, EPS), r_want)


@pytest.mark.parametrize("variant", ["moe_top2", "dense_k_eq_v", "ple_shared_double_wide"])
def test_models_take_them_and_keep_their_bits(variant, tmp_path, monkeypatch):
    """Logits and the launches of a step: two a layer, three with per-layer inputs."""
    folder = make_tiny_gemma4(tmp_path, variant)
    config = ModelConfig.load(str(folder))
    model = load_model(config, "auto", torch.device(DEVICE))
    launched = []
    for name in ("launch_add_norm", "launch_add_norm_moe"):
        launch = getattr(residual_norms, name)
        monkeypatch.setattr(residual_norms, name, lambda *args, launch=launch: launched.append(0) or launch(*args))

    def logits() -> Tensor:
        harness = PagedHarness(model, config, device=DEVICE)
        return torch.cat([harness.step({0: ids})[0] for ids in ([7, 30, 200], [9])])

    fused = logits()
    assert len(launched) == 2 * len(model.model.layers) * (3 if config.text.ple_size else 2)
    monkeypatch.setattr(residual_norms, "DISABLED", True)
    assert torch.isfinite(fused).all() and torch.equal(logits(), fused)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_rows(dtype):
    for chunk in range(20):
        make = (normal, wide_range, ties)[chunk % 3]
        check_add_norm(make, (50_000, 2816), dtype)
        check_add_norm_moe(make, (50_000, 2816), dtype)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
