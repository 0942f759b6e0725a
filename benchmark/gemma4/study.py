"""A study: a plan of measurements whose settings take turns, done one by one, each saved as it comes.

It owns the order, what is skipped because it is there already, the time budget and the record's form. How a thing is
measured is serving_runs.py's.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import serving_runs
from run_metadata import relative
from serving_runs import Commands, Refused, RunFailed, Server, Setting
from workloads import ColdStart, KernelBench, OneBatch, Serving, Workload, as_json

MACHINE = ("hardware", "driver", "torch", "triton", "builds")  # facts that must agree for records to be compared
IDENTITY = ("study", "set", "server_flags", "workload", "repeat", "seed", "warmup")
WARMUP_SEED = 1_000_003  # other prompts than any repeat's


@dataclass(frozen=True)
class Step:
    """One measurement. Steps of a setting with the same `start` share a server's life; repeats count from 0."""

    setting: Setting
    workload: Workload
    repeat: int = 0
    start: int = 0

    def __str__(self) -> str:
        return f"{self.setting.name}: {self.workload.name}, repeat {self.repeat + 1}"


def interleave(
    settings: Sequence[Setting], workloads: Sequence[Workload], repeats: int, per_start: int, keep_alive: bool = False
) -> list[Step]:
    """Settings take turns, `per_start` repeats at a time: A B A B ... for 1, A A B B A A B B ... for 2."""
    plan = []
    for first in range(0, repeats, per_start):
        block = range(first, min(first + per_start, repeats))
        start = 0 if keep_alive else first
        plan += [Step(s, workload, r, start) for s in settings for r in block for workload in workloads]
    return plan


