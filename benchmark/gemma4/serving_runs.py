"""Servers and benchmark commands as child processes: start one setting's server, measure it, end it. Knows no plans.

Every child runs in a process group of its own, which is ended as a whole, so nothing stays behind an error or Ctrl-C.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from process_group import end_group
from run_metadata import REPOSITORY
from workloads import OneBatch, Serving

from sglang.srt.utils.child import STARTUP_FAILED
from sglang.test.server_process import free_port

PYTHON = sys.executable
DEATH_SECONDS = 5.0  # from a lost connection to the end of a server whose scheduler died
POLL_SECONDS = 0.1
TAIL_LINES = 12
KEPT_SERVER_INFO = (
    "version",
    "device",
    "dtype",
    "attention_backend",
    "chunked_prefill_size",
    "max_running_requests",
    "max_total_num_tokens",
    "disable_cuda_graph",
)


@dataclass(frozen=True)
class Commands:
    """What is run; tests put programs of their own in place."""

    server: tuple[str, ...] = (PYTHON, "-m", "sglang.launch_server")
    serving: tuple[str, ...] = (PYTHON, "-m", "sglang.bench_serving")
    one_batch: tuple[str, ...] = (PYTHON, "-m", "sglang.bench_one_batch")
    kernel: tuple[str, ...] = (PYTHON,)


@dataclass(frozen=True)
class Setting:
    """What one side of a comparison adds to the common server: environment, flags, or the sglang of another checkout.

    `package` is the folder that `import sglang` must come from, None for the sglang that runs this.
    """

    name: str
    env: dict[str, str] = field(default_factory=dict, hash=False)
    flags: tuple[str, ...] = ()
    package: Path | None = None

    def environment(self) -> dict[str, str]:
        env = os.environ | self.env | {"PYTHONUNBUFFERED": "1"}
        if self.package:
            inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
            env["PYTHONPATH"] = os.pathsep.join([str(self.package.parent), *inherited])
        return env


class RunFailed(Exception):
    """A child failed; what it says is fit to print. `result` is what a benchmark wrote before, if anything."""

    def __init__(self, message: str, result: dict | None = None):
        super().__init__(message)
        self.result = result


class Refused(RunFailed):
    """A server or benchmark could not start for a reason that its last line explains, which is the message."""

    def __init__(self, child: "Child"):
        super().__init__(child.last_line().removeprefix("error: "))


class Child:
    """A process in a group of its own with its output in a temporary file."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        streams = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **streams)

    def tail(self) -> str:
        """The last lines it printed, indented."""
        self._log.seek(0)
        lines = [line.rstrip() for line in self._log.read().splitlines() if line.strip()]
        return "".join(f"\n    {line}" for line in lines[-TAIL_LINES:])

    def last_line(self) -> str:
        return self.tail().rpartition("\n")[2].strip()

    def end(self) -> None:
        end_group(self.process)
        self._log.close()


class Server:
    """A setting's server on a free port. As a context manager it is ready inside the block and gone after it.

    Raises RunFailed on entering if it ends early or is not ready within `timeout` seconds.
    """

    def __init__(self, setting: Setting, flags: list[str], command: tuple[str, ...], timeout: float):
        self.setting = setting
        self.port = free_port()
        self.ready_seconds = 0.0  # from the process's start to the first /health that answers 200
        self._timeout = timeout
        self._command = [*command, *flags, *setting.flags, "--host", "127.0.0.1", "--port", str(self.port)]

    def __enter__(self) -> "Server":
        self._child = Child(self._command, self.setting.environment())
        try:
            self._wait_ready()
        except BaseException:
            self._child.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()

    def _wait_ready(self) -> None:
        started, seconds = time.monotonic(), 0.0
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=5, trust_env=False) as client:
            while seconds < self._timeout:
                if death := self.death():
                    if self._child.process.returncode == STARTUP_FAILED:
                        raise Refused(self._child)
                    raise RunFailed(f"{death} before it was ready{self._child.tail()}")
                with contextlib.suppress(httpx.TransportError):  # not listening yet
                    if client.get("/health").status_code == 200:
                        self.ready_seconds = time.monotonic() - started
                        return
                time.sleep(POLL_SECONDS)
                seconds = time.monotonic() - started
        raise RunFailed(
            f"the server of '{self.setting.name}' is not ready after {self._timeout:g} s{self._child.tail()}"
        )

    def death(self, wait: float = 0.0) -> str | None:
        """How it ended, None if it still runs after `wait` seconds."""
        try:
            code = self._child.process.wait(wait)
        except subprocess.TimeoutExpired:
            return None
        return f"the server of '{self.setting.name}' ended with exit code {code}"

    def tail(self) -> str:
        return self._child.tail()


