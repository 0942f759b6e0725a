"""TraceWriter: writes the traces of a profile in a thread of its own, so that steps go on meanwhile."""

import ctypes
import gc
import gzip
import logging
import os
import shutil
import tempfile
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import torch

logger = logging.getLogger(__name__)


class TraceWriter:
    """One compressed file of all sessions of a stage, `<stem>[-<stage>].trace.json.gz`; a reader never sees a part of
    it. Calls return at once and are carried out in order. What goes wrong is told by `error`."""

    def __init__(self, folder: str, stem: str):
        self.files: list[str] = []
        self.error = ""  # why a trace could not be written
        self._folder = folder
        self._stem = stem
        self._parts: defaultdict[str, list[str]] = defaultdict(list)  # files of sessions, by stage
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trace-writer")
        self._last: Future | None = None

    def add(self, session: torch.profiler.profile, stage: str) -> None:
        """A session that was stopped; nobody else may hold it, or its memory stays."""
        self._last = self._thread.submit(self._add, [session], stage)

    def finish(self, stage: str) -> None:
        """The stage has no more sessions."""
        self._last = self._thread.submit(self._finish, stage)

    def close(self) -> None:
        """Finish what is not."""
        self._last = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    @property
    def is_idle(self) -> bool:
        return self._last is None or self._last.done()

    def wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def _add(self, sessions: list[torch.profiler.profile], stage: str) -> None:
        try:
            path = self._temporary()
            self._parts[stage].append(path)
            sessions.pop().export_chrome_trace(path)
        except OSError as e:  # the server goes on without its trace
            self._failed(e)

    def _finish(self, stage: str) -> None:
        parts = self._parts.pop(stage, [])
        try:
            whole = self._temporary()
            path = os.path.join(self._folder, f"{self._stem}{f'-{stage}' if stage else ''}.trace.json.gz")
            try:
                _join(parts, whole)
                os.replace(whole, path)
            except BaseException:
                os.unlink(whole)
                raise
            self.files.append(path)
        except (OSError, msgspec.DecodeError) as e:
            self._failed(e)
        for part in parts:
            if os.path.exists(part):
                os.unlink(part)

    def _close(self) -> None:
        for stage in list(self._parts):
            self._finish(stage)
        _give_memory_back()

    def _temporary(self) -> str:
        """A new file that no other user can have prepared."""
        handle, path = tempfile.mkstemp(prefix=".profile-", suffix=".json", dir=self._folder)
        os.close(handle)
        return path

    def _failed(self, error: Exception) -> None:
        self.error = f"the trace could not be written: {error}"
        logger.error("%s: %s", self._stem, self.error)


def _join(parts: list[str], target: str) -> None:
    """Traces of one process as one: their clocks start at the same time. Events are passed on unread."""
    with gzip.open(target, "wb", compresslevel=5) as out:
        if len(parts) == 1:
            with open(parts[0], "rb") as source:
                shutil.copyfileobj(source, out)
            return
        for i, part in enumerate(parts):
            with open(part, "rb") as source:
                trace = msgspec.json.decode(source.read(), type=dict[str, msgspec.Raw])
            events = memoryview(trace.pop("traceEvents"))[1:-1]  # without the brackets
            if i == 0:
                out.write(msgspec.json.encode(trace)[:-1] + b',"traceEvents":[')
            elif events.nbytes > 1 and bytes(events[:64]).strip():
                out.write(b",")
            out.write(events)
        out.write(b"]}")


def _give_memory_back() -> None:
    """Sessions refer to themselves, and the C library keeps freed memory for later: events that will not come."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
