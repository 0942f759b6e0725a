"""A row alone and a row in company have the same bits: the mode's own ops, and all others of a step, which keep rows
apart as they are. On a GPU the same tests run over its kernels.
"""

import functools
import sys

import pytest
import torch
from torch.nn import functional as F

from sglang.srt.layers.logits_processor import softcap
from sglang.srt.layers.logprobs import token_logprobs
from sglang.srt.layers.sampler import gumbel, mix32
from sglang.srt.ops.attention.kv_slots import KVSlots
from sglang.srt.ops.invariance.agreement import SIZES, agreeing_sizes, next_size, zero_sums
from sglang.srt.ops.invariance.mode import batch_invariant, enabled
from sglang.srt.ops.moe.fused_experts import fused_experts
from sglang.srt.ops.moe.topk import topk_softmax
from sglang.srt.ops.norms.activation import gelu_tanh_and_mul, silu_and_mul
from sglang.srt.ops.norms.elementwise import gelu_tanh, silu
from sglang.srt.ops.norms.qkv_norm_rope import qkv_norm_rope
from sglang.srt.ops.norms.qkv_rms_norm import qkv_rms_norm
from sglang.srt.ops.norms.rms_norm import llama_rms_norm, rms_norm
from sglang.srt.ops.norms.rope import apply_rope
from sglang.srt.ops.norms.sums import row_mean
from sglang.srt.ops.products import linear as linear_module
from sglang.srt.ops.products.linear import linear, warm_products
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.numerics import one_after_another

register_cpu_ci(est_time=40, suite="base-a-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float32]
# [N, K] of the shipped model's products: qkv and o of sliding and full layers, MLP, router, an expert's, head
MINI = [
    (1536, 256), (256, 1024), (2560, 256), (256, 2048), (768, 256), (256, 384), (16, 256), (96, 256), (256, 48),
    (2048, 256),
]  # fmt: skip
ROWS = 300  # more than the largest block
COMPANIES = [1, 2, 3, 5, 8, 17, 31, 64, 65, 200, ROWS]


@pytest.fixture(autouse=True)
def mode():
    with batch_invariant():
        yield


@pytest.fixture(params=[1, 3], ids=["1_thread", "3_threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def wide(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normal numbers of many magnitudes, so that sums in another order differ."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return (x * torch.exp2(torch.randint(-4, 5, shape, generator=generator).float())).to(dtype).to(DEVICE)


def check_rows(op, *columns: torch.Tensor, companies=COMPANIES) -> None:
    """`op` of tensors with a row for each of ROWS gives a tensor, or several, with a row each. Every row must come out
    the same in every company: the first n, n at random places, all but turned round."""

    def run(rows: torch.Tensor) -> tuple:
        out = op(*(x[rows].clone() for x in columns))
        return out if isinstance(out, tuple) else (out,)

    total = len(columns[0])
    want = run(torch.arange(total))
    generator = torch.Generator().manual_seed(1)
    groups = [torch.arange(n) for n in companies if n <= total] + [torch.arange(total).flip(0)]
    groups += [torch.randint(total, (n,), generator=generator) for n in companies]
    for rows in groups:
        for got, whole in zip(run(rows), want, strict=True):
            assert torch.equal(got, whole[rows.to(whole.device)]), f"{len(rows)} rows"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MINI)
def test_linear(shape, dtype):
    x, weight = zero_sums(ROWS, *shape, dtype)  # all results are rounding errors: every change of order shows
    x, weight = x.to(DEVICE), weight.to(DEVICE)
    check_rows(lambda rows: linear(rows, weight), x)
    noise = wide(ROWS, shape[1], dtype=dtype)
    check_rows(lambda rows: linear(rows, weight), noise, companies=[1, 7, ROWS])


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_with_several_threads(dtype, threads):
    """A library may cut a few rows into fewer among its threads."""
    for shape in [(96, 256), (256, 1024)]:
        x, weight = (t.to(DEVICE) for t in zero_sums(64, *shape, dtype))
        check_rows(lambda rows, weight=weight: linear(rows, weight), x, companies=[1, 2, 5, 7, 9, 30])


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_of_a_bias_of_many_columns_of_other_strides(dtype, monkeypatch):
    monkeypatch.setattr(linear_module, "MAX_COLUMNS", 100)
    x, weight = (t.to(DEVICE) for t in zero_sums(ROWS, 333, 128, dtype))
    bias = wide(333, dtype=dtype)
    check_rows(lambda rows: linear(rows, weight, bias), x, companies=[1, 5, 64])
    parts = torch.cat([x, x], 1)[:, :128]
    assert torch.equal(linear(parts, weight, bias), linear(x, weight, bias))
    exact = x.double() @ weight.double().T + bias.double()
    plain = (F.linear(x, weight, bias).double() - exact).abs().max()
    assert (linear(x, weight, bias).double() - exact).abs().max() <= 2 * plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 100, ROWS])
