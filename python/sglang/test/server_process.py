"""ServerProcess: a server as tests use one: started on a free port, its output kept, ended with the test."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import httpx
import psutil

from sglang.test.ci import forker

EXTRA_ARGS = "SGLANG_EXTRA_SERVER_ARGS"


def extra_server_args() -> list[str]:
    """Server flags from outside, to run any test under other flags (benchmark/gemma4/bisect_runs.py), quoted as for a
    shell. They come last, so that they win over the test's own. Raises ValueError for an open quotation."""
    try:
        return shlex.split(os.environ.get(EXTRA_ARGS, ""))
    except ValueError as e:
        raise ValueError(f"{EXTRA_ARGS}={os.environ[EXTRA_ARGS]!r}: {e}") from None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Poll until the condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {seconds} s")
        time.sleep(0.02)


def children_of(pid: int | None = None, recursive: bool = False) -> list[psutil.Process]:
    """Those of a process, by default this one, that have not ended. A process that only forks others does not count."""
    return [child for _, child in _named(pid, recursive)]


def _named(pid: int | None, recursive: bool) -> Iterator[tuple[str, psutil.Process]]:
    """With the last word of its command line."""
    for child in psutil.Process(pid).children(recursive):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too has no command line any more
            if (words := child.cmdline()) and words[-1] != forker.NAME:
                yield words[-1], child


class ServerProcess:
    """`python -m module --port P flags...` and extra_server_args(). As a context manager it waits until it is ready.
    `address`: where it is asked. `stdout`: where its output goes instead. `prepare` runs in its process first. `fresh`:
    in new interpreters also where the runner has servers forked."""

    def __init__(
        self,
        module: str,
        *flags: str,
        port: int | None = None,
        timeout: float = 60.0,
        address: str = "127.0.0.1",
        stdout: int | None = None,
        prepare: Callable[[], None] | None = None,
        fresh: bool = False,
    ):
        self.port = port or free_port()
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{self.port}"
        self.timeout = timeout
        self.client = httpx.Client(base_url=self.url, timeout=60.0)
        self._log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--port", str(self.port), *flags, *extra_server_args()],
            stdout=self._log if stdout is None else stdout,
            stderr=self._log,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | (forker.FRESH if fresh else {}),
            preexec_fn=prepare,
        )

    def __enter__(self) -> Self:
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {self.process.returncode}:\n{self.output()}")
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.05)
        self.stop()
        raise TimeoutError(f"no server within {self.timeout} s:\n{self.output()}")

    def output(self) -> str:
        """All it has printed so far."""
        self._log.seek(0)
        return self._log.read()

    def children(self) -> dict[str, int]:
        """Its child processes: the last part of the module's name -> pid."""
        return {name.rpartition(".")[2]: child.pid for name, child in _named(self.process.pid, recursive=True)}

    def internal_state(self) -> dict[str, Any]:
        return self.client.get("/server_info").json()["internal_states"][0]

    def stop(self, number: int = signal.SIGTERM, timeout: float = 15.0) -> int:
        """Send a signal if it still runs, and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        self.client.close()
        return self.process.returncode


def status(server: ServerProcess, path: str) -> int | None:
    """The HTTP status, None when nobody listens."""
    try:
        return server.client.get(path).status_code
    except httpx.TransportError:
        return None


class Asker(threading.Thread):
    """A client in a thread; `reply` is its response, `error` what went wrong on the wire."""

    def __init__(self, server: ServerProcess, **body):
        super().__init__()
        self.server, self.body = server, body
        self.reply: httpx.Response | None = None
        self.error: Exception | None = None
        self.start()
        wait_for(lambda: server.internal_state()["running"])

    def run(self) -> None:
        try:
            self.reply = httpx.post(f"{self.server.url}/generate", json={"text": "abc", **self.body}, timeout=30)
        except httpx.TransportError as e:
            self.error = e
