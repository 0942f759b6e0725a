"""CompilingBackend: what backends have in common whose library works in a process of its own (compile_process.py)."""

import importlib.util
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, ClassVar

from sglang.srt.constrained.compile_process import CompileProcess, CompilerSettings
from sglang.srt.constrained.grammar import Compiled

MAX_COMPILED_BYTES = 64 << 20


class CompilingBackend(ABC):
    """A GrammarBackend. `vocab_size`: columns of the logits; `eos_token_ids` end an answer. The library and the
    tokenizer are loaded when the first grammar comes. Raises ValueError where there is no library."""

    library: ClassVar[str]
    module: ClassVar[str]  # the process's
    seconds: ClassVar[float]  # for one grammar, with the time in the queue

    def __init__(self, tokenizer_folder: str, vocab_size: int, eos_token_ids: Iterable[int]):
        if importlib.util.find_spec(self.library) is None:
            raise ValueError(
                f"--grammar-backend {self.library}: pip install {self.library}, or start with --grammar-backend none"
            )
        eos_token_ids = sorted(token for token in eos_token_ids if token < vocab_size)
        self._settings = CompilerSettings(
            tokenizer_folder, vocab_size, eos_token_ids, MAX_COMPILED_BYTES, seconds=self.seconds
        )
        self._process = CompileProcess(self.module, self._settings, self._read)
        self._tokens: Future[Any] | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def _load_tokens(self, first: bytes) -> Any:
        """What the library knows of the tokenizer; `first` is the process's Ready.data, empty on other ranks."""

    @abstractmethod
    def _unpack(self, tokens: Any, data: bytes) -> Compiled:
        """A grammar that a process has compiled."""

    def compile(self, kind: str, text: str) -> "Future[tuple[Compiled, bytes]]":
        """See GrammarBackend."""
        return self._process.compile(kind, text)

    def prepare(self) -> None:
        """See GrammarBackend."""
        threading.Thread(target=self._wait_for_tokens, args=(b"",), name="grammar-load", daemon=True).start()

    def load(self, kind: str, text: str, data: bytes) -> Compiled:
        """See GrammarBackend."""
        return self._read(b"", data)[0]

    def _read(self, first: bytes, data: bytes) -> tuple[Compiled, bytes]:
        return self._unpack(self._wait_for_tokens(first), data), data

    def _wait_for_tokens(self, first: bytes) -> Any:
        with self._lock:
            mine = self._tokens is None
            if mine:
                self._tokens = Future()
        if mine:
            try:
                self._tokens.set_result(self._load_tokens(first))
            except Exception as e:  # whoever waits for it raises
                self._tokens.set_exception(e)
        return self._tokens.result()