def test_linear_is_as_exact_as_torchs(rows, dtype):
    x, weight = wide(rows, 1024, dtype=dtype), wide(256, 1024, dtype=dtype, seed=1)
    exact = x.double() @ weight.double().T
    among_many = F.linear(x.repeat(ROWS, 1), weight)[:rows]  # few rows may take a routine with more sums side by side
    plain = (among_many.double() - exact).abs().max()
    got = linear(x, weight)
    # on a GPU products are added up one after another, where torch adds halves
    slack = one_after_another(x, weight) if DEVICE == "cuda" else 0
    assert got.dtype == dtype and ((got.double() - exact).abs() <= 2 * plain + slack).all()


def test_outside_the_mode_ops_are_torchs():
    x, weight = wide(7, 256), wide(96, 256, seed=1)
    with batch_invariant(False):
        assert not enabled()
        assert torch.equal(linear(x, weight), F.linear(x, weight))
        assert torch.equal(gelu_tanh(x), F.gelu(x, approximate="tanh")) and torch.equal(silu(x), F.silu(x))
        assert torch.equal(row_mean(x), x.mean(-1, keepdim=True))
    assert enabled()


def experts_case(dtype):
    gate_up, down = wide(16, 96, 256, dtype=dtype) / 16, wide(16, 256, 48, dtype=dtype, seed=1) / 8
    generator = torch.Generator().manual_seed(2)
    ids = torch.rand(ROWS, 16, generator=generator).topk(4).indices.to(DEVICE)
    weights = torch.rand(ROWS, 4, generator=generator).to(DEVICE)
    return wide(ROWS, 256, dtype=dtype, seed=3), gate_up, down, weights, ids


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts(dtype):
    x, gate_up, down, weights, ids = experts_case(dtype)
    check_rows(lambda x, weights, ids: fused_experts(x, gate_up, down, weights, ids), x, weights, ids)
    got = fused_experts(x, gate_up, down, weights, ids)
    with batch_invariant(False):
        plain = fused_experts(x, gate_up, down, weights, ids)
    h = torch.einsum("th,tkoh->tko", x.double(), gate_up.double()[ids])
    h = F.gelu(h[..., :48], approximate="tanh") * h[..., 48:]
    exact = (torch.einsum("tko,tkho->tkh", h, down.double()[ids]) * weights[..., None]).sum(1)
    assert (got.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 384, 100])
def test_activations(width, dtype, threads):
    x = wide(ROWS, 2 * width, dtype=dtype)
    for op in (gelu_tanh, silu, gelu_tanh_and_mul, silu_and_mul):
        check_rows(op, x)


