"""The product of batch-invariant mode in Triton: against float64, and a row's bits in any company and by any tile."""

import sys

from sglang.test.triton_testing import DEVICE, exact_products  # noqa: F401, a fixture

# isort: split
import pytest
import torch
from torch.nn import functional as F

from sglang.srt.ops.invariance.agreement import zero_sums
from sglang.srt.ops.invariance.mode import batch_invariant
from sglang.srt.ops.products import linear as linear_module
from sglang.srt.ops.products import matmul
from sglang.srt.ops.products.linear import linear, warm_products
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.numerics import one_after_another

register_cpu_ci(est_time=8, suite="base-a-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")


ON_GPU = DEVICE == "cuda"
pytestmark = pytest.mark.usefixtures("exact_products")
on_gpu = pytest.mark.skipif(not ON_GPU, reason="tensor cores have no interpreter")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ROWS_AND_COLUMNS = [
    (1, 128), (1, 2816), (16, 262_144), (17, 8192), (32, 9216), (32, 262_144), (33, 4224), (64, 8192), (64, 9216),
    (64, 262_144), (65, 2816), (128, 8192), (256, 2816), (256, 8192), (257, 128),
]  # fmt: skip
# [N, K]; on a GPU those of Gemma 4 26B-A4B: qkv of sliding and full layers, o, MLP, router, head
SHAPES = (
    [(8192, 2816), (9216, 2816), (2816, 4096), (2816, 8192), (4224, 2816), (2816, 2112), (128, 2816), (262_144, 2816)]
    if ON_GPU
    else [(100, 96), (33, 300)]
)


