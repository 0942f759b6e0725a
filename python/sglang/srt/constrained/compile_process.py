"""Both ends of the process that compiles grammars, one a scheduler. It knows no library: what compiles is handed in.

A library cannot be interrupted, so every grammar is compiled in a fork of that process, which has loaded what all need:
a fork takes milliseconds, and one that takes too long, or dies, is ended without harm to the others. Those that go on
for long run at the lowest priority, so that newcomers pass them.
"""

import contextlib
import ctypes
import logging
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

import msgspec

from sglang.srt.constrained.grammar import GrammarError
from sglang.srt.utils.frames import read_frame, write_frame

logger = logging.getLogger(__name__)

PLACES = 32  # grammars that are compiled at a time
SHARE_SECONDS = 2.0  # which one may keep a place that another waits for
LONG_SECONDS = 1.0  # after which a compile goes on at the lowest priority
MEMORY_BYTES = 2 << 30  # that a compile may take beside what the process has loaded
LOAD_SECONDS = 120.0  # for the process to start; then, or when it says nothing of a grammar in time, it is replaced
TICK_SECONDS = 0.1
LOWEST_PRIORITY = 19
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class CompilerSettings(msgspec.Struct, array_like=True):
    """What the process is told: for the library, and its limits."""

    tokenizer_folder: str
    vocab_size: int
    eos_token_ids: list[int]
    max_bytes: int  # of a compiled grammar
    seconds: float = 30.0  # for one grammar, with the time in the queue
    places: int = PLACES
    share_seconds: float = SHARE_SECONDS


class Compile(msgspec.Struct, array_like=True, tag=True):
    number: int
    kind: str
    text: str


class Drop(msgspec.Struct, array_like=True, tag=True):
    """Nobody waits for that one any longer."""

    number: int


class Ready(msgspec.Struct, array_like=True, tag=True):
    """The process has loaded the library; `data` is what the other end needs to read compiled grammars."""

    data: bytes


class Compiled(msgspec.Struct, array_like=True, tag=True):
    number: int
    data: bytes = b""
    error: str | None = None


# ---- the scheduler's end --------------------------------------------------------------------------------------------


class CompileProcess:
    """Starts `python -m module` when it is needed, and again after it has ended. `load(first, data)` makes an object of
    a compiled grammar's bytes and of Ready.data, on a thread of this class.

    The process ends with this one, however that ends: it reads a pipe that nobody else holds.
    """

    def __init__(self, module: str, settings: CompilerSettings, load: Callable[[bytes, bytes], object]):
        self._module, self._settings, self._load = module, settings, load
        self._lock = threading.Lock()
        self._numbers = 0
        self._outbox: queue.SimpleQueue[Compile | Drop | None] | None = None  # None: no process runs
        self._waiting: dict[int, tuple[Future, float]] = {}  # with the time by which the process must have answered
        self._loading = ThreadPoolExecutor(2, "grammar-load")

    def compile(self, kind: str, text: str) -> Future:
        """What `load` makes of the grammar. Returns at once. The future fails with GrammarError, or another error where
        it is not the grammar's fault; one that is cancelled is compiled no further."""
        future: Future = Future()
        with self._lock:
            self._numbers += 1
            number = self._numbers
            if self._outbox is None:
                self._start()
            self._waiting[number] = future, time.monotonic() + LOAD_SECONDS + self._settings.seconds
            self._outbox.put(Compile(number, kind, text))
        future.add_done_callback(lambda done: self._drop(number) if done.cancelled() else None)
        return future

    def _start(self) -> None:
        self._outbox = queue.SimpleQueue()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        threading.Thread(target=self._speak, args=(process, self._outbox), name="grammars-out", daemon=True).start()
        threading.Thread(target=self._listen, args=(process, self._outbox), name="grammars-in", daemon=True).start()

    def _drop(self, number: int) -> None:
        with self._lock:
            if self._waiting.pop(number, None) is not None:
                self._outbox.put(Drop(number))

    def _speak(self, process: subprocess.Popen, outbox: queue.SimpleQueue) -> None:
        """A thread, since while the process loads it reads nothing, and a pipe holds little."""
        encode = msgspec.msgpack.Encoder().encode
        with process.stdin, contextlib.suppress(OSError):  # it has ended, which the other thread handles
            write_frame(process.stdin, encode(self._settings))
            while (message := outbox.get()) is not None:
                write_frame(process.stdin, encode(message))

    def _listen(self, process: subprocess.Popen, outbox: queue.SimpleQueue) -> None:
        decode = msgspec.msgpack.Decoder(Ready | Compiled).decode
        first = b""
        with open(process.stdout.fileno(), "rb", buffering=0, closefd=False) as source:
            while (data := self._next(source)) is not None:
                message = decode(data)
                if isinstance(message, Ready):
                    first = message.data
                    continue
                with self._lock:
                    future, _ = self._waiting.pop(message.number, (None, 0.0))
                if future is not None and future.set_running_or_notify_cancel():
                    self._loading.submit(self._finish, future, message, first)
        process.kill()
        code = process.wait()
        process.stdout.close()
        with self._lock:
            left, self._waiting, self._outbox = self._waiting, {}, None
        outbox.put(None)
        logger.warning("The process that compiles grammars ended with exit code %d; %d waited for it", code, len(left))
        for future, _ in left.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(ChildProcessError("the process that compiles grammars has ended; try again"))

    def _next(self, source: BinaryIO) -> bytes | None:
        """The process's next message; None when it has ended, or has been silent for too long."""
        while not select.select([source], [], [], 1.0)[0]:
            with self._lock:
                late = any(time.monotonic() > deadline for _, deadline in self._waiting.values())
            if late:
                return None
        return read_frame(source)

    def _finish(self, future: Future, message: Compiled, first: bytes) -> None:
        if message.error is not None:
            future.set_exception(GrammarError(message.error))
            return
        try:
            future.set_result(self._load(first, message.data))
        except Exception as e:  # whatever the library raises: its request must hear of it
            future.set_exception(e)


