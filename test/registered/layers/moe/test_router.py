"""The router equals transformers' bit for bit in bfloat16 where no two experts tie, and on ties takes the lowest id."""

import sys

import pytest
import torch
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

from sglang.srt.layers.moe.router import Router, router_input
from sglang.srt.layers.moe.topk import topk_softmax
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="base-a-test-cpu")


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


@pytest.mark.parametrize(("hidden", "experts", "k"), [(64, 8, 2), (256, 16, 4), (2816, 128, 8)])
def test_router_is_transformers(hidden, experts, k):
    ours, theirs = routers(hidden, experts, k)
    h = torch.randn(300, hidden).to(torch.bfloat16) * 3
    probs, want_weights, want_ids = theirs(h)
    weights, ids = ours(h)
    assert weights.dtype == torch.float32 and weights.shape == ids.shape == (300, k)
    top = probs.sort(descending=True).values[:, : k + 1]
    clear = (top[:, :-1] > top[:, 1:]).all(-1)  # torch.topk promises nothing about the others
    assert clear.sum() > 100
    assert torch.equal(ids[clear], want_ids[clear])
    assert torch.equal(weights[clear], want_weights[clear])
    assert not torch.allclose(weights.sum(-1), torch.ones(300), atol=0.01)  # scaled after renormalising


def test_router_input_rounds_three_times():
    _, theirs = routers(2816, 16, 4)
    h = torch.randn(64, 2816).to(torch.bfloat16)
    want = theirs.norm(h) * theirs.scale * theirs.scalar_root_size
    assert torch.equal(router_input(h, theirs.scale, 2816**-0.5, 1e-6), want)
    folded = (theirs.norm(h).float() * theirs.scale.float() * 2816**-0.5).to(torch.bfloat16)
    assert not torch.equal(want, folded)


def plain_choice(logits: torch.Tensor, k: int) -> list[list[int]]:
    probs = torch.softmax(logits, -1, dtype=torch.float32).tolist()
    return [sorted(range(len(row)), key=lambda e: (-row[e], e))[:k] for row in probs]


@pytest.mark.parametrize("make", ["normal", "all_ties", "few_values", "signed_zeros", "huge", "one_certain"])
@pytest.mark.parametrize(("experts", "k"), [(8, 2), (16, 4), (128, 8), (4, 4)])
def test_topk_order_and_ties(experts, k, make):
    logits = torch.randn(200, experts).to(torch.bfloat16)
    if make == "all_ties":
        logits.fill_(1.5)
    elif make == "few_values":
        logits = logits.round()
    elif make == "signed_zeros":
        logits = logits.sign() * 0.0
    elif make == "huge":
        logits = logits * 1e4
    elif make == "one_certain":  # all other probabilities underflow to 0 and tie, though their logits differ
        logits[torch.arange(200), torch.randint(experts, (200,))] = 1e4
    scale = torch.rand(experts).to(torch.bfloat16) + 0.5
    weights, ids = topk_softmax(logits, k, scale)
    assert ids.tolist() == plain_choice(logits, k)
    probs = torch.softmax(logits, -1, dtype=torch.float32).gather(1, ids)
    assert torch.equal(weights, probs / probs.sum(-1, keepdim=True) * scale.float()[ids])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
