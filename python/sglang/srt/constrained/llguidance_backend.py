"""Grammars of the llguidance library, tried out by llguidance_compile.py."""

import numpy as np

from sglang.srt.constrained.compiling_backend import CompilingBackend
from sglang.srt.constrained.grammar import mask_words
from sglang.srt.constrained.llguidance_compile import load_tokens


class LLGuidanceBackend(CompilingBackend):
    library = "llguidance"
    module = "sglang.srt.constrained.llguidance_compile"
    seconds = 5.0  # it takes as long again in the scheduler, in a thread

    def _load_tokens(self, first: bytes):
        return load_tokens(self._settings)

    def _unpack(self, tokens, data: bytes) -> "LLGuidanceCompiled":
        import llguidance

        matcher = llguidance.LLMatcher(tokens, data.decode(), log_level=0)
        return LLGuidanceCompiled(matcher, tokens)


class LLGuidanceCompiled:
    """See Compiled."""

    nbytes = 1 << 20  # the library does not tell; a lexer's states have 1 to 2 kB each

    def __init__(self, matcher, tokens):
        self._matcher, self._tokens = matcher, tokens

    def begin(self) -> "LLGuidanceGrammar":
        """See Compiled."""
        return LLGuidanceGrammar(self._matcher.deep_copy(), self._tokens)


class LLGuidanceGrammar:
    """A matcher of the library as a Grammar. One that has met a limit of the library's allows nothing any more."""

    def __init__(self, matcher, tokens):
        self._matcher = matcher
        self._words, self._eos_token_ids = mask_words(tokens.vocab_size), frozenset(tokens.eos_tokens)
        self.ended = False

    def needs_mask(self, ahead: int) -> bool:
        return True

    def accept(self, token: int) -> bool:
        if self.ended:
            return False
        if token in self._eos_token_ids:  # the library takes none where nothing else may follow
            self.ended = self._matcher.is_accepting()
            return self.ended
        return bool(self._matcher.try_consume_tokens([token]))

    def rollback(self) -> None:
        if self.ended:
            self.ended = False
        else:
            self._matcher.rollback(1)

    def fill(self, mask: np.ndarray) -> None:
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, self._words * mask.itemsize)
        mask[self._words :] = 0
        if self._matcher.is_error():
            mask.fill(0)
