"""A grammar that begins behind a thought: what may come in the thought, before it, and when the prompt ends in one."""

import itertools
import random
import sys

import numpy as np
import pytest

from sglang.srt.constrained.grammar import AfterThought, mask_words, set_bit
from sglang.srt.constrained.thoughts import ThoughtTracker, thought_start
from sglang.srt.managers.io_struct import ThoughtMarks
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_grammar import FakeGrammar, allowed

register_cpu_ci(est_time=2, suite="unit-test-cpu")

V = 70
BEGIN, END, OTHERS = 33, 34, [1, 63, 64]
LABEL, NEWLINE = 40, 41
LAST = V - 1  # ends a FakeGrammar's output


def marks(may_begin: bool = True) -> ThoughtMarks:
    return ThoughtMarks(BEGIN, END, OTHERS, may_begin, label=[LABEL, NEWLINE], newline=NEWLINE)


def next_tokens(grammar) -> set[int]:
    mask = np.zeros(mask_words(V), dtype=np.int32)
    grammar.fill(mask)
    return allowed(mask, V)


@pytest.mark.parametrize("token", [0, 31, 32, 63, 69])
def test_bits_of_a_mask(token: int):
    mask = np.zeros(mask_words(V), dtype=np.int32)
    set_bit(mask, token, True)
    assert allowed(mask, V) == {token}
    mask.fill(-1)
    set_bit(mask, token, False)
    assert allowed(mask, V) == set(range(V)) - {token}


@pytest.mark.parametrize(
    "prompt,start",
    [
        ([], None),
        ([5, 6], None),
        ([BEGIN, 5], 1),
        ([BEGIN, 5, END], None),
        ([BEGIN, 5, 63, 7], None),
        ([BEGIN, END, 5, BEGIN], 4),
    ],
)
def test_prompts_that_end_in_a_thought(prompt, start):
    assert thought_start(marks(), np.array(prompt, dtype=np.int64)) == start


def test_the_grammar_begins_behind_the_thought():
    grammar = AfterThought(FakeGrammar([{7}, {8}], LAST), marks(), np.array([5]))
    assert next_tokens(grammar) == {7, BEGIN}
    assert grammar.accept(BEGIN)
    for token in (20, 7, 8, 2):
        assert next_tokens(grammar) == set(range(V)) - {BEGIN, *OTHERS}
        assert grammar.accept(token) and not grammar.ended
    assert grammar.accept(END)
    assert next_tokens(grammar) == {7}, "one thought is enough"
    assert not grammar.accept(BEGIN)
    assert grammar.accept(7) and grammar.accept(8) and next_tokens(grammar) == {LAST}
    assert grammar.accept(LAST) and grammar.ended


def test_an_answer_without_a_thought():
    grammar = AfterThought(FakeGrammar([{7}, {8}], LAST), marks(), np.array([5]))
    assert grammar.accept(7)
    assert next_tokens(grammar) == {8}


def test_no_thought_where_none_is_wanted():
    grammar = AfterThought(FakeGrammar([{7}], LAST), marks(may_begin=False), np.array([BEGIN, END]))
    assert next_tokens(grammar) == {7} and not grammar.accept(BEGIN)


@pytest.mark.parametrize("may_begin", [True, False])
def test_a_prompt_that_ends_in_a_thought(may_begin):
    grammar = AfterThought(FakeGrammar([{7}], LAST), marks(may_begin), np.array([BEGIN, 5]))
    assert 50 in next_tokens(grammar) and grammar.accept(50) and grammar.accept(END)
    assert next_tokens(grammar) == {7}


# ---- a budget of thought tokens ------------------------------------------------------------------------------------


def tokens_of(grammar, wanted: list[int]) -> list[int]:
    """What comes of a model that wants these tokens, each where it may come, else what must."""
    out = []
    for token in wanted:
        may = next_tokens(grammar)
        out.append(token if token in may else min(may))
        assert grammar.accept(out[-1])
    return out


