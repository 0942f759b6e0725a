"""The product of batch-invariant mode in Triton: against float64, and a row's bits in any company and by any tile."""

import sys

from sglang.test.triton_testing import DEVICE

# isort: split
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sglang.srt.batch_invariant_ops import batch_invariant, linear, matmul
from sglang.srt.batch_invariant_ops.agreement import zero_sums
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci

register_cpu_ci(est_time=15, suite="base-a-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

ON_GPU = DEVICE == "cuda"
on_gpu = pytest.mark.skipif(not ON_GPU, reason="tensor cores have no interpreter")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# [N, K]; on a GPU those of Gemma 4 26B-A4B: qkv of sliding and full layers, o, MLP, router, head
SHAPES = (
    [(8192, 2816), (9216, 2816), (2816, 4096), (2816, 8192), (4224, 2816), (2816, 2112), (128, 2816), (262_144, 2816)]
    if ON_GPU
    else [(100, 96), (33, 300)]
)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """numpy's float32 products differ with a row's place in the matrix; float64 hides that."""
    if not ON_GPU:
        product = np.matmul
        monkeypatch.setattr(np, "matmul", lambda a, b, dtype: product(a, b, dtype=np.float64).astype(dtype))


def case(rows, shape, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, shape[1]), torch.randn(shape) / shape[1] ** 0.5
    return x.to(dtype).to(DEVICE), weight.to(dtype).to(DEVICE), torch.randn(shape[0]).to(dtype).to(DEVICE)


def one_after_another(x, weight):
    """[M, N]: what float32 rounding may do to a sum that is added up one product after another, if it goes as random
    walks do: 2^-24 sqrt(K) times the sum of the magnitudes."""
    return 2**-24 * x.shape[1] ** 0.5 * (x.double().abs() @ weight.double().abs().T)


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
        error = (got.double() - exact).abs()
        assert got.dtype == dtype and (error <= 2 * plain + one_after_another(given, weight)).all()
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
@pytest.mark.parametrize("name", ["TILES", "WGMMA"])
def test_tiles_agree(name):
    """WGMMA failing says only that it must stay out of TILES; then mark it xfail with the card's name."""
    x, weight = (t.to(DEVICE) for t in zero_sums(256, 2816, 2816, torch.bfloat16))
    tiles = matmul.TILES.values() if name == "TILES" else [matmul.WGMMA]
    want = matmul.matmul(x, weight, tile=matmul.TILES[True, False])
    assert want.abs().max() > 0
    for tile in tiles:
        assert torch.equal(matmul.matmul(x, weight, tile=tile), want), tile


def test_tiles_by_rows_and_columns():
    assert matmul.matmul_tile(1, 2816, 2).block_m == matmul.matmul_tile(16, 262_144, 2).block_m == 16
    assert matmul.matmul_tile(17, 2816, 2).num_warps == 2  # no wgmma
    assert {tile.block_k for tile in matmul.TILES.values()} == {matmul.BLOCK_K}
    assert matmul.matmul_tile(1000, 2816, 4) == matmul.FLOAT32


def test_can_use_refuses_what_the_kernel_can_not_read():
    x, weight, _ = case(4, (32, 64), torch.float32)
    assert matmul.can_use(x, weight)
    assert not matmul.can_use(x.double(), weight.double())
    assert not matmul.can_use(x.half(), weight)
    assert not matmul.can_use(x.T.contiguous().T, weight)
    assert not matmul.can_use(x, weight.T.contiguous().T)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
