"""Speculation in the engine: whatever the drafter says, a request's tokens are those of the target alone.

Every week all products of settings, and more samples; else each pair of a model, a shape and a head, and each setting
with a line and a tree.
"""

import random
import sys
from functools import cache

import pytest
import torch
from transformers import Gemma4ForCausalLM

from sglang.test.ci.ci_register import is_weekly, register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import DEVICE, engine, prompts
from sglang.test.hearsay import SHAPES, speculating, speculation_of, teach
from sglang.test.scheduler_harness import Harness
from sglang.test.tiny_models import make_tiny_assistant, make_tiny_gemma4

register_cpu_ci(est_time=25, suite="base-a-test-cpu")
register_cpu_ci(est_time=46, suite="weekly-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

torch.set_num_threads(1)
NEW_TOKENS = 20
WHOLE = DEVICE == "cuda" or is_weekly()
SETTINGS = {
    "plain": {},
    "small_chunks": {"chunked_prefill_size": 4},
    "no_cache": {"disable_radix_cache": True},
    "pressure": {"max_total_tokens": 150, "chunked_prefill_size": 8, "schedule_conservativeness": 0.1},
    "one_at_a_time": {"max_running_requests": 1},
}
TWO = ("line", "tree")
MODELS = ("moe_top4", "dense_k_eq_v", "odd_layers", "small_window")
DRAFTERS = [  # model, shape, whether the drafter's head is ordered
    (model, shape, ordered)
    for i, model in enumerate(MODELS)
    for j, shape in enumerate(TWO)
    for ordered in (False, True)
    if WHOLE or ordered == ((i + j) % 2 == 1)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    @cache
    def make(variant: str):
        return make_tiny_gemma4(tmp_path_factory.mktemp(variant), variant, dtype=torch.float32)

    return make


@pytest.fixture(scope="module")
def drafter(tmp_path_factory):
    @cache
    def make(variant: str, ordered: bool = False):
        return make_tiny_assistant(tmp_path_factory.mktemp("drafter"), variant, ordered, dtype=torch.float32)

    return make


@pytest.fixture(scope="module")
def oracle(folder):
    return cache(lambda variant: Gemma4ForCausalLM.from_pretrained(folder(variant), dtype=torch.float32).eval())


def serve(h: Harness, **request) -> dict[str, list[int]]:
    for i, prompt in enumerate(prompts()):
        h.add(f"r{i}", prompt, NEW_TOKENS, **request)
        h.step()
        h.step()
    h.run()
    h.kv.check_idle()
    return {rid: got.ids for rid, got in h.received.items()}


@torch.no_grad()
def plain_tokens(model, prompt: list[int], count: int = NEW_TOKENS) -> list[int]:
    """Greedy tokens of transformers, one forward each."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def answers(oracle):
    """Prompt and greedy output of each request."""

    @cache
    def of(variant: str) -> dict[str, tuple[list[int], list[int]]]:
        return {f"r{i}": (p, plain_tokens(oracle(variant), p)) for i, p in enumerate(prompts())}

    return of


@pytest.mark.parametrize(
    "variant,setting,shape",
    [("moe_top2", setting, s) for setting in SETTINGS for s in SHAPES if WHOLE or setting == "plain" or s in TWO]
    + [("ple_shared_double_wide", "pressure", shape) for shape in (SHAPES if WHOLE else TWO)],
)
def test_greedy_tokens_are_the_targets_own(variant: str, setting: str, shape: str, folder, drafter, answers):
    h = speculating(folder(variant), drafter(variant), shape, **SETTINGS[setting])
    teach(h, answers(variant))
    got = serve(h, params={"top_k": 1}, return_logprob=True)
    assert got == {rid: output for rid, (_, output) in answers(variant).items()}
    stats = h.scheduler.stats
    assert stats.verified < stats.accepted_tokens < stats.verified * (1 + SHAPES[shape][0])
    if setting == "pressure":
        assert stats.retractions > 0
    assert sum(r.finals[0].report.cached_tokens for r in h.received.values()) > 0 or setting == "no_cache"


@pytest.mark.parametrize(("variant", "shape", "ordered"), DRAFTERS)
def test_a_drafter_model_changes_no_token(variant: str, shape: str, ordered: bool, folder, drafter, answers):
    h = speculating(folder(variant), drafter(variant, ordered), shape)
    assert serve(h, params={"top_k": 1}) == {rid: output for rid, (_, output) in answers(variant).items()}
    assert h.scheduler.stats.verified > 0


@pytest.mark.parametrize("shape", TWO)
def test_a_tree_and_a_line_accept_what_they_should(shape: str, folder, drafter, answers):
    """A drafter that is always right has every draft accepted, to the end of each request."""
    h = speculating(folder("moe_top2"), drafter("moe_top2"), shape)
    teach(h, answers("moe_top2"), sure=100.0)
    serve(h, params={"top_k": 1})
    for rid, (prompt, output) in answers("moe_top2").items():
        tokens = prompt + output
        known = {(tokens[i - 1], i): tokens[i] for i in range(1, len(tokens))}
        if all(speculation_of(h).drafter.told[key] == token for key, token in known.items()):
            histogram = h.received[rid].finals[0].report.verified_drafts
            # 20 tokens: one of the prompt's step, six of each of three drafts, one more of the last
            assert histogram[5] == 3 and sum(histogram) == 4


@pytest.mark.parametrize("shape", TWO)
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
        {"temperature": 1.2, "min_p": 0.05, "logit_bias": {"7": 3.0}},
        {"top_k": 1, "frequency_penalty": 1.5, "presence_penalty": 0.5, "repetition_penalty": 1.3, "min_new_tokens": 9},
        {"temperature": 0.7, "frequency_penalty": 2.0, "repetition_penalty": 1.2},
    ],
)
def test_sampled_tokens_are_the_targets_own(shape: str, params: dict, folder, drafter):
    """Drawn tokens too: what the target samples at a place depends on the seed and the tokens before it alone."""
    path, plain = folder("dense_k_eq_v"), engine(folder("dense_k_eq_v"))
    drafting = speculating(path, drafter("dense_k_eq_v"), shape)
    outputs = []
    for h in (plain, drafting):
        if h is drafting:
            teach(h, {f"r{i}": (p, outputs[0][f"r{i}"]) for i, p in enumerate(prompts())}, sure=6.0)
        for i, prompt in enumerate(prompts()):
            h.add(f"r{i}", prompt, NEW_TOKENS, params={"sampling_seed": i, **params}, return_logprob=True)
        h.run()
        outputs.append({rid: got.ids for rid, got in h.received.items()})
    assert outputs[0] == outputs[1]
    for rid, got in plain.received.items():
        assert torch.allclose(torch.tensor(got.logprobs), torch.tensor(drafting.received[rid].logprobs), atol=1e-4)
    assert drafting.scheduler.stats.accepted_tokens > 1.3 * drafting.scheduler.stats.verified


@torch.no_grad()
@pytest.mark.parametrize("shape", TWO)
def test_sampling_is_unbiased(shape: str, folder, drafter, oracle):
    """Chi-square: the pairs of tokens at places 2 and 3, which come out of drafts, follow the target's distribution."""
    prompt, requests, top_k = prompts()[2], 1500 if WHOLE else 700, 3
    h = speculating(folder("moe_top2"), drafter("moe_top2"), shape)
    first = plain_tokens(oracle("moe_top2"), prompt, 1)
    teach(h, {"r": (prompt, plain_tokens(oracle("moe_top2"), prompt, 4))}, sure=100.0)  # it insists
    for seed in range(requests):
        params = {"sampling_seed": seed, "temperature": 1.5, "top_k": top_k, "logit_bias": {str(first[0]): 1.0}}
        h.add(f"r{seed}", prompt, 3, params=params)
    h.run()
    counts: dict[tuple[int, ...], int] = {}
    for got in h.received.values():
        counts[tuple(got.ids)] = counts.get(tuple(got.ids), 0) + 1

    def distribution(ids: list[int]) -> dict[int, float]:
        logits = oracle("moe_top2")(torch.tensor([ids])).logits[0, -1].clone()
        logits[first[0]] += 1.0
        best = (logits / 1.5).topk(top_k)
        return dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))

    expected: dict[tuple[int, ...], float] = {}
    for a, p in distribution(prompt).items():
        for b, q in distribution([*prompt, a]).items():
            expected |= {(a, b, c): p * q * r for c, r in distribution([*prompt, a, b]).items()}
    assert set(counts) <= set(expected)
    cells = [(counts.get(ids, 0), requests * p) for ids, p in expected.items()]
    rare = [(n, e) for n, e in cells if e < 5]
    cells = [(n, e) for n, e in cells if e >= 5] + [(sum(n for n, _ in rare), sum(e for _, e in rare))] * bool(rare)
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    freedom = len(cells) - 1
    # the 99.9 % quantile, after Wilson and Hilferty (1931)
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert freedom >= 8 and statistic < bound, (statistic, bound, freedom)
    assert h.scheduler.stats.accepted_tokens > 1.05 * h.scheduler.stats.verified


def test_stop_tokens_and_limits_cut_a_draft(folder, drafter, answers):
    h = speculating(folder("moe_top2"), drafter("moe_top2"), "line")
    teach(h, answers("moe_top2"), sure=100.0)
    rng = random.Random(0)
    wanted = {}
    for rid, (prompt, output) in answers("moe_top2").items():
        count, stop = rng.randrange(1, NEW_TOKENS), output[rng.randrange(NEW_TOKENS)]
        end = min(count, output.index(stop) + 1)
        wanted[rid] = output[:end]
        h.add(rid, prompt, count, params={"top_k": 1, "stop_token_ids": [stop]})
    h.run()
    assert {rid: got.ids for rid, got in h.received.items()} == wanted
    h.kv.check_idle()


def test_a_context_that_ends_inside_a_draft(folder, drafter, oracle):
    prompt = prompts()[4]
    h = speculating(folder("moe_top2"), drafter("moe_top2"), "line", context_length=len(prompt) + 9)
    expected = plain_tokens(oracle("moe_top2"), prompt, 9)
    teach(h, {"a": (prompt, expected)}, sure=100.0)
    h.add("a", prompt, 100, params={"top_k": 1})
    h.run()
    assert h.received["a"].ids == expected
    h.kv.check_idle()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