def run_command(command: list[str], env: dict[str, str], timeout: float) -> None:
    """Raises RunFailed with the last lines of its output when it fails or does not end within `timeout` seconds."""
    child = Child(command, env)
    name = " ".join(word for word in command[:3] if word not in (PYTHON, "-m"))
    try:
        code = child.process.wait(timeout)
        if code == STARTUP_FAILED:
            raise Refused(child)
        if code:
            raise RunFailed(f"{name} ended with exit code {code}{child.tail()}")
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{name} did not end within {timeout:g} s{child.tail()}") from None
    finally:
        child.end()


def run_serving(server: Server, load: Serving, seed: int, command: tuple[str, ...], timeout: float) -> dict:
    """bench_serving's record of one run. Raises RunFailed, with the record so far, if any request failed."""
    flags = ["--backend", "sglang", "--host", "127.0.0.1", "--port", str(server.port)]
    flags += ["--dataset-name", "random-ids", "--tokenize-prompt", "--random-range-ratio", "1"]
    flags += ["--random-input-len", str(load.input_len), "--random-output-len", str(load.output_len)]
    flags += ["--num-prompts", str(load.num_prompts), "--max-concurrency", str(load.max_concurrency)]
    flags += ["--request-rate", "inf" if load.request_rate is None else str(load.request_rate)]
    flags += ["--seed", str(seed), "--flush-cache", "--disable-tqdm"]
    with result_file() as path:
        try:
            run_command([*command, *flags, "--output-file", str(path)], dict(os.environ), timeout)
        except RunFailed as failure:
            records = read_lines(path)
            result = without_server_info(records[-1]) if records else None
            death = server.death(wait=DEATH_SECONDS)
            message = f"{death}{server.tail()}\n{failure}" if death else str(failure)
            raise RunFailed(message, result) from None
        records = read_lines(path)
        if not records:
            raise RunFailed("bench_serving ended well, but wrote no record")
        return without_server_info(records[-1])


def run_one_batch(
    setting: Setting, flags: list[str], batches: OneBatch, command: tuple[str, ...], timeout: float
) -> dict:
    """{"batches": bench_one_batch's records, one a batch size}. Raises RunFailed."""
    sizes = batches.batch_sizes
    flags = [*flags, *setting.flags, "--batch-size", *map(str, sizes), "--run-name", setting.name]
    flags += ["--input-len", str(batches.input_len), "--output-len", str(batches.output_len)]
    with result_file() as path:
        run_command([*command, *flags, "--result-filename", str(path)], setting.environment(), timeout)
        records = read_lines(path)
    if [record["batch_size"] for record in records] != list(sizes):
        raise RunFailed(f"bench_one_batch wrote {len(records)} records for the batch sizes {sizes}")
    return {"batches": records}


def run_kernel_bench(bench: tuple[str, ...], command: tuple[str, ...], timeout: float) -> dict:
    """{"cases": the lines that a kernel benchmark writes with `--json FILE`}. Raises RunFailed."""
    words = [str(REPOSITORY / word) if (REPOSITORY / word).exists() else word for word in bench]
    with result_file() as path:
        run_command([*command, *words, "--json", str(path)], dict(os.environ), timeout)
        return {"cases": read_lines(path)}


def cold_start(setting: Setting, flags: list[str], command: tuple[str, ...], timeout: float) -> dict:
    """{"ready_seconds": of a start that finds no compiled kernels}. Raises RunFailed."""
    with tempfile.TemporaryDirectory() as empty:
        fresh = dataclasses.replace(setting, env=setting.env | {"TRITON_CACHE_DIR": empty})
        with Server(fresh, flags, command, timeout) as server:
            return {"ready_seconds": server.ready_seconds}


@contextlib.contextmanager
def result_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "result.jsonl"


def read_lines(path: Path) -> list[dict]:
    """The records of a JSONL file, none if it is not there. Raises ValueError that names a line which is no object."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
        except ValueError as e:
            raise ValueError(f"{path}: line {number}: {e}") from e
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object")
        records.append(record)
    return records


def without_server_info(record: dict) -> dict:
    """The record with a few facts of /server_info in place of all of it: the rest is this host's business."""
    info = record.get("server_info") or {}
    return record | {"server_info": {name: info[name] for name in KEPT_SERVER_INFO if name in info}}
