"""Budgets of thought tokens in the scheduler: every output is the one of a model that is asked token by token, alone,
however steps overlap and requests are retracted."""

import random
import sys

import numpy as np
import pytest

from sglang.srt.constrained.grammar import AfterThought, mask_words
from sglang.srt.managers.io_struct import ThoughtMarks
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_grammar import FakeGrammar, MaskedWorker, allowed, give_grammars, masked_token
from sglang.test.fake_worker import expected_output
from sglang.test.scheduler_harness import Harness

register_cpu_ci(est_time=5, suite="unit-test-cpu")

VOCAB = 24  # so few that thoughts begin and end often
BEGIN, END, OTHER, LABEL, NEWLINE = 2, 3, 4, 5, 6
MARKS = ThoughtMarks(BEGIN, END, [OTHER], True, [LABEL, NEWLINE], NEWLINE)


def harness(**settings) -> Harness:
    sizes = {"full_size": 160, "swa_size": 100, "window": 8, "rows": 8, "max_len": 128} | {
        name: settings.pop(name) for name in ("full_size", "swa_size") if name in settings
    }
    shape = ArenaShape.apart(sizes.pop("full_size"), sizes.pop("swa_size"))
    worker = MaskedWorker(shape, vocab_size=VOCAB, **sizes)
    settings = {"vocab_size": VOCAB, "conservativeness": 0.1} | settings
    h = Harness(shape=shape, **sizes, worker=worker, **settings)
    give_grammars(h, VOCAB - 1)
    return h


def expected(prompt: list[int], count: int, budget: int, grammar=None) -> list[int]:
    """Token by token, with a mask for each."""
    after = AfterThought(grammar, MARKS, np.array(prompt), budget)
    tokens = list(prompt)
    for _ in range(count):
        mask = np.zeros(mask_words(VOCAB), dtype=np.int32)
        after.fill(mask)
        tokens.append(masked_token(tokens, allowed(mask, VOCAB), VOCAB))
        assert after.accept(tokens[-1])
        if after.ended:
            break
    return tokens[len(prompt) :]


def prompt_of(rng: random.Random) -> list[int]:
    prompt = rng.choices(range(7, VOCAB - 1), k=rng.randrange(1, 40))
    return prompt + rng.choice([[], [BEGIN], [BEGIN, LABEL, NEWLINE], [BEGIN, 9, 9]])


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_budgets_among_others(overlap: bool, mixed: bool):
    h = harness(overlap=overlap, mixed=mixed)
    rng, wanted = random.Random(2), {}
    for i in range(40):
        prompt = prompt_of(rng)
        if i % 4 == 3:
            wanted[f"r{i}"] = expected_output(prompt, 20, VOCAB)
            h.add(f"r{i}", prompt, max_new_tokens=20)
        else:
            budget = rng.randrange(0, 8)
            wanted[f"r{i}"] = expected(prompt, 30, budget)
            h.add(f"r{i}", prompt, 30, params={"thinking_budget": budget}, thought_marks=MARKS)
        for _ in range(rng.randrange(0, 4)):
            h.step()
    h.run()
    assert {name: got.ids for name, got in h.received.items()} == wanted
    assert h.scheduler.stats.retractions > 0
    assert 20 < h.worker.held_steps < h.worker.steps, "steps far from a budget's end are not held"


@pytest.mark.parametrize("overlap", [True, False])
def test_with_a_grammar_behind_the_thought(overlap: bool):
    h = harness(overlap=overlap)
    wanted = {}
    for i, budget in enumerate([0, 1, 5]):
        prompt = [9, 10 + i, BEGIN]
        h.add(f"g{i}", prompt, 60, params={"regex": "8,9 10", "thinking_budget": budget}, thought_marks=MARKS)
        h.step()
        wanted[f"g{i}"] = expected(prompt, 60, budget, FakeGrammar([{8, 9}, {10}], VOCAB - 1))
    h.run()
    assert {name: got.ids for name, got in h.received.items()} == wanted
    assert all(got.finals[0].finish.type == "stop" for got in h.received.values())


def test_a_step_is_held_only_where_a_thought_may_have_to_end():
    h = harness()
    h.add("far", [7, BEGIN], 20, params={"thinking_budget": 100}, thought_marks=MARKS)
    h.run()
    assert h.worker.held_steps == 0
    assert h.received["far"].ids == expected_output([7, BEGIN], 20, VOCAB)


def test_what_a_thought_looks_like_must_be_known():
    h = harness()
    h.add("a", [7], params={"thinking_budget": 3})
    h.run()
    assert h.received["a"].finals[0].finish.status_code == 400


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
