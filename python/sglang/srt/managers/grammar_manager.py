"""GrammarManager: compiles the requests' grammars in threads, while the scheduler goes on with others.

How long that takes is no function of the request stream, so no rank looks whether its own is done: rank 0 says so in
the stream (GrammarReadyReq), as it says when one could not be had, and each rank then takes its own.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sglang.srt.constrained.grammar import Grammar, GrammarBackend, GrammarError
from sglang.srt.managers.io_struct import GrammarReadyReq

THREADS = 2
COMPILE_SECONDS = 30.0  # with the time in the queue; the first one loads library and tokenizer


class GrammarManager:
    """`announce(message)` puts a message into the request stream; one thread calls it. None on ranks above 0."""

    def __init__(self, backend: GrammarBackend, announce: Callable[[GrammarReadyReq], None] | None):
        self._backend = backend
        self._announce = announce
        self._pool = ThreadPoolExecutor(THREADS, "grammar")
        self._futures: dict[int, Future[Grammar]] = {}
        self._started: queue.SimpleQueue[tuple[int, Future[Grammar], float]] = queue.SimpleQueue()
        if announce is not None:
            threading.Thread(target=self._announce_all, name="grammars", daemon=True).start()

    def start(self, serial: int, kind: str, text: str) -> None:
        """Compile a request's grammar; GrammarReadyReq comes when it is there, or can't be."""
        future = self._futures[serial] = self._pool.submit(self._backend.compile, kind, text)
        if self._announce is not None:
            self._started.put((serial, future, time.monotonic() + COMPILE_SECONDS))

    def take(self, serial: int) -> Grammar:
        """That of a request whose GrammarReadyReq brought no error. May wait, on ranks above 0. Raises GrammarError."""
        return self._futures.pop(serial).result()

    def drop(self, serial: int) -> None:
        """The request has ended, or its grammar can't be had."""
        self._futures.pop(serial).cancel()

    def _announce_all(self) -> None:
        while True:
            serial, future, deadline = self._started.get()
            error = None
            try:
                future.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                error = f"the grammar was not compiled within {COMPILE_SECONDS:.0f} s: use a simpler one"
            except GrammarError as e:
                error = str(e)
            except BaseException as e:  # dropped meanwhile, or the library is broken: its request must hear of it
                error = f"the grammar could not be compiled: {type(e).__name__}: {e}"
            self._announce(GrammarReadyReq(serial, error))
