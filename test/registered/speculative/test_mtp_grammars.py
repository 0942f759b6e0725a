"""Drafts of requests with grammars: the tokens, and their log-probabilities, are those of an engine without drafts."""

import random
import sys
from functools import cache

import pytest
import torch

from sglang.srt.managers.io_struct import ThoughtMarks
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.engine_harness import engine, prompts
from sglang.test.fake_grammar import give_grammars
from sglang.test.hearsay import speculating, speculation_of, teach
from sglang.test.scheduler_harness import Harness
from sglang.test.tiny_models import VOCAB, make_tiny_assistant, make_tiny_gemma4

register_cpu_ci(est_time=30, suite="base-a-test-cpu")
register_cuda_ci(est_time=40, stage="base-b", runner_config="1-gpu-large")

torch.set_num_threads(1)
VARIANT = "dense_k_eq_v"
END = VOCAB - 1
MARKS = ThoughtMarks(2, 3, [4], True, [5, 6], 6)
GREEDY = {"top_k": 1}
SETTINGS = {
    "plain": {},
    "pressure": {"max_total_tokens": 150, "chunked_prefill_size": 8, "schedule_conservativeness": 0.1},
    "deterministic": {"enable_deterministic_inference": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_gemma4(tmp_path_factory.mktemp("target"), VARIANT, dtype=torch.float32)


@pytest.fixture(scope="module")
def drafter(tmp_path_factory):
    return make_tiny_assistant(tmp_path_factory.mktemp("drafter"), VARIANT, False, dtype=torch.float32)


def grammar_of(seed: int) -> str:
    """For a FakeGrammar: a few tokens in some places, one in others, and many."""
    rng = random.Random(seed)
    return " ".join(
        ",".join(map(str, rng.sample(range(7, END), rng.choice([1, 2, 5, 60])))) for _ in range(rng.randrange(5, 30))
    )


def requests() -> list[tuple[list[int], dict]]:
    """Prompts, and what Harness.add() is told of them."""
    found = []
    for i, prompt in enumerate(prompts()):
        kinds = [
            {"params": GREEDY | {"regex": grammar_of(i)}},
            {"params": {"sampling_seed": i, "temperature": 0.9, "top_p": 0.9, "regex": grammar_of(i)}},
            {"params": GREEDY | {"frequency_penalty": 1.5, "logit_bias": {"9": 2.0}, "ebnf": grammar_of(i)}},
            {"params": GREEDY | {"regex": grammar_of(i), "thinking_budget": 3}, "thought_marks": MARKS},
            {"params": GREEDY | {"logit_bias": {"2": 9.0}, "thinking_budget": 2}, "thought_marks": MARKS},
            {"params": GREEDY},
        ]
        found += [(prompt if j < 3 else [*prompt, 2], fields) for j, fields in enumerate(kinds) if (i + j) % 2]
    return found


def serve(h: Harness) -> Harness:
    give_grammars(h, END)
    for i, (prompt, fields) in enumerate(requests()):
        h.add(f"r{i}", prompt, 40, ignore_eos=False, return_logprob=True, **fields)
        h.step()
    h.run()
    h.kv.check_idle()
    return h


@pytest.fixture(scope="module")
def plain(folder):
    return cache(lambda setting: serve(engine(folder, **SETTINGS[setting])))


@pytest.mark.parametrize("shape", ["line", "tree", "wide"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_tokens_are_those_without_drafts(setting: str, shape: str, folder, drafter, plain):
    want = plain("plain").received
    drafting = speculating(folder, drafter, shape, **SETTINGS[setting])
    teach(drafting, {name: (requests()[i][0], got.ids) for i, (name, got) in enumerate(sorted_by_number(want))})
    got = serve(drafting).received
    assert {name: r.ids for name, r in got.items()} == {name: r.ids for name, r in want.items()}
    for name, r in want.items():
        assert torch.allclose(torch.tensor(r.logprobs), torch.tensor(got[name].logprobs), atol=1e-4)
        assert (r.finals[0].finish.type, r.finals[0].finish.matched) == (
            got[name].finals[0].finish.type,
            got[name].finals[0].finish.matched,
        )
    stats = drafting.scheduler.stats
    assert stats.accepted_tokens > 1.3 * stats.verified, "some drafts are right"
    assert stats.accepted_tokens < 0.9 * stats.verified * (1 + speculation_of(drafting).settings.num_steps)
    assert setting != "pressure" or stats.retractions > 0


def sorted_by_number(received: dict) -> list:
    return sorted(received.items(), key=lambda item: int(item[0][1:]))


def test_overlap_and_deterministic_mode_change_nothing_without_drafts(folder, plain):
    want = {name: r.ids for name, r in plain("plain").received.items()}
    assert {name: r.ids for name, r in plain("deterministic").received.items()} == want
    alone = serve(engine(folder, disable_overlap_schedule=True))
    assert {name: r.ids for name, r in alone.received.items()} == want


def test_the_grammars_do_something(plain):
    finished = [r.finals[0].finish for r in plain("plain").received.values()]
    assert sum(f.type == "stop" and f.matched == END for f in finished) > 8
    assert sum(f.type == "length" for f in finished) > 3


@pytest.mark.parametrize("shape", ["line", "tree"])
def test_a_way_without_end_is_found_behind_a_draft(shape: str, folder, drafter):
    h = speculating(folder, drafter, shape)
    give_grammars(h, END)
    h.add("g", [7, 8], 40, params=GREEDY | {"regex": "9 10 11 - 12"})
    h.add("barred", [7, 8], 40, params=GREEDY | {"regex": "9 10 11", "logit_bias": {"11": -1e9}})
    h.add("r", [7, 8], 10, params=GREEDY)
    teach(h, {"g": ([7, 8], [9, 10, 11, 13, 13, 13])}, sure=100.0)
    h.run()
    finish = h.received["g"].finals[0].finish
    assert (finish.status_code, finish.message) == (400, "regex leads to where no token can follow")
    assert h.received["g"].ids == [9, 10, 11]
    assert len(h.received["r"].ids) == 10
    assert h.received["barred"].ids == [9, 10, 11, END], "a bias bars nothing for good"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