class Records:
    """The records of a JSONL file. Raises ValueError for a line that is no JSON object, OSError for the disk's."""

    def __init__(self, path: Path):
        self.path = path
        self.all = serving_runs.read_lines(path)

    def add(self, record: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.all.append(record)

    def find(self, identity: dict) -> dict | None:
        """The whole measurement that was taken under exactly these conditions."""
        return next((r for r in self.all if not r.get("error") and identity_of(r) == identity), None)


def identity_of(record: dict) -> dict:
    """All that must be equal for a record to stand for a measurement."""
    named = {name: record.get(name) for name in IDENTITY}
    meta = record.get("meta", {})
    return named | {name: meta.get(name) for name in (*MACHINE, "build")}


def current(records: list[dict]) -> list[dict]:
    """The whole records of the conditions that the last one was measured under. A file may hold older ones, of other
    code or another machine, which must not be compared with these."""
    whole = [record for record in records if not record.get("error")]
    if not whole:
        return []

    def conditions(record: dict) -> dict:
        return identity_of(record) | {"set": None, "workload": None, "repeat": None, "build": None}

    last_of = {record["workload"]["name"]: record["workload"] for record in whole}
    wanted = conditions(whole[-1])
    return [r for r in whole if conditions(r) == wanted and r["workload"] == last_of[r["workload"]["name"]]]


@dataclass(frozen=True)
class Options:
    """`seed` is the first repeat's, the next ones count on; `warmup` prompts go unrecorded after each start;
    `timeout` seconds for a start or a run; `budget` seconds for the whole, None for no limit."""

    seed: int = 1
    warmup: int = 16
    timeout: float = 900.0
    budget: float | None = None
    keep_alive: bool = False


@dataclass
class Outcome:
    records: list[dict] = field(default_factory=list)  # of the plan, those that were there before included
    left_out: list[Step] = field(default_factory=list)  # for want of time
    failure: str | None = None
    refused: bool = False  # the failure is a mistake of the user's, in one line


class Study:
    """`metas`: the metadata of each setting's records, by its name."""

    def __init__(
        self,
        name: str,
        server_flags: list[str],
        plan: list[Step],
        records: Records,
        metas: dict[str, dict],
        options: Options,
        commands: Commands,
    ):
        self.name = name
        self.server_flags = server_flags
        self.plan = plan
        self.records = records
        self.metas = metas
        self.options = options
        self.commands = commands
        self._servers: dict[tuple[Setting, int], Server] = {}
        self._stack = contextlib.ExitStack()

    def run(self, outcome: Outcome) -> None:
        """Fills `outcome`, so that it holds what came before an interruption too. No server is left running."""
        began, longest = monotonic(), 0.0
        with self._stack:
            for index, step in enumerate(self.plan):
                if there := self.records.find(self._identity(step)):
                    outcome.records.append(there)
                    continue
                before = monotonic()
                if self.options.budget is not None and before - began + longest > self.options.budget:
                    outcome.left_out = [s for s in self.plan[index:] if not self.records.find(self._identity(s))]
                    outcome.records += [r for s in self.plan[index:] if (r := self.records.find(self._identity(s)))]
                    return
                try:
                    outcome.records.append(self._measure(step))
                except RunFailed as failure:
                    outcome.refused = isinstance(failure, Refused)
                    outcome.failure = str(failure) if outcome.refused else f"{step}: {failure}"
                    return
                seconds = monotonic() - before
                longest = max(longest, seconds)
                print(f"{step}: {summary(outcome.records[-1])} ({seconds:.0f} s)", file=sys.stderr, flush=True)

    def _measure(self, step: Step) -> dict:
        record = self._identity_fields(step) | {"meta": self.metas[step.setting.name]}
        try:
            result = self._result(step)
        except RunFailed as failure:
            if failure.result:
                self.records.add(record | {"result": failure.result, "error": str(failure).splitlines()[0]})
            raise
        record |= {"result": result, "error": None}
        self.records.add(record)
        return record

    def _result(self, step: Step) -> dict:
        workload, flags, timeout = step.workload, self.server_flags, self.options.timeout
        match workload:
            case Serving():
                server = self._server(step, workload)
                seed = self.options.seed + step.repeat
                result = serving_runs.run_serving(server, workload, seed, self.commands.serving, timeout)
                return result | {"ready_seconds": server.ready_seconds}
            case OneBatch():
                self._end_servers()
                return serving_runs.run_one_batch(step.setting, flags, workload, self.commands.one_batch, timeout)
            case ColdStart():
                self._end_servers()
                return serving_runs.cold_start(step.setting, flags, self.commands.server, timeout)
            case KernelBench():
                self._end_servers()
                return serving_runs.run_kernel_bench(workload.bench, self.commands.kernel, timeout)

    def _server(self, step: Step, load: Serving) -> Server:
        """The server of the step's setting and start, warmed up; others are ended unless they are kept alive."""
        key = (step.setting, step.start)
        if key not in self._servers:
            if not self.options.keep_alive:
                self._end_servers()
            server = Server(step.setting, self.server_flags, self.commands.server, self.options.timeout)
            self._servers[key] = self._stack.enter_context(server)
            if self.options.warmup:
                warmup = dataclasses.replace(load, num_prompts=self.options.warmup, request_rate=None)
                try:
                    serving_runs.run_serving(server, warmup, WARMUP_SEED, self.commands.serving, self.options.timeout)
                except RunFailed as failure:
                    raise RunFailed(f"warm-up: {failure}") from None  # its figures are nobody's
        return self._servers[key]

    def _end_servers(self) -> None:
        self._servers.clear()
        self._stack.close()

    def _identity_fields(self, step: Step) -> dict:
        setting = step.setting
        return {
            "study": self.name,
            "set": {"name": setting.name, "env": setting.env, "flags": [relative(flag) for flag in setting.flags]},
            "server_flags": [relative(flag) for flag in self.server_flags],
            "workload": as_json(step.workload),
            "repeat": step.repeat,
            "seed": self.options.seed,
            "warmup": self.options.warmup,
        }

    def _identity(self, step: Step) -> dict:
        return identity_of(self._identity_fields(step) | {"meta": self.metas[step.setting.name]})


def summary(record: dict) -> str:
    """What to say of a measurement while the others go on."""
    kind, result = record["workload"]["kind"], record["result"]
    if kind == "serving":
        times = ", ".join(f"{name.upper()} {result[f'median_{name}_ms']:.1f} ms" for name in ("ttft", "tpot"))
        return f"{result['output_throughput']:.0f} output tok/s, {times}"
    if kind == "cold_start":
        return f"ready after {result['ready_seconds']:.1f} s"
    return f"{len(next(iter(result.values())))} lines"


def left_out_text(steps: Iterable[Step]) -> str:
    """One line a setting and workload, with the repeats that are missing."""
    repeats: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        repeats.setdefault((step.setting.name, step.workload.name), []).append(str(step.repeat + 1))
    return "\n".join(f"  {name}: {workload}, repeat {', '.join(r)}" for (name, workload), r in repeats.items())