@pytest.mark.parametrize(
    "budget,prompt,wanted,got",
    [
        (2, [], [BEGIN, LABEL, NEWLINE, 5, 6, 7, 7, 8], [BEGIN, LABEL, NEWLINE, 5, 6, NEWLINE, END, 8]),
        (2, [], [BEGIN, LABEL, NEWLINE, 5, NEWLINE, 7, 8], [BEGIN, LABEL, NEWLINE, 5, NEWLINE, END, 8]),
        (2, [], [BEGIN, LABEL, NEWLINE, 5, END, 8, 9], [BEGIN, LABEL, NEWLINE, 5, END, 8, 9]),
        (0, [], [BEGIN, 7, 7, 7, 8], [BEGIN, LABEL, NEWLINE, END, 8]),
        (0, [], [5, 6, 7], [5, 6, 7]),
        (1, [], [BEGIN, LABEL, 7, 7, 7, 8], [BEGIN, LABEL, 7, NEWLINE, END, 8]),
        (3, [], [BEGIN, 5, 6, 7, 8, 9], [BEGIN, 5, 6, 7, NEWLINE, END]),
        (0, [BEGIN, LABEL, NEWLINE], [5, 6], [END, 6]),
        (0, [BEGIN, LABEL], [5, 5, 6], [NEWLINE, END, 6]),
        (1, [BEGIN, LABEL, NEWLINE, 9, 9], [5, 5, 5, 6], [5, NEWLINE, END, 6]),
        # of all thoughts together
        (2, [], [BEGIN, 5, END, 9, BEGIN, 6, 7, 8, 9], [BEGIN, 5, END, 9, BEGIN, 6, NEWLINE, END, 9]),
        (1, [], [BEGIN, 5, END, 9, BEGIN, 7, 7, 7, 9], [BEGIN, 5, NEWLINE, END, BEGIN, LABEL, NEWLINE, END, 9]),
        # what ends a thought ends it here, too
        (1, [], [BEGIN, 63, 7, 7, 7], [BEGIN, 63, 7, 7, 7]),
    ],
)
def test_a_budget(budget, prompt, wanted, got):
    assert tokens_of(AfterThought(None, marks(), np.array(prompt), budget), wanted) == got


def test_a_budget_and_a_grammar():
    grammar = AfterThought(FakeGrammar([{7}, {8}], LAST), marks(), np.array([5]), 2)
    wanted = [BEGIN, LABEL, NEWLINE, 20, 21, 22, 23, 7, 8, LAST]
    assert tokens_of(grammar, wanted) == [BEGIN, LABEL, NEWLINE, 20, 21, NEWLINE, END, 7, 8, LAST]
    assert grammar.ended


def test_no_other_token_closes_a_thought():
    grammar = AfterThought(None, marks(), np.array([BEGIN, LABEL, NEWLINE]), 0)
    assert not grammar.accept(5) and grammar.accept(END)


def test_a_mask_is_asked_for_wherever_one_may_be_needed():
    """For every output of 5 tokens: where a mask bars something, it was asked for however early that was."""
    alphabet = [5, BEGIN, END, LABEL, NEWLINE]
    for output in itertools.product(alphabet, repeat=5):
        grammar = AfterThought(None, marks(), np.array([]), 1)
        asked: list[list[bool]] = []
        for at, token in enumerate(output):
            asked.append([grammar.needs_mask(ahead) for ahead in range(3)])
            may = next_tokens(grammar)
            if may != set(range(V)):
                assert all(asked[at - ahead][ahead] for ahead in range(3) if ahead <= at), output
            else:
                assert not asked[at][0]
            assert grammar.accept(token if token in may else min(may))


@pytest.mark.parametrize("budget", [None, 0, 3])
@pytest.mark.parametrize("may_begin", [True, False])
@pytest.mark.parametrize("with_grammar", [True, False])
def test_tokens_taken_back_were_never_there(budget, may_begin, with_grammar):
    """Random ways of some tokens and back again; a refused one changes nothing either."""
    rng = random.Random(4)
    for prompt in ([5], [BEGIN], [BEGIN, LABEL, 9]):
        grammar = FakeGrammar([{7, 8}, {8}, {9, 10}], LAST) if with_grammar else None
        after = AfterThought(grammar, marks(may_begin), np.array(prompt), budget)
        while not after.ended:
            before, taken = next_tokens(after), 0
            for _ in range(rng.randrange(6)):
                taken += after.accept(rng.choice([*range(V), BEGIN, END, 7, 8, 9, LAST]))
                if after.ended:
                    break
            for _ in range(taken):
                after.rollback()
            assert next_tokens(after) == before
            barred = sorted(set(range(V)) - before)
            assert not any(after.accept(token) for token in barred)
            assert next_tokens(after) == before
            assert after.accept(rng.choice(sorted(before)))
            if grammar is None and rng.random() < 0.02:
                break


def test_without_a_label_or_a_newline():
    bare = ThoughtMarks(BEGIN, END, OTHERS, True)
    assert tokens_of(AfterThought(None, bare, np.array([]), 1), [BEGIN, 5, 6, 7]) == [BEGIN, 5, END, 7]


def test_thought_tokens_are_counted_with_their_marks():
    tracker = ThoughtTracker(marks(), [BEGIN, LABEL])
    for token in (NEWLINE, 5, END, 6, BEGIN, 7, 63, 8):
        tracker.follow(token)
    assert (tracker.tokens, tracker.length, tracker.inside) == (5, 2, False)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