@pytest.mark.parametrize("name", ["gelu_tanh", "silu"])
def test_activations_are_torchs_but_for_the_last_bit(name):
    mine, theirs = (gelu_tanh, functools.partial(F.gelu, approximate="tanh")) if name == "gelu_tanh" else (silu, F.silu)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite()].to(DEVICE)
    got, want, exact = mine(every), theirs(every), theirs(every.double())
    assert torch.allclose(got.double(), exact, rtol=2**-8, atol=1e-6)
    assert (got != want).sum() <= 8  # where torch's own routines differ among themselves
    x = wide(1000)
    assert torch.allclose(mine(x), theirs(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ops_that_are_row_by_row_as_they_are(dtype, threads):
    hidden, weight = wide(ROWS, 256, dtype=dtype), wide(256, dtype=dtype, seed=1)
    check_rows(lambda x: rms_norm(x, weight, 1e-6), hidden)
    check_rows(lambda x: rms_norm(x, None, 1e-6), hidden)
    check_rows(lambda x: llama_rms_norm(x, weight, 1e-6), hidden)
    check_rows(lambda x: qkv_rms_norm(x, weight[:64], weight[64:128], 2, 1, 1e-6), wide(ROWS, 256, dtype=dtype))
    check_rows(lambda x: softcap(x, 30.0), wide(ROWS, 2048, dtype=dtype))
    scale = wide(16, dtype=dtype, seed=2)
    check_rows(lambda x: topk_softmax(x, 4, scale), wide(ROWS, 16, dtype=dtype))
    scale = wide(128, dtype=dtype, seed=2)
    check_rows(lambda x: topk_softmax(x, 8, scale), wide(ROWS, 128, dtype=dtype))
    angles = wide(ROWS, 64)
    rotation = angles.cos().to(dtype), angles.sin().to(dtype)
    check_rows(lambda x, cos, sin: apply_rope(x, cos, sin), wide(ROWS, 4, 64, dtype=dtype), *rotation)

    def normed_and_turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        kv = KVSlots(*x.new_zeros(2, len(x), 1, 64), torch.arange(len(x), device=DEVICE))
        q = qkv_norm_rope(x, weight[:64], weight[64:128], 2, cos, sin, 1e-6, kv)
        return torch.cat((q, *kv[:2]), dim=1)

    check_rows(normed_and_turned, wide(ROWS, 256, dtype=dtype), *rotation)


def test_sampling_is_row_by_row_as_it_is(threads):
    logits = wide(ROWS, 2048)
    for op in (torch.exp, torch.log1p, torch.argmax, torch.amax):
        check_rows(lambda x, op=op: op(x) if op in (torch.exp, torch.log1p) else op(x, dim=-1), logits.abs())
    check_rows(lambda x: x.double().exp().float(), logits / 16)
    words = mix32(torch.arange(2048, device=DEVICE))
    seeds, positions = torch.arange(ROWS, device=DEVICE), torch.arange(ROWS, device=DEVICE) * 7
    check_rows(lambda seeds, positions: gumbel(words, seeds, positions), seeds, positions)

    def logprobs(x: torch.Tensor) -> torch.Tensor:
        values, best, _ = token_logprobs(x, x.argmin(-1), [3] * len(x), [None] * len(x)).lists()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return torch.tensor([[value, *(v for v, _ in row)] for value, row in zip(values, best, strict=True)])

    if DEVICE == "cpu":
        check_rows(logprobs, logits.clamp(-30, 30))


def test_sizes_that_disagree_are_left_out():
    """A product that adds two halves when it has fewer than five rows."""
    x, weight = zero_sums(256, 64, 200, torch.float32)

    def product(rows: torch.Tensor) -> torch.Tensor:
        if len(rows) >= 5:
            return torch.cat([row @ weight.T for row in rows.split(1)])
        return rows[:, :100] @ weight[:, :100].T + rows[:, 100:] @ weight[:, 100:].T

    assert agreeing_sizes(product, x) == tuple(size for size in SIZES if size >= 5)


def test_no_size_agrees_where_places_differ():
    x, weight = zero_sums(256, 64, 200, torch.float32)
    place = torch.arange(256)[:, None] % 2 == 0

    def product(rows: torch.Tensor) -> torch.Tensor:
        whole = (rows.double() @ weight.T.double()).float()
        return torch.where(place[: len(rows)], whole, whole.flip(1) * 1e-3)

    assert agreeing_sizes(product, x) == ()


def test_a_machine_on_which_no_size_agrees_is_told(monkeypatch):
    monkeypatch.setattr(linear_module, "agreeing_sizes", lambda *_: ())
    linear_module.block_sizes.cache_clear()
    with pytest.raises(ValueError, match="--enable-deterministic-inference.*OMP_NUM_THREADS"):
        warm_products([torch.zeros(5, 7)])


def test_next_size():
    assert [next_size(count, (4, 8, 32)) for count in (1, 4, 5, 9, 32, 40)] == [4, 4, 8, 32, 32, 32]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
