"""Grammars: what a request's output must look like, token by token. The protocol, and what needs no library.

A mask is a row of int32 words, a bit a token: bit i % 32 of word i // 32 is set where token i may come next.
"""

from collections import deque
from concurrent.futures import Future
from copy import copy
from typing import Protocol

import numpy as np

from sglang.srt.constrained.thoughts import ThoughtTracker
from sglang.srt.managers.io_struct import ThoughtMarks

WORD_BITS = 32
MAX_WHITESPACE = 20  # in a row between a JSON text's parts: enough to indent, and none goes on for ever
MAX_ROLLBACK = 256  # more than a draft has tokens in a row


class GrammarError(ValueError):
    """A grammar that can't be compiled, or that no text matches: one line that says where and why."""


class Grammar(Protocol):
    """How far one request's output has come in its grammar."""

    @property
    def ended(self) -> bool:
        """An end token has been accepted; nothing may follow."""
        ...

    def needs_mask(self, ahead: int) -> bool:
        """Whether some token may be barred behind the next ones, `ahead` at most, whatever these are."""
        ...

    def accept(self, token: int) -> bool:
        """Go on by a token; False, and no change, for one that the mask does not hold."""
        ...

    def rollback(self) -> None:
        """Take the last accepted token back. As many in a row as MAX_ROLLBACK."""
        ...

    def fill(self, mask: np.ndarray) -> None:
        """Set `mask` [words] int32 to the tokens that may come next; end tokens are there where the output may end."""
        ...


class Compiled(Protocol):
    """A grammar that any number of requests may use."""

    nbytes: int  # of memory, the same on all ranks

    def begin(self) -> Grammar:
        """A request's grammar at its beginning."""
        ...


class GrammarBackend(Protocol):
    """Compiles grammars. `kind` is json_schema, regex, ebnf, structural_tag or tools (Lark); or several of those with
    ` or ` between, `text` then being a JSON list of one text each."""

    def compile(self, kind: str, text: str) -> "Future[tuple[Compiled, bytes]]":
        """The grammar, and what load() makes the same of on another rank. Returns at once. The future fails with
        GrammarError where the grammar is at fault; work on one that is cancelled ends."""
        ...

    def prepare(self) -> None:
        """Begin to load what load() needs. Returns at once."""
        ...

    def load(self, kind: str, text: str, data: bytes) -> Compiled:
        """The grammar that another rank has compiled; may wait for what prepare() loads."""
        ...


def mask_words(vocab_size: int) -> int:
    return -(-vocab_size // WORD_BITS)


def set_bit(mask: np.ndarray, token: int, on: bool) -> None:
    bit = np.int64(1) << (token % WORD_BITS)
    word = int(mask[token // WORD_BITS]) & 0xFFFFFFFF
    word = word | bit if on else word & ~bit
    mask[token // WORD_BITS] = np.array(word, dtype=np.int64).astype(np.int32)


class AfterThought:
    """What may come in a thought and behind it. In the thought all tokens may come but those that would end the answer
    or begin something else, behind it what `grammar` allows; whether there is a thought is the model's choice, unless
    the prompt ends in one. Without a grammar anything may come, thoughts again and again.

    After `budget` tokens of thoughts, those of labels and marks not counted, one that is open is closed.
    """

    def __init__(self, grammar: Grammar | None, marks: ThoughtMarks, prompt_ids: np.ndarray, budget: int | None = None):
        self._grammar = grammar
        self._marks = marks
        self._thoughts = ThoughtTracker(marks, prompt_ids)
        self._may_begin = marks.may_begin and not self._thoughts.inside  # with a grammar
        self._barred = frozenset((marks.begin, *marks.others))  # in a thought, with a grammar
        self._budget = budget
        # Before each of the last tokens: the thoughts, whether one could begin, and whether the grammar took the token.
        self._before: deque[tuple[ThoughtTracker, bool, bool]] = deque(maxlen=MAX_ROLLBACK)

    @property
    def ended(self) -> bool:
        return self._grammar is not None and self._grammar.ended

    @property
    def _forced(self) -> int | None:
        """The only token that may come, where a thought must be closed."""
        thoughts = self._thoughts
        if self._budget is None or not thoughts.inside or thoughts.length < self._budget:
            return None
        return thoughts.way_out

    def needs_mask(self, ahead: int) -> bool:
        if self._grammar is not None:
            return True
        # A thought that has not begun takes one of those tokens for its mark.
        most = self._thoughts.length + (ahead if self._thoughts.inside else ahead - 1)
        return self._budget is not None and most >= self._budget and (self._thoughts.inside or ahead > 0)

    def accept(self, token: int) -> bool:
        if (forced := self._forced) is not None and token != forced:
            return False
        if self._grammar is not None and self._thoughts.inside and token in self._barred:
            return False
        may_begin = self._may_begin
        answers = self._grammar is not None and not self._thoughts.inside
        answers = answers and not (may_begin and token == self._marks.begin)
        if answers and not self._grammar.accept(token):
            return False
        self._before.append((copy(self._thoughts), may_begin, answers))
        self._may_begin = may_begin and self._thoughts.inside
        if not answers:
            self._thoughts.follow(token)
        return True

    def rollback(self) -> None:
        self._thoughts, self._may_begin, answers = self._before.pop()
        if answers:
            self._grammar.rollback()

    def fill(self, mask: np.ndarray) -> None:
        if (forced := self._forced) is not None:
            mask.fill(0)
            set_bit(mask, forced, True)
        elif self._grammar is None:
            mask.fill(-1)
        elif self._thoughts.inside:
            mask.fill(-1)
            for token in self._barred:
                set_bit(mask, token, False)
        else:
            self._grammar.fill(mask)
            if self._may_begin:
                set_bit(mask, self._marks.begin, True)
