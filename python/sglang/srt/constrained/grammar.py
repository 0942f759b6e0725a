"""Grammars: what a request's output must look like, token by token. The protocol, and what needs no library.

A mask is a row of int32 words, a bit a token: bit i % 32 of word i // 32 is set where token i may come next.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sglang.srt.managers.io_struct import ThoughtMarks

WORD_BITS = 32


class GrammarError(ValueError):
    """A grammar that can't be compiled, or that no text matches: one line that says where and why."""


class Grammar(Protocol):
    """How far one request's output has come in its grammar."""

    @property
    def ended(self) -> bool:
        """An end token has been accepted; nothing may follow."""
        ...

    def accept(self, token: int) -> bool:
        """Go on by a token; False, and no change, for one that the mask does not hold."""
        ...

    def fill(self, mask: np.ndarray) -> None:
        """Set `mask` [words] int32 to the tokens that may come next; end tokens are there where the output may end."""
        ...


class GrammarBackend(Protocol):
    """Compiles grammars. Calls may come from several threads."""

    def compile(self, kind: str, text: str) -> Grammar:
        """A grammar at its beginning; `kind` is json_schema, regex or ebnf. Raises GrammarError."""
        ...


def mask_words(vocab_size: int) -> int:
    return -(-vocab_size // WORD_BITS)


def set_bit(mask: np.ndarray, token: int, on: bool) -> None:
    bit = np.int64(1) << (token % WORD_BITS)
    word = int(mask[token // WORD_BITS]) & 0xFFFFFFFF
    word = word | bit if on else word & ~bit
    mask[token // WORD_BITS] = np.array(word, dtype=np.int64).astype(np.int32)


class AfterThought:
    """A grammar that begins behind a thought. In the thought all tokens may come but those that would end the answer
    or begin something else; whether there is a thought is the model's choice, unless the prompt ends in one."""

    def __init__(self, grammar: Grammar, marks: ThoughtMarks, prompt_ids: np.ndarray):
        self._grammar = grammar
        self._marks = marks
        self._inside = ends_in_thought(marks, prompt_ids)
        self._may_begin = marks.may_begin and not self._inside

    @property
    def ended(self) -> bool:
        return self._grammar.ended

    def accept(self, token: int) -> bool:
        if self._inside:
            self._inside = token != self._marks.end
            return True
        begins, self._may_begin = self._may_begin and token == self._marks.begin, False
        if begins:
            self._inside = True
            return True
        return self._grammar.accept(token)

    def fill(self, mask: np.ndarray) -> None:
        if self._inside:
            mask.fill(-1)
            for token in (self._marks.begin, *self._marks.others):
                set_bit(mask, token, False)
            return
        self._grammar.fill(mask)
        if self._may_begin:
            set_bit(mask, self._marks.begin, True)


def ends_in_thought(marks: ThoughtMarks, prompt_ids: Sequence[int] | np.ndarray) -> bool:
    """Whether the last of the marks in a prompt is one that begins a thought. It is near the end of a chat's prompt."""
    closing = {marks.end, *marks.others}
    for token_id in reversed(prompt_ids):
        if token_id == marks.begin:
            return True
        if token_id in closing:
            return False
    return False
