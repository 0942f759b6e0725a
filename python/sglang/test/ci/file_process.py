"""A test file that runs in a process and a session of its own: begun in a new interpreter or forked from one that has
imported what such files import, waited for with the processor time it took, and ended with all it started.

Must not import anything outside the standard library when it is loaded: the runner's --help needs no installation.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time

from sglang.test.ci.ci_register import UNIT_SUITE
from sglang.test.ci.kinds import COMPILING, INTERPRETER, SERVERS, kind_of
from sglang.test.ci.zygote import Zygote, read_end

TERM_GRACE_S = 5
POLL_S = 0.05

# What a zygote imports. No pytest plugin and none of their parts: pytest would rewrite their asserts.
_SMALL = ["pytest", "numpy", "msgspec", "regex", "psutil", "httpx", "jinja2", "tokenizers", "zmq"]
WITHOUT_TORCH = tuple(_SMALL)
WITH_TORCH = (*_SMALL, "torch")  # Triton fixes when it is imported whether it interprets kernels
WITH_ALL = (
    *WITH_TORCH,
    "torch.distributed",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gemma4.modeling_gemma4",
    "xgrammar",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.model_executor.model_runner",
)


class FileProcess:
    """`returncode` as subprocess has it, None while it runs; then `cpu_seconds` tells what it and its children took."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None
        self.cpu_seconds = 0.0

    def poll(self) -> int | None:
        if self.returncode is None and (end := self._look()):
            self.returncode, self.cpu_seconds = os.waitstatus_to_exitcode(end[0]), end[1]
        return self.returncode

    def wait(self, seconds: float = float("inf")) -> None:
        """Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} runs after {seconds} s")
            time.sleep(POLL_S)

    def end(self) -> None:
        """End what is left of its process group, and its descendants in other groups while we can see them."""
        import psutil

        left: list[psutil.Process] = []
        if self.poll() is None:
            try:
                left = psutil.Process(self.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                pass
            _signal_group(self.pid, signal.SIGTERM)
            try:
                self.wait(TERM_GRACE_S)
            except TimeoutError:
                pass
        _signal_group(self.pid, signal.SIGKILL)
        for child in left:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
        self.wait()

    def _look(self) -> tuple[int, float] | None:
        """(status of os.waitpid, processor seconds) once it has ended."""
        raise NotImplementedError


class FreshProcess(FileProcess):
    """In a new interpreter, as the child of this process."""

    def __init__(self, path: str, env: dict[str, str], output: int):
        # sys.executable is this virtualenv's python3. Unbuffered, so that a killed file's last words are seen.
        self._process = subprocess.Popen(
            [sys.executable, "-u", path, "-f"],
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        super().__init__(self._process.pid)

    def _look(self) -> tuple[int, float] | None:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)  # it need not be waited for any more
        return status, usage.ru_utime + usage.ru_stime


class ForkedProcess(FileProcess):
    """Forked from `zygote`, whose child it is; `forks`: so is what it starts. Raises RuntimeError if that has ended."""

    def __init__(self, zygote: Zygote, path: str, env: dict[str, str], output: int, forks: bool):
        pid, self._told = zygote.fork(path, env, output, forks)
        super().__init__(pid)

    def _look(self) -> tuple[int, float] | None:
        if not select.select([self._told], [], [], 0)[0]:
            return None
        with self._told:
            return read_end(self._told) or (signal.SIGKILL, 0.0)  # somebody killed the zygote, which would have known


class Files:
    """Starts files: `fresh`, or from zygotes, each made when the first file needs it. `env` for all."""

    def __init__(self, env: dict[str, str], fresh: bool):
        self._env = env
        self._fresh = fresh
        self._zygotes: dict[tuple[str, ...], Zygote] = {}
        self._lock = threading.Lock()

    def start(self, path: os.PathLike, suite: str, env: dict[str, str], output: int) -> FileProcess:
        """Run a file whose output goes to the descriptor `output`. Raises RuntimeError if its zygote has ended."""
        if self._fresh:
            return FreshProcess(str(path), self._env | env, output)
        modules = preloaded(path, suite)
        with self._lock:
            if modules not in self._zygotes:
                self._zygotes[modules] = Zygote(modules, os.environ | self._env)
        forks = kind_of(path, suite) == SERVERS
        return ForkedProcess(self._zygotes[modules], str(path), env, output, forks)

    def close(self) -> None:
        for zygote in self._zygotes.values():
            zygote.close()


def preloaded(path: os.PathLike, suite: str) -> tuple[str, ...]:
    """What the zygote has imported from which a file may be forked."""
    if suite == UNIT_SUITE:
        return WITHOUT_TORCH
    return WITH_TORCH if kind_of(path, suite) in (COMPILING, INTERPRETER) else WITH_ALL


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass
