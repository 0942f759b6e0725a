"""Tables from torch's profiler traces: which kernels took the time of a stage. It reads files; no torch, no server."""

import gzip
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass

import msgspec

GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
STAGE_PATTERN = re.compile(r"-TP-\d+-(EXTEND|DECODE)\.trace\.json")
NAME_WIDTH = 78  # kernels of templates have names of hundreds of characters


class Event(msgspec.Struct):
    """An entry of a trace's list; `ts` and `dur` in microseconds."""

    ph: str = ""
    name: str = ""
    cat: str = ""
    ts: float = 0.0
    dur: float = 0.0
    pid: int | str = 0
    tid: int | str = 0


class Trace(msgspec.Struct):
    traceEvents: list[Event]  # the format's own name


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    total_ms: float
    share: float  # of the stage's busy time


@dataclass(frozen=True)
class StageTable:
    """`rows` by falling total. `busy_ms` is the sum over them, `span_ms` from the first one's start to the last's end.
    A CPU op counts without the ops it calls, so that nothing counts twice."""

    stage: str
    kind: str
    steps: int
    busy_ms: float
    span_ms: float
    rows: list[Row]

    def text(self, limit: int) -> str:
        """As printed: the `limit` largest rows and the rest in one."""
        rest = self.rows[limit:]
        shown = self.rows[:limit]
        if rest:
            total = sum(r.total_ms for r in rest)
            count = sum(r.count for r in rest)
            shown = [*shown, Row(f"({len(rest)} more)", count, total, total / self.busy_ms if self.busy_ms else 0.0)]
        steps = f"{self.steps} steps, " if self.steps else ""  # not in every trace
        head = f"{self.stage}: {steps}{self.kind} busy {self.busy_ms:.3f} ms of {self.span_ms:.3f} ms"
        lines = [head, f"{'name':{NAME_WIDTH}} {'count':>8} {'total ms':>12} {'share':>7}"]
        for row in shown:
            name = row.name if len(row.name) <= NAME_WIDTH else f"{row.name[: NAME_WIDTH - 3]}..."
            lines.append(f"{name:{NAME_WIDTH}} {row.count:8d} {row.total_ms:12.3f} {row.share:7.1%}")
        return "\n".join(lines)


def read_trace(path: str) -> list[Event]:
    """A trace's complete events. Raises OSError, or ValueError that names a file which is no trace."""
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            events = msgspec.json.decode(file.read(), type=Trace).traceEvents
    except (gzip.BadGzipFile, EOFError, zlib.error, msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is no profiler trace: {e}") from e
    return [event for event in events if event.ph == "X"]


def stage_table(path: str) -> StageTable:
    """The table of one trace file: of its GPU's kernels, else of its CPU ops. Raises as read_trace does."""
    events = read_trace(path)
    match = STAGE_PATTERN.search(path)
    steps = sum(event.cat == "user_annotation" and event.name.startswith("step ") for event in events)
    timed = [event for event in events if event.cat in GPU_CATEGORIES]
    kind = "GPU kernels"
    times = [event.dur for event in timed]
    if not timed:
        timed = [event for event in events if event.cat == "cpu_op"]
        kind, times = "CPU ops", self_times(timed)
    totals: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    for event, us in zip(timed, times, strict=True):
        totals[event.name] += us
        counts[event.name] += 1
    busy = sum(totals.values())
    rows = [Row(name, counts[name], us / 1e3, us / busy if busy else 0.0) for name, us in totals.items()]
    rows.sort(key=lambda row: (-row.total_ms, row.name))
    span = max((e.ts + e.dur for e in timed), default=0.0) - min((e.ts for e in timed), default=0.0)
    return StageTable(match[1] if match else "all steps", kind, steps, busy / 1e3, span / 1e3, rows)


def self_times(ops: list[Event]) -> list[float]:
    """Microseconds each op took without the ops inside it on its thread, in the order given."""
    own = [op.dur for op in ops]
    open_ops: defaultdict[tuple, list[int]] = defaultdict(list)  # of each thread, the innermost last
    for i in sorted(range(len(ops)), key=lambda i: (ops[i].ts, -ops[i].dur)):
        op, stack = ops[i], open_ops[ops[i].pid, ops[i].tid]
        while stack and ops[stack[-1]].ts + ops[stack[-1]].dur <= op.ts:
            stack.pop()
        if stack:
            own[stack[-1]] -= op.dur
        stack.append(i)
    return own
