"""Grammars of the xgrammar library, compiled in a process of their own (xgrammar_compile.py)."""

import importlib.util
import threading
from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np

from sglang.srt.constrained.compile_process import CompileProcess, CompilerSettings
from sglang.srt.constrained.grammar import Compiled
from sglang.srt.constrained.xgrammar_compile import new_matcher, tokenizer_info

MAX_COMPILED_BYTES = 64 << 20
COMPILE_SECONDS = 30.0  # for one grammar, with the time in the queue
MODULE = "sglang.srt.constrained.xgrammar_compile"


class XGrammarBackend:
    """`vocab_size`: columns of the logits; `eos_token_ids` end an answer. The library and the tokenizer are loaded when
    the first grammar comes. Raises ValueError where there is no library."""

    def __init__(self, tokenizer_folder: str, vocab_size: int, eos_token_ids: Iterable[int]):
        if importlib.util.find_spec("xgrammar") is None:
            raise ValueError("--grammar-backend xgrammar: pip install xgrammar, or start with --grammar-backend none")
        eos_token_ids = sorted(token for token in eos_token_ids if token < vocab_size)
        self._settings = CompilerSettings(
            tokenizer_folder, vocab_size, eos_token_ids, MAX_COMPILED_BYTES, COMPILE_SECONDS
        )
        self._process = CompileProcess(MODULE, self._settings, self._read)
        self._info: Future | None = None
        self._lock = threading.Lock()

    def compile(self, kind: str, text: str) -> "Future[tuple[Compiled, bytes]]":
        """See GrammarBackend."""
        return self._process.compile(kind, text)

    def prepare(self) -> None:
        """See GrammarBackend."""
        if self._info is None:
            self._info = Future()
            threading.Thread(target=self._load_info, name="grammar-load", daemon=True).start()

    def load(self, kind: str, text: str, data: bytes) -> Compiled:
        """See GrammarBackend."""
        self.prepare()
        return self._unpack(self._info.result(), data)

    def _load_info(self) -> None:
        try:
            self._info.set_result(tokenizer_info(self._settings))
        except Exception as e:  # whoever waits for it raises
            self._info.set_exception(e)

    def _read(self, first: bytes, data: bytes) -> tuple[Compiled, bytes]:
        """On threads of CompileProcess."""
        import xgrammar

        with self._lock:
            if self._info is None:
                self._info = Future()
                self._info.set_result(xgrammar.TokenizerInfo.deserialize_json(first.decode()))
        return self._unpack(self._info.result(), data), data

    def _unpack(self, info, data: bytes) -> "XGrammarCompiled":
        import xgrammar

        return XGrammarCompiled(
            xgrammar.CompiledGrammar.deserialize_json(data.decode(), info), self._settings.eos_token_ids
        )


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
