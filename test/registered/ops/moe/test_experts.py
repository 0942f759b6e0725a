"""The experts' sum: its order of roundings as stated, its error against float64, and experts that get no token."""

import sys

import pytest
import torch
from torch.nn import functional as F

from sglang.srt.ops.moe import fused_experts as ops
from sglang.srt.ops.moe.fused_experts import (
    can_use_all,
    fused_experts,
    fused_experts_of_all,
    fused_experts_of_one,
    fused_experts_reference,
)
from sglang.srt.ops.products import widened
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="base-a-test-cpu")


@pytest.fixture(params=[True, False], ids=["16-bit CPU", "32-bit CPU"], autouse=True)
def instructions(request, monkeypatch):
    """A CPU with instructions for products in 16 bits, and one without, whatever this one is."""
    monkeypatch.setattr(widened, "has_instructions", lambda dtype: dtype == torch.float32 or request.param)
    return request.param


def inputs(tokens: int, experts: int, k: int, dtype: torch.dtype, used: int | None = None) -> tuple:
    torch.manual_seed(tokens)
    x = torch.randn(tokens, 64).to(dtype)
    gate_up = (torch.randn(experts, 2 * 32, 64) / 8).to(dtype)
    down = (torch.randn(experts, 64, 32) / 6).to(dtype)
    ids = torch.rand(tokens, used or experts).topk(k).indices
    return x, gate_up, down, torch.rand(tokens, k) + 0.1, ids


def one_by_one(x, gate_up, down, weights, ids):
    """Token by token as the docstring says: y rounded, times the float32 weight, summed in float32 in their order."""
    rows = []
    for token in range(len(x)):
        total = torch.zeros(x.shape[1])
        for expert_slot in range(ids.shape[1]):
            expert = ids[token, expert_slot]
            gate, up = F.linear(x[token : token + 1], gate_up[expert]).chunk(2, -1)
            y = F.linear(F.gelu(gate, approximate="tanh") * up, down[expert])[0]
            total += y.float() * weights[token, expert_slot]
        rows.append(total.to(x.dtype))
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [1, 2, 7, 64])
@pytest.mark.parametrize(("experts", "k"), [(8, 2), (16, 4), (5, 5)])
def test_float32_is_the_sum_one_by_one(tokens, experts, k):
    case = inputs(tokens, experts, k, torch.float32)
    torch.testing.assert_close(fused_experts(*case), one_by_one(*case), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 7, 64, 300])
def test_bfloat16_error_is_no_worse_than_the_plain_sum(tokens):
    x, gate_up, down, weights, ids = case = inputs(tokens, 16, 4, torch.bfloat16)
    exact = one_by_one(x.double(), gate_up.double(), down.double(), weights, ids)
    got = fused_experts(*case)
    assert got.dtype == torch.bfloat16
    plain = (one_by_one(*case).double() - exact).abs().max()
    assert (got.double() - exact).abs().max() <= 2 * plain


@pytest.mark.parametrize("tokens", [0, 1, 5, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_experts_at_once_round_as_the_reference_does(tokens, dtype):
    """All are off from the exact sum by rounding alone, whichever of them a number of tokens takes."""
    x, gate_up, down, weights, ids = case = inputs(tokens, 16, 4, dtype)
    assert can_use_all(x, gate_up)
    ways = [fused_experts_of_all, fused_experts_of_one] if tokens == 1 else [fused_experts_of_all]
    reference = fused_experts_reference(*case)
    for way in ways:
        got = way(*case)
        assert got.dtype == dtype and got.shape == x.shape
        if tokens:
            exact = one_by_one(x.double(), gate_up.double(), down.double(), weights, ids)
            assert (got.double() - exact).abs().max() <= 2 * (reference.double() - exact).abs().max()
    assert torch.equal(fused_experts(*case), got)


@pytest.mark.parametrize("tokens", [2, 40])
def test_many_tokens_or_large_experts_go_expert_by_expert_without_instructions(tokens, instructions, monkeypatch):
    """Then an expert with many rows is widened by itself, never all of them."""
    monkeypatch.setattr(ops, "ALL_EXPERTS_WORK", 0)
    case = inputs(tokens, 16, 4, torch.bfloat16)
    one = ops.fused_experts_reference if instructions else ops.fused_experts_by_row
    assert torch.equal(fused_experts(*case), one(*case))


def test_all_experts_only_where_that_is_faster():
    """Few tokens, small experts, 16 bits."""
    _, gate_up, *_ = inputs(1, 16, 4, torch.bfloat16)
    most = ops.ALL_EXPERTS_WORK // gate_up.numel()
    shipped = torch.empty(16, 96, 256, dtype=torch.bfloat16)
    large = torch.empty(128, 1408, 2816, dtype=torch.bfloat16, device="meta")
    assert can_use_all(torch.zeros(most, 64, dtype=torch.bfloat16), gate_up)
    assert not can_use_all(torch.zeros(most + 1, 64, dtype=torch.bfloat16), gate_up)
    assert not can_use_all(torch.zeros(1, 64), gate_up.float())
    assert can_use_all(torch.zeros(32, 256, dtype=torch.bfloat16), shipped)
    assert not can_use_all(torch.zeros(1, 2816, dtype=torch.bfloat16), large)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unused_experts_are_not_read(dtype):
    """Their weights are NaN here; first, middle and last experts get no token."""
    x, gate_up, down, weights, ids = inputs(9, 8, 2, dtype, used=3)
    ids = torch.tensor([1, 4, 6])[ids]
    idle = [e for e in range(8) if e not in (1, 4, 6)]
    gate_up[idle], down[idle] = torch.nan, torch.nan
    case = (x, gate_up, down, weights, ids)
    got = fused_experts(*case)
    close = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, one_by_one(*case), rtol=close, atol=close)


def test_slots_of_a_token_may_come_in_any_order():
    x, gate_up, down, weights, ids = inputs(20, 8, 4, torch.float32)
    got = fused_experts(x, gate_up, down, weights.flip(1), ids.flip(1))
    torch.testing.assert_close(got, fused_experts(x, gate_up, down, weights, ids), rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
