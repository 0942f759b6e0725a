"""Grammars compiled by the xgrammar library, for the tokens of a tokenizer folder. Its only user of the library."""

import functools
import importlib.util
import os
import re
import threading
from collections.abc import Iterable

import numpy as np

from sglang.srt.constrained.grammar import GrammarError, mask_words
from sglang.srt.utils.shown import cut
from sglang.srt.utils.tokenizer import Tokenizer

CACHE_BYTES = 256 << 20  # of compiled grammars: one of an ordinary schema has some ten thousand
MAX_COMPILED_BYTES = 64 << 20
COMPILE_THREADS = max(1, min(8, (os.cpu_count() or 1) // 4))  # for one grammar; other requests are being served
MAX_WHITESPACE = 20  # in a row between a JSON text's parts: enough to indent, and none goes on for ever
# What the library puts before its messages: time of day, source file, the check that failed.
_PREFIX = re.compile(r"^\[[0-9:]+\] \S+: (?:Check failed: \([^)]*\)\)? is false: )?")


class XGrammarBackend:
    """`vocab_size`: columns of the logits; `eos_token_ids` end an answer. The library and the tokenizer are loaded by
    the first compile(). Raises ValueError where there is no library."""

    def __init__(self, tokenizer_folder: str, vocab_size: int, eos_token_ids: Iterable[int]):
        if importlib.util.find_spec("xgrammar") is None:
            raise ValueError("--grammar-backend xgrammar: pip install xgrammar, or start with --grammar-backend none")
        self._folder = tokenizer_folder
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(token for token in eos_token_ids if token < vocab_size)
        self._loading = threading.Lock()

    @functools.cached_property
    def _compiler(self):
        import xgrammar  # late: it takes seconds, and most servers never see a grammar

        tokenizer = Tokenizer(self._folder)
        # Special tokens have no text here: no grammar can ask for one. Ids beyond the tokenizer's have none either.
        texts = [
            b"" if i in tokenizer.special_ids or i >= tokenizer.size else bytes(tokenizer.token_bytes(i))
            for i in range(self._vocab_size)
        ]
        info = xgrammar.TokenizerInfo(
            texts, xgrammar.VocabType.RAW, vocab_size=self._vocab_size, stop_token_ids=self._eos_token_ids
        )
        return xgrammar.GrammarCompiler(info, max_threads=COMPILE_THREADS, cache_limit_bytes=CACHE_BYTES)

    def compile(self, kind: str, text: str) -> "XGrammar":
        """See GrammarBackend."""
        with self._loading:
            compiler = self._compiler
        import xgrammar

        compile = {
            "json_schema": functools.partial(compiler.compile_json_schema, max_whitespace_cnt=MAX_WHITESPACE),
            "regex": compiler.compile_regex,
            "ebnf": compiler.compile_grammar,
        }[kind]
        try:
            compiled = compile(text)
        except (RuntimeError, ValueError) as e:  # the library's own errors are of both kinds
            raise GrammarError(f"{kind} cannot be compiled: {_reason(str(e))}") from e
        if compiled.memory_size_bytes > MAX_COMPILED_BYTES:
            raise GrammarError(
                f"{kind} takes {compiled.memory_size_bytes} bytes when it is compiled, at most {MAX_COMPILED_BYTES} "
                "are possible: use a simpler one"
            )
        matcher = xgrammar.GrammarMatcher(
            compiled,
            override_stop_tokens=self._eos_token_ids or None,
            terminate_without_stop_token=not self._eos_token_ids,
        )
        grammar = XGrammar(matcher)
        first = np.zeros(mask_words(self._vocab_size), dtype=np.int32)
        grammar.fill(first)
        if not first.any():
            raise GrammarError(f"{kind} cannot be compiled: no text matches it")
        return grammar


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

    def fill(self, mask: np.ndarray) -> None:
        self._matcher.fill_next_token_bitmask(mask[None], 0)


def _reason(message: str) -> str:
    """What of the library's message is of use to who wrote the grammar."""
    line = _PREFIX.sub("", message.strip().splitlines()[0]) if message.strip() else "unknown reason"
    return cut(line, 300)
