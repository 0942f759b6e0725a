"""The whole engine in an arena for two of its prompts: with the host tier the same bits, and fewer tokens computed."""

import logging
import random
import sys

import pytest
import torch

from sglang.srt.layers.attention.host_kv import HostKV, PinError
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import load
from sglang.test.tiny_models import VOCAB, make_tiny_gemma4, make_tiny_llama

register_cpu_ci(est_time=16, suite="base-a-test-cpu")
register_cuda_ci(est_time=30, stage="base-b", runner_config="1-gpu-large")

torch.set_num_threads(1)
SMALL = {
    "max_total_tokens": 150,
    "chunked_prefill_size": 32,
    "max_running_requests": 3,
    "enable_deterministic_inference": True,
}
TIER = {"enable_hierarchical_cache": True, "hicache_ratio": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_gemma4(tmp_path_factory.mktemp("model"), "moe_top2", dtype=torch.float32)


def answers(folder, turns: int = 2, **settings) -> tuple[dict, int, dict]:
    """Tokens and log-probabilities of four agents' turns, of whom two come at a time, how many prompt tokens were
    cached, and the scheduler's counts."""
    rng = random.Random(3)
    histories = [rng.choices(range(3, VOCAB), k=60) for _ in range(4)]
    h = load(folder, **SMALL | settings).harness()
    for turn in range(turns):
        for i, history in enumerate(histories):
            h.add(f"{turn}/{i}", history + list(range(5, 5 + 4 * turn)), 4, params={"top_k": 1}, return_logprob=True)
            if i % 2:
                h.run()
    cached = sum(got.finals[0].report.cached_tokens for got in h.received.values())
    return {name: (got.ids, got.logprobs) for name, got in h.received.items()}, cached, h.kv.usage()


def test_bits_are_equal_with_and_without_the_tier(folder):
    want, cached_without, _ = answers(folder)
    got, cached, usage = answers(folder, **TIER)
    assert got == want and len({token for ids, _ in got.values() for token in ids}) > 15
    assert cached_without == 0 and cached >= 4 * 58
    assert usage["host_loaded_tokens_total"] >= 4 * 58 and usage["host_cached"] <= usage["host_capacity"]


def test_a_model_without_sliding_layers(tmp_path):
    folder = make_tiny_llama(tmp_path, "llama", dtype=torch.float32)
    assert answers(folder, **TIER)[0] == answers(folder)[0]
    assert answers(folder, **TIER)[1] >= 4 * 58


def test_memory_that_cannot_be_locked_is_said_once(folder, monkeypatch, caplog):
    def refuse(*_):
        raise PinError("out of memory")

    monkeypatch.setattr(HostKV, "__init__", refuse)
    with caplog.at_level(logging.WARNING):
        _, cached, usage = answers(folder, turns=1, **TIER)
    assert [r.getMessage() for r in caplog.records if "tier" in r.getMessage()] == [
        "The host tier is off: its memory cannot be locked (out of memory)"
    ]
    assert cached == 0 and "host_cached" not in usage


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
