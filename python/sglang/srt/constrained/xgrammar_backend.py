"""Grammars of the xgrammar library, compiled by xgrammar_compile.py."""

import numpy as np

from sglang.srt.constrained.compiling_backend import CompilingBackend
from sglang.srt.constrained.xgrammar_compile import new_matcher, tokenizer_info


class XGrammarBackend(CompilingBackend):
    library = "xgrammar"
    module = "sglang.srt.constrained.xgrammar_compile"
    seconds = 30.0

    def _load_tokens(self, first: bytes):
        import xgrammar  # late: it takes seconds

        if first:
            return xgrammar.TokenizerInfo.deserialize_json(first.decode())
        return tokenizer_info(self._settings)

    def _unpack(self, tokens, data: bytes) -> "XGrammarCompiled":
        import xgrammar

        compiled = xgrammar.CompiledGrammar.deserialize_json(data.decode(), tokens)
        return XGrammarCompiled(compiled, self._settings.eos_token_ids)


class XGrammarCompiled:
    """See Compiled."""

    def __init__(self, compiled, eos_token_ids: list[int]):
        self._compiled, self._eos_token_ids = compiled, eos_token_ids
        self.nbytes: int = compiled.memory_size_bytes

    def begin(self) -> "XGrammar":
        """See Compiled."""
        return XGrammar(new_matcher(self._compiled, self._eos_token_ids))


class XGrammar:
    """A matcher of the library as a Grammar."""

    def __init__(self, matcher):
        self._matcher = matcher

    @property
    def ended(self) -> bool:
        return self._matcher.is_terminated()

    def needs_mask(self, ahead: int) -> bool:
        return True

    def accept(self, token: int) -> bool:
        return self._matcher.accept_token(token)

    def rollback(self) -> None:
        self._matcher.rollback(1)

    def fill(self, mask: np.ndarray) -> None:
        self._matcher.fill_next_token_bitmask(mask[None], 0)
