"""The router against transformers' and against plain Python: the same experts wherever no two tie, ties to the lowest
id, every rounding where docs/numerics.md says it is. test_router_kernels.py holds the kernels to these bits."""

import sys
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

from sglang.srt.distributed.tensor_parallel import SINGLE
from sglang.srt.layers.moe.router import Router
from sglang.srt.managers.run_scheduler import resolve_for_model
from sglang.srt.model_loader.loader import build_model
from sglang.srt.ops.invariance.mode import batch_invariant
from sglang.srt.ops.moe.router_norm import router_norm_reference
from sglang.srt.ops.moe.topk import topk_softmax_reference
from sglang.srt.ops.products.linear import float32_product
from sglang.srt.server_args import ServerArgs
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=6, suite="base-a-test-cpu")

SIZES = [(64, 8, 2), (256, 16, 4), (2816, 128, 8)]  # hidden, experts, k
# The float32 arguments whose exp is nearest to a point halfway between two float32 (scripts/check_exp_rounding.py).
HARDEST = [
    *("-0x1.d2259ap3", "-0x1.e1dbe2p-8", "-0x1.c1c4b8p-10", "-0x1p-25", "-0x1.548c34p-7", "-0x1.f02a66p1"),
    *("-0x1.6e1dd0p-8", "-0x1.7acc62p3", "-0x1.71e81ep-6", "-0x1.7f4296p0", "-0x1.e981d4p-16", "-0x1.93813ep-16"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def routers(hidden: int, experts: int, k: int) -> tuple[Router, Gemma4TextRouter]:
    config = Gemma4TextConfig(
        hidden_size=hidden, enable_moe_block=True, num_experts=experts, top_k_experts=k, moe_intermediate_size=8
    )
    theirs = Gemma4TextRouter(config).to(torch.bfloat16).requires_grad_(False)
    theirs.scale.uniform_(0.5, 1.5)
    theirs.per_expert_scale.uniform_(0.5, 1.5)
    theirs.proj.weight.normal_(0, 1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        ours = Router(hidden, experts, k, config.rms_norm_eps)
    finally:
        torch.set_default_dtype(torch.float32)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("hidden", "experts", "k"), SIZES)
def test_router_is_transformers(hidden, experts, k):
    ours, theirs = routers(hidden, experts, k)
    h = torch.randn(300, hidden).to(torch.bfloat16) * 3
    theirs_input = theirs.norm(h) * theirs.scale * theirs.scalar_root_size
    equal = (router_norm_reference(h, ours.scale, ours.root, ours.eps) == theirs_input).all(-1)
    assert equal.sum() >= 297  # the order of the norm's sum seldom reaches a rounding
    probs, want_weights, want_ids = theirs(h)
    weights, ids = ours(h)
    assert weights.dtype == torch.float32 and ids.dtype == torch.int64 and weights.shape == ids.shape == (300, k)
    top = probs.sort(descending=True).values[:, : k + 1]
    clear = (top[:, :-1] > top[:, 1:]).all(-1) & equal  # torch.topk promises nothing about the others
    assert clear.sum() > 100
    assert torch.equal(ids[clear], want_ids[clear])
    torch.testing.assert_close(weights[clear], want_weights[clear], rtol=2e-6, atol=0)
    assert not torch.allclose(weights.sum(-1), torch.ones(300), atol=0.01)  # scaled after renormalising


def test_router_input_rounds_three_times():
    _, theirs = routers(2816, 16, 4)
    h = torch.randn(64, 2816).to(torch.bfloat16)
    want = theirs.norm(h) * theirs.scale * theirs.scalar_root_size
    got = router_norm_reference(h, theirs.scale, 2816**-0.5, 1e-6)
    assert (got == want).float().mean() > 0.9999
    folded = (theirs.norm(h).float() * theirs.scale.float() * 2816**-0.5).to(torch.bfloat16)
    assert (got == folded).float().mean() < 0.9


def test_float32_logits_are_not_rounded():
    ours, _ = routers(2816, 128, 8)
    r = torch.randn(50, 2816).to(torch.bfloat16)
    rounded = ours.logits(r)
    ours.float32_logits = True
    logits = ours.logits(r)
    exact = r.double() @ ours.proj.weight.double().T
    assert logits.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    assert (logits - exact).abs().max() < 1e-4 * exact.std() < (rounded - exact).abs().max()
    weights, ids = ours(torch.randn(50, 2816).to(torch.bfloat16))
    assert weights.dtype == torch.float32 and ids.dtype == torch.int64


def test_float32_logits_in_batch_invariant_mode():
    ours, _ = routers(256, 16, 4)
    r = torch.randn(37, 256).to(torch.bfloat16)
    with batch_invariant():
        together = float32_product(r, ours.proj.weight)
        alone = torch.cat([float32_product(row, ours.proj.weight) for row in r.split(1)])
    assert together.dtype == torch.float32 and torch.equal(together, alone)


def test_the_flag_reaches_every_router():
    for dtype, wanted in (("model", False), ("float32", True)):
        _, config = resolve_for_model(ServerArgs(router_logits_dtype=dtype, device="cpu"))
        model = build_model(config, torch.device("meta"), SINGLE)
        found = [module.float32_logits for module in model.modules() if isinstance(module, Router)]
        assert found == [wanted] * 6


def correctly_rounded_exp(y: float) -> np.float32:
    """exp(y) in forty digits, then the nearer of the two float32 around it."""
    getcontext().prec = 40
    exact = Fraction(Decimal(y).exp())
    near = np.float32(float(exact))
    around = {near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(2))}
    return min(around, key=lambda value: abs(Fraction(float(value)) - exact))


def tree_sum(values: list[np.float32]) -> np.float32:
    values = values + [np.float32(0)] * ((1 << (len(values) - 1).bit_length()) - len(values))
    while len(values) > 1:
        half = len(values) // 2
        values = [a + b for a, b in zip(values[:half], values[half:], strict=True)]
    return values[0]


def plain_choice(logits: list[float], k: int, scale: list[float]) -> tuple[list[float], list[int]]:
    """One row, step by step, in numpy's float32 scalars."""
    row = [np.float32(x) for x in logits]
    e = [correctly_rounded_exp(float(x - max(row))) for x in row]
    total = tree_sum(e)
    probs = [x / total for x in e]
    ids = sorted(range(len(row)), key=lambda i: (-probs[i], i))[:k]
    total = tree_sum([probs[i] for i in ids])
    return [float(probs[i] / total * np.float32(scale[i])) for i in ids], ids


def test_exp_is_correctly_rounded():
    """Where it is hardest, where results are subnormal or 0, and anywhere."""
    hardest = torch.tensor([float.fromhex(y) for y in HARDEST])
    y = torch.cat(
        (
            hardest,
            -torch.rand(300) * 20,
            -80 - torch.rand(300) * 25,
            -(2.0 ** -torch.arange(1, 40)),
            -1e4 * torch.rand(9),
        )
    )
    for exp in (
        y.double().exp().float(),
        torch.cat([x.double().exp().float() for x in y.split(1)]),
    ):  # vectors, scalars
        assert exp.tolist() == [float(correctly_rounded_exp(x)) for x in y.tolist()]
    assert (np.exp(y.numpy().astype(np.float64)).astype(np.float32) == exp.numpy()).all()  # the interpreter's


@pytest.mark.parametrize("make", ["normal", "all_ties", "few_values", "signed_zeros", "huge", "one_certain", "wide"])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (8, 2), (13, 5), (128, 8), (4, 4)])
def test_topk_is_plain_python(experts, k, make):
    logits = torch.randn(20, experts).to(torch.bfloat16)
    if make == "all_ties":
        logits.fill_(1.5)
    elif make == "few_values":
        logits = logits.round()
    elif make == "signed_zeros":
        logits = logits.sign() * 0.0
    elif make == "huge":
        logits = logits * 1e4
    elif make == "one_certain":  # all other probabilities underflow to 0 and tie, though their logits differ
        logits[torch.arange(20), torch.randint(experts, (20,))] = 1e4
    elif make == "wide":
        logits = logits * 40
    scale = torch.rand(experts).to(torch.bfloat16) + 0.5
    weights, ids = topk_softmax_reference(logits, k, scale)
    want = [plain_choice(row, k, scale.tolist()) for row in logits.tolist()]
    assert ids.tolist() == [row[1] for row in want]
    assert weights.tolist() == [row[0] for row in want]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_without_a_softmax(dtype):
    """They get experts that exist and weights that show; rows beside them are not touched."""
    good = torch.randn(12).to(dtype)
    rows = {"nan": good.clone(), "inf": good.clone(), "two inf": good.clone(), "none": torch.full((12,), -torch.inf)}
    rows["nan"][7], rows["inf"][3], rows["two inf"][[5, 9]] = torch.nan, torch.inf, torch.inf
    logits = torch.stack([good, *(row.to(dtype) for row in rows.values())])
    scale = torch.ones(12)
    weights, ids = topk_softmax_reference(logits, 4, scale)
    assert weights[1:].isnan().all() and ids[1:].tolist() == [[0, 1, 2, 3]] * 4
    assert torch.equal(weights[:1], topk_softmax_reference(logits[:1], 4, scale)[0])
    some = good.clone()
    some[2:] = -torch.inf  # ruled out: probability 0, which ties
    weights, ids = topk_softmax_reference(some[None], 4, scale)
    assert ids[0, 2:].tolist() == [2, 3] and weights[0, 2:].tolist() == [0, 0] and weights[0, :2].sum() > 0.99


def test_a_row_does_not_depend_on_the_others():
    logits = torch.randn(67, 128).to(torch.bfloat16)
    scale = torch.rand(128).to(torch.bfloat16)
    all_weights, all_ids = topk_softmax_reference(logits, 8, scale)
    for row in (0, 31, 66):
        weights, ids = topk_softmax_reference(logits[row : row + 1], 8, scale)
        assert torch.equal(weights[0], all_weights[row]) and torch.equal(ids[0], all_ids[row])


def test_no_tokens():
    weights, ids = topk_softmax_reference(torch.empty(0, 16), 4, torch.ones(16))
    assert weights.shape == ids.shape == (0, 4) and ids.dtype == torch.int64


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