# ---- the process ----------------------------------------------------------------------------------------------------


def serve(load: Callable[[CompilerSettings], tuple[bytes, Callable[[str, str], bytes]]]) -> None:
    """The whole life of the process. `load(settings)` gives Ready.data and what compiles a grammar of a kind and text
    to bytes, or raises GrammarError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the server's to handle
    source, sink = open(os.dup(0), "rb", buffering=0), open(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    data = read_frame(source)
    if data is None:
        return
    settings = msgspec.msgpack.decode(data, type=CompilerSettings)
    first, compile = load(settings)
    with contextlib.suppress(BrokenPipeError):  # the server has gone
        _Server(settings, compile, source, sink).run(first)
    os._exit(0)  # libraries take a second to clear up


@dataclass
class _Fork:
    """A grammar that is being compiled."""

    message: Compile
    pid: int
    began: float
    deadline: float
    parts: list[bytes] = field(default_factory=list)  # of what it has answered
    slowed: bool = False


class _Server:
    def __init__(
        self, settings: CompilerSettings, compile: Callable[[str, str], bytes], source: BinaryIO, sink: BinaryIO
    ):
        self._settings, self._compile = settings, compile
        self._source, self._sink = source, sink
        self._queue: deque[tuple[Compile, float]] = deque()  # with the time by which it must be done
        self._forks: dict[int, _Fork] = {}  # by the file that its answer comes from

    def run(self, first: bytes) -> None:
        """Until the other end of the pipe has gone."""
        self._write(Ready(first))
        decode = msgspec.msgpack.Decoder(Compile | Drop).decode
        while True:
            for file in select.select([self._source, *self._forks], [], [], TICK_SECONDS if self._forks else None)[0]:
                if file is not self._source:
                    self._read(file)
                elif (data := read_frame(self._source)) is not None:
                    self._take(decode(data))
                else:
                    for fork in self._forks.values():
                        os.kill(fork.pid, signal.SIGKILL)
                    return
            self._watch_time()
            self._fill_places()

    def _write(self, message: Ready | Compiled) -> None:
        write_frame(self._sink, msgspec.msgpack.encode(message))

    def _take(self, message: Compile | Drop) -> None:
        if isinstance(message, Compile):
            self._queue.append((message, time.monotonic() + self._settings.seconds))
            return
        self._queue = deque(entry for entry in self._queue if entry[0].number != message.number)
        for file, fork in list(self._forks.items()):
            if fork.message.number == message.number:
                self._end(file)

    def _watch_time(self) -> None:
        now = time.monotonic()
        for file, fork in list(self._forks.items()):
            if now > fork.deadline:
                self._give_up(file, self._settings.seconds)
            elif now > fork.began + LONG_SECONDS and not fork.slowed:
                fork.slowed = True
                os.setpriority(os.PRIO_PROCESS, fork.pid, LOWEST_PRIORITY)

    def _fill_places(self) -> None:
        while self._queue:
            if len(self._forks) >= self._settings.places:
                file, oldest = min(self._forks.items(), key=lambda entry: entry[1].began)
                if time.monotonic() < oldest.began + self._settings.share_seconds:
                    return
                self._give_up(file, self._settings.share_seconds, " while others waited")
            self._fork(*self._queue.popleft())

    def _give_up(self, file: int, seconds: float, why: str = "") -> None:
        message = self._forks[file].message
        self._end(file)
        error = f"{message.kind} cannot be compiled: it takes more than {seconds:g} s{why}; use a simpler one"
        self._write(Compiled(message.number, error=error))

    def _fork(self, message: Compile, deadline: float) -> None:
        read, write = os.pipe()
        try:
            pid = os.fork()
        except OSError as e:
            os.close(read)
            os.close(write)
            self._write(Compiled(message.number, error=f"{message.kind} cannot be compiled now: {e}"))
            return
        if pid == 0:
            self._compile_and_leave(message, write)
        os.close(write)
        self._forks[read] = _Fork(message, pid, time.monotonic(), deadline)

    def _compile_and_leave(self, message: Compile, file: int) -> NoReturn:
        """In the fork."""
        try:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(self._source.fileno())
            os.close(self._sink.fileno())  # whoever reads there must see the end of the process
            _limit_memory()
            try:
                result = Compiled(message.number, self._compile(message.kind, message.text))
            except GrammarError as e:
                result = Compiled(message.number, error=str(e))
            with open(file, "wb", closefd=False) as sink:
                sink.write(msgspec.msgpack.encode(result))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    def _read(self, file: int) -> None:
        fork = self._forks.get(file)
        if fork is None:  # ended in this turn
            return
        if part := os.read(file, 1 << 20):
            fork.parts.append(part)
            return
        code = self._end(file)
        if code == 0:
            write_frame(self._sink, b"".join(fork.parts))
            return
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._write(Compiled(fork.message.number, error=f"{fork.message.kind} cannot be compiled: it ends in {how}"))

    def _end(self, file: int) -> int:
        """Of a fork, by force unless it has ended by itself; its exit code, negative for a signal's number."""
        fork = self._forks.pop(file)
        os.close(file)
        os.kill(fork.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(fork.pid, 0)[1])


def _limit_memory() -> None:
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES,) * 2)
