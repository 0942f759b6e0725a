"""Products of 16 bits on a CPU without instructions for them: one rounding of the sum, and where they are taken."""

import sys

import pytest
import torch
from torch.nn import functional as F

from sglang.srt.ops.invariance.mode import batch_invariant
from sglang.srt.ops.products import widened
from sglang.srt.ops.products.linear import linear
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

DTYPES = [torch.bfloat16, torch.float16]


def case(rows: int, columns: int, depth: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, depth), torch.randn(columns, depth) / 8, torch.randn(columns)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def assert_one_rounding(got, exact, terms):
    """`got` in 16 bits is `exact` in float64, rounded once, but for the errors of a float32 sum whose terms' sizes add
    up to `terms`."""
    step = torch.finfo(got.dtype).eps / 2
    smallest = torch.finfo(got.dtype).smallest_normal * step
    slack = terms * torch.finfo(torch.float32).eps * 16
    assert ((got.double() - exact).abs() <= (step * exact.abs() + slack) * (1 + step) + smallest).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 4, 33])
@pytest.mark.parametrize("columns", [1, 64, 130])  # blocks of 64: less than one, one, two and a rest
def test_sums_are_float32_and_rounded_once(rows, columns, has_bias, dtype, monkeypatch):
    monkeypatch.setattr(widened, "BLOCK", 64 * 96)
    x, weight, bias = case(rows, columns, 96, dtype)
    exact, terms = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    if has_bias:
        exact, terms = exact + bias.double(), terms + bias.double().abs()
    got = widened.linear(x, weight, bias if has_bias else None)
    assert got.dtype == dtype and got.shape == (rows, columns) and got.is_contiguous()
    assert_one_rounding(got, exact, terms)


def test_rows_of_a_weight_may_be_longer_than_a_block(monkeypatch):
    monkeypatch.setattr(widened, "BLOCK", 50)
    x, weight, _ = case(4, 5, 96, torch.bfloat16)
    assert_one_rounding(
        widened.linear(x, weight), x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_round_as_rows_do(dtype):
    x, weights = torch.randn(5, 7, 48).to(dtype), torch.randn(5, 48, 32).to(dtype)
    got = widened.bmm(x, weights)
    assert got.dtype == dtype
    assert_one_rounding(got, x.double() @ weights.double(), x.double().abs() @ weights.double().abs())


@pytest.mark.parametrize("dtype", DTYPES)
def test_taken_for_more_than_few_rows_where_nothing_else_is_fast(dtype, monkeypatch):
    calls = []
    monkeypatch.setattr(widened, "linear", lambda *args: calls.append(args) or F.linear(*args))
    x, weight, bias = case(widened.FEW_ROWS + 1, 40, 96, dtype)
    monkeypatch.setattr(widened, "has_instructions", lambda dtype: True)
    linear(x, weight, bias)
    assert not calls
    monkeypatch.setattr(widened, "has_instructions", lambda dtype: dtype == torch.float32)
    assert torch.equal(linear(x[:-1], weight), F.linear(x[:-1], weight))
    linear(x.float(), weight.float())
    with batch_invariant():  # rows go through in blocks that agree, which few and many rows share
        linear(x, weight, bias)
    assert not calls
    linear(x, weight, bias)
    assert [(len(given), given.dtype) for given, *_ in calls] == [(widened.FEW_ROWS + 1, dtype)]


def test_float32_needs_no_widening():
    assert widened.has_instructions(torch.float32)
    assert not widened.needs_widening(torch.zeros(100, 1))
    assert not widened.needs_widening(torch.zeros(100, 1, dtype=torch.bfloat16, device="meta"))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
