"""Scheduler and ModelRunner together against transformers: however a request is chunked, batched, cached, retracted and
resumed, its greedy tokens are those of one plain forward in transformers, and its log-probabilities agree.

Every week each model in each setting; else all settings for models whose caches differ, and a few for the others.
"""

import sys
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma4ForCausalLM

from sglang.test.ci.ci_register import is_weekly, register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import DEVICE, engine, prompts
from sglang.test.tiny_models import make_tiny_gemma4, make_tiny_llama

register_cpu_ci(est_time=20, suite="base-a-test-cpu")
register_cpu_ci(est_time=36, suite="weekly-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

torch.set_num_threads(1)
VARIANTS = [
    "moe_top2",
    "moe_top4",
    "dense_k_eq_v",
    "ple_shared_double_wide",
    "odd_layers",
    "small_window",
    "llama",
    "qwen3",
]
SETTINGS = {
    "plain": {},
    "small_chunks": {"chunked_prefill_size": 4},
    "unmixed": {"chunked_prefill_size": 7, "enable_mixed_chunk": False},
    "no_overlap": {"disable_overlap_schedule": True, "chunked_prefill_size": 9},
    "no_cache": {"disable_radix_cache": True},
    "pressure": {"max_total_tokens": 150, "chunked_prefill_size": 8, "schedule_conservativeness": 0.1},
    "one_at_a_time": {"max_running_requests": 1},
}
ALL_SETTINGS = ("moe_top2", "ple_shared_double_wide", "small_window")  # windows of two lengths, shared KV
FEW = ("plain", "pressure")
NEW_TOKENS = 20
WHOLE = DEVICE == "cuda" or is_weekly()
CASES = [(v, s) for v in VARIANTS for s in SETTINGS if WHOLE or v in ALL_SETTINGS or s in FEW]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    @cache
    def make(variant: str):
        path = tmp_path_factory.mktemp(variant)
        make = make_tiny_llama if variant in ("llama", "qwen3") else make_tiny_gemma4
        return make(path, variant, dtype=torch.float32)

    return make


@pytest.fixture(scope="module")
def oracle(folder):
    @cache
    def load(variant: str):
        cls = AutoModelForCausalLM if variant in ("llama", "qwen3") else Gemma4ForCausalLM
        return cls.from_pretrained(folder(variant), dtype=torch.float32).eval()

    return load


@torch.no_grad()
def check(model, prompt: list[int], got) -> None:
    """Every token is the argmax of one forward over all tokens, and every log-probability close to the oracle's."""
    assert len(got.ids) == NEW_TOKENS and len(got.finals) == 1
    logits = model(torch.tensor([prompt + got.ids[:-1]])).logits[0, len(prompt) - 1 :]
    assert got.ids == logits.argmax(-1).tolist()
    if got.logprobs:
        wanted = torch.log_softmax(logits, -1).amax(-1)
        assert torch.allclose(torch.tensor(got.logprobs), wanted, atol=1e-4)


@pytest.mark.parametrize(("variant", "setting"), CASES)
def test_tokens_are_those_of_a_plain_forward(variant: str, setting: str, folder, oracle):
    h = engine(folder(variant), **SETTINGS[setting])
    for i, prompt in enumerate(prompts()):
        h.add(f"r{i}", prompt, NEW_TOKENS, params={"top_k": 1}, return_logprob=i % 2 == 0)
        h.step()
        h.step()
    h.run()
    for i, prompt in enumerate(prompts()):
        check(oracle(variant), prompt, h.received[f"r{i}"])
    distinct = {token for r in h.received.values() for token in r.ids}
    assert len(distinct) > 30, "outputs that repeat one token would prove little"
    cached = sum(r.finals[0].report.cached_tokens for r in h.received.values())
    assert (cached > 0) == (setting != "no_cache")
    if setting == "pressure":
        assert h.scheduler.stats.retractions > 0
    h.kv.check_idle()


@torch.no_grad()
def test_prompt_logprobs_and_top_lists(folder, oracle):
    h = engine(folder("moe_top2"), chunked_prefill_size=6)
    prompt = prompts()[4]
    h.add("a", prompt, 3, params={"top_k": 1}, return_logprob=True, logprob_start_len=0, top_logprobs_num=2,
          token_ids_logprob=[5, 9])  # fmt: skip
    h.run()
    got = h.received["a"].prompt_logprobs
    wanted = torch.log_softmax(oracle("moe_top2")(torch.tensor([prompt])).logits[0], -1)
    assert got.values[0] is None and got.ids == prompt
    rows = torch.arange(len(prompt) - 1)
    assert torch.allclose(torch.tensor(got.values[1:]), wanted[rows, prompt[1:]], atol=1e-4)
    assert torch.allclose(torch.tensor(got.selected[1:]), wanted[:-1, [5, 9]], atol=1e-4)
    top = wanted[:-1].topk(2)
    assert [[token for _, token in row] for row in got.top[1:]] == top.indices.tolist()


@torch.no_grad()
@pytest.mark.parametrize("original", [False, True])
def test_output_logprobs_with_a_temperature(original: bool, folder, oracle, monkeypatch):
    monkeypatch.setenv("SGLANG_RETURN_ORIGINAL_LOGPROB", "1" if original else "0")
    h, prompt = engine(folder("moe_top2")), prompts()[4]
    h.add("a", prompt, NEW_TOKENS, params={"temperature": 0.5, "sampling_seed": 3}, return_logprob=True)
    h.run()
    got = h.received["a"]
    logits = oracle("moe_top2")(torch.tensor([prompt + got.ids[:-1]])).logits[0, len(prompt) - 1 :].double()
    wanted = torch.log_softmax(logits if original else logits / 0.5, -1)
    assert torch.allclose(torch.tensor(got.logprobs).double(), wanted[range(NEW_TOKENS), got.ids], atol=1e-4)


def test_sampled_tokens_depend_on_the_seed_and_not_on_the_company(folder):
    alone, together = engine(folder("dense_k_eq_v")), engine(folder("dense_k_eq_v"), chunked_prefill_size=5)
    for i, prompt in enumerate(prompts()):
        params = {"sampling_seed": i, "temperature": 0.8, "top_k": 40, "top_p": 0.95}
        alone.add(f"r{i}", prompt, NEW_TOKENS, params=params)
        alone.run()
        together.add(f"r{i}", prompt, NEW_TOKENS, params=params)
    together.run()
    outputs = [alone.received[f"r{i}"].ids for i in range(len(prompts()))]
    assert outputs == [together.received[f"r{i}"].ids for i in range(len(prompts()))]
    assert outputs[5] != outputs[8], "equal prompts with other seeds"


def test_penalties_survive_retraction(folder):
    """Token counts are rebuilt when a request resumes: the same tokens as without pressure."""
    params = {"top_k": 1, "frequency_penalty": 1.5, "repetition_penalty": 1.3, "min_new_tokens": 3}
    free = engine(folder("moe_top2"))
    tight = engine(folder("moe_top2"), max_total_tokens=150, chunked_prefill_size=8, schedule_conservativeness=0.1)
    for h in (free, tight):
        for i, prompt in enumerate(prompts()):
            h.add(f"r{i}", prompt, NEW_TOKENS, params=params)
        h.run()
    assert tight.scheduler.stats.retractions > 0
    for i in range(len(prompts())):
        assert free.received[f"r{i}"].ids == tight.received[f"r{i}"].ids


def test_a_failing_step_comes_out_of_the_scheduler(folder):
    h = engine(folder("moe_top2"))

    def fail(*_):
        raise RuntimeError("device lost")

    h.worker.runner.model.compute_logits = fail
    h.add("a", [5, 6], 4)
    with pytest.raises(RuntimeError, match="device lost"):
        h.run()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
