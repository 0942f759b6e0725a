"""A grammar that begins behind a thought: what may come in the thought, before it, and when the prompt ends in one."""

import sys

import numpy as np
import pytest

from sglang.srt.constrained.grammar import AfterThought, ends_in_thought, mask_words, set_bit
from sglang.srt.managers.io_struct import ThoughtMarks
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_grammar import FakeGrammar, allowed

register_cpu_ci(est_time=2, suite="unit-test-cpu")

V = 70
BEGIN, END, OTHERS = 33, 34, [1, 63, 64]
LAST = V - 1  # ends a FakeGrammar's output


def marks(may_begin: bool = True) -> ThoughtMarks:
    return ThoughtMarks(BEGIN, END, OTHERS, may_begin)


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
    "prompt,inside",
    [
        ([], False),
        ([5, 6], False),
        ([BEGIN, 5], True),
        ([BEGIN, 5, END], False),
        ([BEGIN, 5, 63, 7], False),
        ([BEGIN, END, 5, BEGIN], True),
    ],
)
def test_prompts_that_end_in_a_thought(prompt, inside):
    assert ends_in_thought(marks(), np.array(prompt, dtype=np.int64)) is inside


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


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
