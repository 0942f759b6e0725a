"""GrammarManager: has the requests' grammars compiled, while the scheduler goes on with others, and keeps them.

How long that takes is no function of the request stream, so rank 0 alone compiles, and its word comes in the stream
(GrammarReadyReq), with the compiled grammar for the other ranks. What is kept changes at such words alone: whether a
request finds its grammar here is the same on all ranks.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from sglang.srt.constrained.grammar import Compiled, GrammarBackend, GrammarError
from sglang.srt.managers.io_struct import GrammarReadyReq

CACHE_BYTES = 256 << 20  # of compiled grammars: one of an ordinary schema has some hundred thousand


@dataclass
class Job:
    """A grammar that is being compiled, and the requests that wait for it."""

    grammar: tuple[str, str]  # kind and text
    serials: list[int] = field(default_factory=list)
    compiled: "Future[tuple[Compiled, bytes]] | None" = None  # on rank 0


class GrammarManager:
    """`announce(message)` puts a message into the request stream, one call at a time; None on ranks above 0. `shared`:
    there are such ranks."""

    def __init__(
        self,
        backend: GrammarBackend,
        announce: Callable[[GrammarReadyReq], None] | None,
        shared: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ):
        self._backend, self._announce, self._shared = backend, announce, shared
        self._announcing = threading.Lock()
        self._count = 0
        self._jobs: dict[int, Job] = {}
        self._numbers: dict[tuple[str, str], int] = {}  # of the jobs
        self._cache: OrderedDict[tuple[str, str], Compiled] = OrderedDict()  # the one used last is the last
        self._cache_bytes = cache_bytes

    def start(self, serial: int, kind: str, text: str) -> Compiled | None:
        """A request's grammar; None while it is being compiled, then GrammarReadyReq comes."""
        grammar = kind, text
        if grammar in self._cache:
            self._cache.move_to_end(grammar)
            return self._cache[grammar]
        if grammar not in self._numbers:
            self._count += 1
            self._numbers[grammar] = self._count
            self._jobs[self._count] = Job(grammar)
            self._begin(self._count)
        self._jobs[self._numbers[grammar]].serials.append(serial)
        return None

    def _begin(self, number: int) -> None:
        if self._announce is None:
            self._backend.prepare()
            return
        job = self._jobs[number]
        job.compiled = self._backend.compile(*job.grammar)
        job.compiled.add_done_callback(lambda done: self._tell(number, done))

    def finished(self, message: GrammarReadyReq) -> tuple[list[int], Compiled | None]:
        """The requests that have waited for it, and their grammar, None where the message brings an error. Other ranks
        than 0 may wait here."""
        job = self._jobs.pop(message.job, None)
        if job is None:  # all its requests have ended meanwhile
            return [], None
        del self._numbers[job.grammar]
        if message.error is not None:
            return job.serials, None
        if job.compiled is not None:
            compiled = job.compiled.result()[0]
        else:
            compiled = self._backend.load(*job.grammar, message.data)
        self._keep(job.grammar, compiled)
        return job.serials, compiled

    def drop(self, serial: int) -> None:
        """That request, which waits for its grammar, has ended."""
        number, job = next((n, job) for n, job in self._jobs.items() if serial in job.serials)
        job.serials.remove(serial)
        if not job.serials:
            del self._jobs[number], self._numbers[job.grammar]
            if job.compiled is not None:
                job.compiled.cancel()

    def _keep(self, grammar: tuple[str, str], compiled: Compiled) -> None:
        self._cache[grammar] = compiled
        while len(self._cache) > 1 and sum(entry.nbytes for entry in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)

    def _tell(self, number: int, done: "Future[tuple[Compiled, bytes]]") -> None:
        """On any thread."""
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            message = GrammarReadyReq(number, data=done.result()[1] if self._shared else b"")
        elif isinstance(error, GrammarError):
            message = GrammarReadyReq(number, str(error))
        else:  # the library is broken, or its process has ended
            text = f"the grammar could not be compiled: {type(error).__name__}: {error}"
            message = GrammarReadyReq(number, text, status_code=500)
        with self._announcing:
            self._announce(message)