def case(rows, shape, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, shape[1]), torch.randn(shape) / shape[1] ** 0.5
    return x.to(dtype).to(DEVICE), weight.to(dtype).to(DEVICE), torch.randn(shape[0]).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 16, 17, 70])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_against_float64(shape, rows, dtype):
    x, weight, bias = case(rows, shape, dtype)
    wide = torch.cat([x, torch.full_like(x, torch.nan)], 1)[:, : shape[1]]  # rows apart, NaN between
    for given, added in ((x, None), (wide, None), (x, bias)):
        exact = given.double() @ weight.double().T + (0 if added is None else added.double())
        plain = (F.linear(given, weight, added).double() - exact).abs().max()
        with batch_invariant():
            got = linear(given, weight, added)
        slack = one_after_another(given, weight) if ON_GPU else 1e-6
        assert got.dtype == dtype and ((got.double() - exact).abs() <= 2 * plain + slack).all()
    assert matmul.matmul(x[:0], weight).shape == (0, shape[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_keep_their_bits(shape, dtype):
    """Results that are nothing but rounding errors, so that every change of order shows."""
    rows = 300 if ON_GPU else 40
    x, weight = (t.to(DEVICE) for t in zero_sums(rows, *shape, dtype))
    whole = matmul.matmul(x, weight)
    for count in (1, 2, 16, 17, 33, rows):
        assert torch.equal(matmul.matmul(x[:count], weight), whole[:count])
        assert torch.equal(matmul.matmul(x[-count:].flip(0), weight), whole[-count:].flip(0))


@on_gpu
@pytest.mark.parametrize("depth", [2112, 2816, 4096, 8192])
def test_tiles_agree(depth):
    """Hopper's too where the trial at start says so; on other GPUs they are not used."""
    x, weight = zero_sums(300, 2816, depth, torch.bfloat16, DEVICE)
    tiles = {*matmul.TILES.values(), *(matmul.HOPPER.values() if matmul.instructions_agree(0) else ())}
    want = matmul.matmul(x, weight, tile=matmul.TILES[True, False])
    assert want.abs().max() > 0
    for tile in tiles:
        assert torch.equal(matmul.matmul(x, weight, tile=tile), want), tile


@on_gpu
def test_the_trial_sees_a_tile_that_adds_in_another_order(monkeypatch):
    """float32 accumulators of an order of their own: the depth in two halves."""

    def product(x, weight, bias=None, tile=None):
        if tile == matmul.HOPPER[None, None]:
            halves = zip(x.float().chunk(2, 1), weight.float().chunk(2, 1), strict=True)
            return sum(a @ b.T for a, b in halves).to(x.dtype)
        return honest(x, weight, bias, tile)

    honest = matmul.matmul
    monkeypatch.setattr(matmul, "matmul", product)
    if torch.cuda.get_device_capability()[0] == 9:
        assert not matmul.instructions_agree.__wrapped__(0)


@on_gpu
@pytest.mark.parametrize("shape", [(2816, 2112), (8192, 2816), (128, 2816)])
def test_many_rows_through_torch_have_the_kernels_bits(shape):
    """Whatever sizes the trial found; rows on both sides of each limit."""
    x, weight = zero_sums(8192 + 300, *shape, torch.bfloat16, DEVICE)
    want = matmul.matmul(x, weight)
    with batch_invariant():
        warm_products([weight])
        assert shape[0] < 1000 or len(linear_module._gpu_sizes[(*shape, weight.dtype, weight.device)]) > 10
        for rows in (256, 257, 384, 385, 1087, 2048, 2049, 5000, 8192, 8193, len(x)):
            assert torch.equal(linear(x[:rows], weight), want[:rows]), rows  # with rows behind them
            assert torch.equal(linear(x[:rows].clone(), weight), want[:rows]), rows
            assert torch.equal(linear(x[-rows:], weight), want[-rows:]), rows


@on_gpu
def test_a_block_goes_over_what_lies_behind_the_rows():
    """No launch but the product's, and what is there, were it NaN, is not seen."""
    x, weight = zero_sums(1536, 2816, 2112, torch.bfloat16, DEVICE)
    want = matmul.matmul(x, weight)
    x[1053:] = torch.nan
    with batch_invariant():
        warm_products([weight])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            got = linear(x[:1053], weight)
            torch.cuda.synchronize()
    assert got.shape == (1053, 2816) and torch.equal(got, want[:1053])
    kernels = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1, kernels


@pytest.mark.skipif(
    DEVICE == "cpu" or torch.cuda.get_device_capability()[0] != 9, reason="the kernel is preferred on Hopper alone"
)
@pytest.mark.parametrize("shape", SHAPES)
def test_few_rows_outside_the_mode(shape):
    """The kernel's product for up to 64 rows, torch's for more and for float32."""
    x, weight, _ = case(65, shape, torch.bfloat16)
    want = matmul.matmul(x, weight)
    for rows in (1, 2, 16, 17, 64):
        assert torch.equal(linear(x[:rows], weight), want[:rows])
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert torch.equal(linear(x[:1].float(), weight.float()), F.linear(x[:1].float(), weight.float()))


def test_tiles_by_rows_and_columns():
    assert matmul.matmul_tile(1, 2816, 2, False).block_m == matmul.matmul_tile(16, 262_144, 2, False).block_m == 16
    assert matmul.matmul_tile(17, 2816, 2, False).num_warps == 2  # no wgmma
    assert {tile.block_k for tile in matmul.TILES.values()} == {matmul.BLOCK_K}
    assert matmul.matmul_tile(1000, 2816, 4, True) == matmul.FLOAT32
    tiles = [matmul.matmul_tile(rows, columns, 2, True) for rows, columns in ROWS_AND_COLUMNS]
    assert [(t.block_m, t.block_n, t.num_stages) for t in tiles] == [
        (16, 16, 3), (16, 64, 8), (16, 128, 4), (32, 64, 6), (32, 64, 3), (32, 64, 6), (64, 32, 6), (64, 64, 5),
        (64, 64, 5), (64, 128, 4), (64, 64, 4), (64, 64, 6), (64, 64, 6), (64, 128, 4), (128, 128, 4),
    ]  # fmt: skip


def test_can_use_refuses_what_the_kernel_can_not_read():
    x, weight, _ = case(4, (32, 64), torch.float32)
    assert matmul.can_use(x, weight)
    assert not matmul.can_use(x.double(), weight.double())
    assert not matmul.can_use(x.half(), weight)
    assert not matmul.can_use(x.T.contiguous().T, weight)
    assert not matmul.can_use(x, weight.T.contiguous().T)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
