"""Runs registered test files, one process a file, and counts what they report and take.

    python test/run_suite.py --hw cpu                                  # all CPU suites but the weekly, in their order
    python test/run_suite.py --hw cpu --suite unit-test-cpu            # a minute, no torch
    python test/run_suite.py --hw cuda --suite extra-a-test-2-gpu-large
    python test/run_suite.py --hw cpu --jobs 2 --continue-on-error     # two files at a time, the longest first

Files are test/registered/**/*.py, each executed as `python3 FILE -f`; with --hw cpu forked from a process that has
imported what they import, torch above all, unless --fresh is given. The last line of the output reads `N passed, M
failed` (and `, K skipped`). Exit code: 0 when something ran and nothing failed, 1 otherwise, 2 for wrong
flags, or --hw cuda without a GPU. Counts come from the XML report that pytest writes, or from unittest's summary; a
file that ends badly without a failed test in its report counts as one failure.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TextIO

from sglang.test.ci.ci_register import KNOWN_SUITES, UNIT_SUITE, WEEKLY_SUITE, CIRecord, RegistrationError, parse
from sglang.test.ci.file_process import POLL_S, TERM_GRACE_S, Files
from sglang.test.ci.kinds import kind_of

REGISTERED = Path(__file__).resolve().parent / "registered"
BACKENDS = ("cpu", "cuda", "amd", "musa", "npu", "xpu", "mlx")
TAIL_LINES = 2000  # output kept a file, to judge a retry and to find unittest's summary
# What files of a suite get beside the runner's own environment, and pytest's flags there.
SUITE_ENV = {WEEKLY_SUITE: {"SGLANG_TEST_WEEKLY": "1"}}  # sglang.test.triton_compile
SAME_EXAMPLES = {"CI": "true"}  # hypothesis then takes the same on every run: only a change makes a test fail
SUITE_ADDOPTS = {UNIT_SUITE: "-p sglang.test.without_torch"}

_stop = threading.Event()  # the runner is being stopped: files end, none begins

# A retry is for results that vary from run to run; broken code stays broken.
FAILURE_LINE = re.compile(r"^(E|>)\s|Error|FAILED|[Aa]ssert")
VARYING = re.compile(r"not (greater|less) than|\b(score|accuracy|latency|throughput)|time(d )?.?out", re.IGNORECASE)
CODE_ERROR = re.compile(
    r"SyntaxError|ImportError|ModuleNotFoundError|NameError|TypeError|AttributeError|RuntimeError|"
    r"out of memory|OutOfMemoryError|Segmentation fault|core dumped|illegal memory access|Fatal Python error"
)


@dataclasses.dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")


@dataclasses.dataclass
class Attempt:
    counts: Counts
    note: str  # why the file failed beyond its counts, "" if nothing
    output: str  # the end of it
    timed_out: bool
    cpu_seconds: float  # of its process and the children that this waited for


@dataclasses.dataclass
class FileResult:
    record: CIRecord
    last: Attempt
    attempts: int
    seconds: float
    cpu_seconds: float  # of all attempts

    @property
    def counts(self) -> Counts:
        return self.last.counts


def collect(root: Path) -> tuple[list[CIRecord], list[str]]:
    """All registrations under `root`, and one message for each file that has none or a wrong one."""
    records, errors = [], []
    for path in sorted(root.rglob("*.py")):
        if path.name in ("conftest.py", "__init__.py"):
            continue
        try:
            records += parse(path)
        except RegistrationError as e:
            errors.append(str(e))
        except SyntaxError as e:
            errors.append(f"{path}:{e.lineno}: {e.msg}")
    return records, errors


def partition(records: list[CIRecord], shards: int) -> list[list[CIRecord]]:
    """Longest file first onto the shard with the least work; the same on every machine."""
    parts: list[list[CIRecord]] = [[] for _ in range(shards)]
    loads = [0.0] * shards
    for record in sorted(records, key=lambda r: (-r.est_time, str(r.path))):
        lightest = loads.index(min(loads))
        parts[lightest].append(record)
        loads[lightest] += record.est_time
    return parts


def select(records: list[CIRecord], hw: str, suite: str | None, nightly: bool) -> list[CIRecord]:
    """Registrations of a suite, or of all the backend's suites but the weekly one; disabled ones included."""
    named = [r for r in records if (r.suite != WEEKLY_SUITE if suite is None else r.suite == suite)]
    found = [r for r in named if r.backend == hw and r.nightly == nightly]
    order = KNOWN_SUITES.get(hw, [])
    return sorted(found, key=lambda r: (order.index(r.suite) if r.suite in order else len(order), str(r.path)))


def should_retry(output: str, timed_out: bool) -> bool:
    failures = "\n".join(line for line in output.splitlines() if FAILURE_LINE.search(line))
    return not CODE_ERROR.search(output) and (timed_out or bool(VARYING.search(failures)))


def default_timeout(est_time: float) -> float:
    return max(1.5 * est_time, est_time + 1800)


def run_file(files: Files, path: Path, suite: str, timeout_s: float, shown: TextIO) -> Attempt:
    """Execute one file, its output copied to `shown`."""
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    timed_out = False
    with tempfile.TemporaryDirectory(prefix="run_suite_") as folder:
        report = Path(folder) / "report.xml"
        flags = [os.environ.get("PYTEST_ADDOPTS", ""), SUITE_ADDOPTS.get(suite, ""), f"--junitxml={report}"]
        env = SUITE_ENV.get(suite, SAME_EXAMPLES) | {"PYTEST_ADDOPTS": " ".join(filter(None, flags))}
        readable, writable = os.pipe()
        reader = threading.Thread(target=_echo, args=(readable, tail, shown), daemon=True)
        reader.start()
        try:
            process = files.start(path, suite, env, writable)
        except RuntimeError as e:
            return Attempt(Counts(failed=1), str(e), "", False, 0.0)
        finally:
            os.close(writable)
        deadline = time.monotonic() + timeout_s
        try:
            while process.poll() is None and not _stop.wait(POLL_S):
                if timed_out := time.monotonic() > deadline:
                    break
        finally:  # also when the runner itself is stopped: servers started by the file must not stay
            process.end()
            reader.join(TERM_GRACE_S)
        output = "".join(tail)
        counts = _counts_from_xml(report) or _counts_from_unittest(output)
    note = ""
    if timed_out:
        note = f"timed out after {timeout_s:.0f} s"
    elif process.returncode < 0:
        note = f"killed by {signal.Signals(-process.returncode).name}"
    elif process.returncode > 0:
        note = f"exit code {process.returncode}"
    elif counts is None:
        note = "reported no tests"
    counts = counts or Counts()
    if note and not counts.failed:
        counts.failed = 1
    return Attempt(counts, note, output, timed_out, process.cpu_seconds)


def _echo(readable: int, tail: deque, shown: TextIO) -> None:
    with open(readable, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            tail.append(line)
            shown.write(line)
            shown.flush()


def _counts_from_xml(report: Path) -> Counts | None:
    """None when there is no report: not pytest, or it died before the end."""
    if not report.exists():
        return None
    total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        for key in total:
            total[key] += int(suite.get(key, 0))
    failed = total["failures"] + total["errors"]
    return Counts(max(0, total["tests"] - failed - total["skipped"]), failed, total["skipped"])


def _counts_from_unittest(output: str) -> Counts | None:
    ran = re.findall(r"^Ran (\d+) tests? in ", output, re.MULTILINE)
    if not ran:
        return None
    summary = re.findall(r"^(?:OK|FAILED)(?: \((.*)\))?$", output, re.MULTILINE)
    numbers = dict(re.findall(r"([a-z ]+)=(\d+)", summary[-1].replace(", ", ",") if summary else ""))
    failed = sum(int(numbers.get(k, 0)) for k in ("failures", "errors", "unexpected successes"))
    skipped = int(numbers.get("skipped", 0)) + int(numbers.get("expected failures", 0))
    return Counts(max(0, int(ran[-1]) - failed - skipped), failed, skipped)


def run_with_retries(record: CIRecord, args: argparse.Namespace, files: Files, shown: TextIO) -> FileResult:
    timeout_s = args.timeout_per_file or default_timeout(record.est_time)
    attempts = args.max_attempts if args.enable_retry else 1
    start, cpu_seconds = time.monotonic(), 0.0
    for attempt in range(1, attempts + 1):
        last = run_file(files, record.path, record.suite, timeout_s, shown)
        cpu_seconds += last.cpu_seconds
        if not last.counts.failed or attempt == attempts or not should_retry(last.output, last.timed_out):
            break
        again = f"again in {args.retry_wait_seconds} s"
        print(f"\n[run_suite] attempt {attempt} of {attempts} failed; {again}", file=shown, flush=True)
        if _stop.wait(args.retry_wait_seconds):
            break
        timeout_s += args.retry_timeout_increase
    return FileResult(record, last, attempt, time.monotonic() - start, cpu_seconds)


def run_in_order(chosen: list[CIRecord], args: argparse.Namespace, files: Files, root: Path) -> Iterator[FileResult]:
    for number, record in enumerate(chosen, 1):
        print(f"\n[run_suite] {number}/{len(chosen)} {record.suite}: {record.path.relative_to(root)}", flush=True)
        yield run_with_retries(record, args, files, sys.stdout)


def run_at_once(chosen: list[CIRecord], args: argparse.Namespace, files: Files, root: Path) -> Iterator[FileResult]:
    """`args.jobs` files at a time, the longest first, and one of those that mostly wait beside them; a file's output is
    printed in one piece when it has ended."""

    def work(record: CIRecord) -> tuple[FileResult, str]:
        output = io.StringIO()
        return run_with_retries(record, args, files, output), output.getvalue()

    at_work, waiting = ThreadPoolExecutor(args.jobs), ThreadPoolExecutor(1)
    try:
        order = sorted(chosen, key=lambda r: -r.est_time)
        futures = [(waiting if record.mostly_waits else at_work).submit(work, record) for record in order]
        for number, future in enumerate(as_completed(futures), 1):
            result, output = future.result()
            print(f"\n[run_suite] {number}/{len(order)} {result.record.suite}: {result.record.path.relative_to(root)}")
            print(output, flush=True)
            yield result
    finally:  # also after a failure, and when the runner is stopped: what runs is ended, nothing more begins
        _stop.set()
        at_work.shutdown(cancel_futures=True)
        waiting.shutdown(cancel_futures=True)
        _stop.clear()


def thread_limits(jobs: int) -> dict[str, str]:
    """The environment in which torch's pools of so many files at a time do not fight over cores."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}


def has_gpu() -> bool:
    import torch  # late: a second that the CPU suites need not wait for

    return torch.cuda.is_available()


def print_timings(results: list[FileResult], not_run: list[CIRecord], root: Path) -> None:
    print("\nTIMINGS (seconds, processor seconds, [estimate])")
    for r in results:
        retried = f" after {r.attempts} attempts" if r.attempts > 1 else ""
        note = f" ({r.last.note})" if r.last.note else ""
        name = r.record.path.relative_to(root)
        print(f"{r.seconds:9.1f} {r.cpu_seconds:7.1f} [{r.record.est_time:g}] {name}: {r.counts}{retried}{note}")
    for record in not_run:
        print(f"        -       - [{record.est_time:g}] {record.path.relative_to(root)}: not run")
    print("BY KIND (seconds, processor seconds, files)")
    by_kind: dict[str, list[FileResult]] = {}
    for r in results:
        by_kind.setdefault(kind_of(r.record.path, r.record.suite), []).append(r)
    for kind, of_kind in sorted(by_kind.items(), key=lambda item: -sum(r.cpu_seconds for r in item[1])):
        print(f"{_sums(of_kind)} [{len(of_kind)}] {kind}")
    print(f"{_sums(results)} in all", flush=True)


def _sums(results: list[FileResult]) -> str:
    return f"{sum(r.seconds for r in results):9.1f} {sum(r.cpu_seconds for r in results):7.1f}"


def parse_flags(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run_suite.py", description="Run registered tests.", allow_abbrev=False)
    parser.add_argument("--hw", required=True, choices=BACKENDS)
    parser.add_argument("--suite", help="one suite; with --hw cpu all but the weekly one if not given")
    parser.add_argument("--nightly", action="store_true", help="the registrations with nightly=True")
    parser.add_argument("--timeout-per-file", type=float, help="seconds (default: max(1.5 est, est + 1800))")
    parser.add_argument("--continue-on-error", action="store_true", help="run the other files after a failure")
    parser.add_argument("--jobs", type=int, default=1, help="files to run at a time")
    parser.add_argument("--fresh", action="store_true", help="a new interpreter for each file (always with --hw cuda)")
    parser.add_argument("--auto-partition-id", type=int, help="this shard, from 0")
    parser.add_argument("--auto-partition-size", type=int, help="number of shards")
    parser.add_argument("--enable-retry", action="store_true", help="retry accuracy, speed and time-out failures")
    parser.add_argument("--max-attempts", type=int, default=2)
    parser.add_argument("--retry-wait-seconds", type=float, default=60)
    parser.add_argument("--retry-timeout-increase", type=float, default=600, help="seconds more for each retry")
    args = parser.parse_args(argv)
    shard, shards = args.auto_partition_id, args.auto_partition_size
    if args.suite is None and args.hw != "cpu":
        parser.error(f"--hw {args.hw} needs --suite")
    if (shard is None) != (shards is None):
        parser.error("--auto-partition-id and --auto-partition-size go together")
    if shards is not None and not 0 <= shard < shards:
        parser.error(f"--auto-partition-id {shard} must be from 0 to {shards - 1}")
    if args.timeout_per_file is not None and args.timeout_per_file <= 0:
        parser.error("--timeout-per-file must be more than 0")
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    if args.max_attempts < 1:
        parser.error("--max-attempts must be at least 1")
    return args


def main(argv: list[str], root: Path = REGISTERED) -> int:
    args = parse_flags(argv)
    total = Counts()
    records, errors = collect(root)
    if errors:
        print("\n".join(f"error: {e}" for e in errors))
        total.failed = len(errors)
        print(total)
        return 1
    if args.hw == "cuda" and not has_gpu():
        print("error: --hw cuda: torch sees no GPU on this machine", file=sys.stderr)
        return 2
    if args.suite is not None and args.suite not in KNOWN_SUITES.get(args.hw, [args.suite]):
        print(f"warning: {args.hw} has no suite {args.suite!r}; known: {', '.join(KNOWN_SUITES[args.hw])}")
    chosen = select(records, args.hw, args.suite, args.nightly)
    for record in chosen:
        if record.disabled:
            print(f"[run_suite] disabled: {record.path.relative_to(root)}: {record.disabled}")
    chosen = [r for r in chosen if not r.disabled]
    if args.auto_partition_size is not None:
        mine = partition(chosen, args.auto_partition_size)[args.auto_partition_id]
        chosen = [r for r in chosen if r in mine]
    estimate = sum(r.est_time for r in chosen)
    print(f"[run_suite] {len(chosen)} files, about {estimate:.0f} s", flush=True)

    results: list[FileResult] = []
    start = time.monotonic()
    run = run_in_order if args.jobs == 1 else run_at_once
    files = Files(thread_limits(args.jobs), args.fresh or args.hw != "cpu")
    with contextlib.closing(files), contextlib.closing(run(chosen, args, files, root)) as finished:
        for result in finished:
            results.append(result)
            total.passed += result.counts.passed
            total.failed += result.counts.failed
            total.skipped += result.counts.skipped
            if result.counts.failed and not args.continue_on_error:
                break
    done = {result.record.path for result in results}
    print_timings(results, [r for r in chosen if r.path not in done], root)
    print(f"{time.monotonic() - start:9.1f} from first to last")
    ran = total.passed + total.failed
    if not ran:
        print("error: no test ran")
    print(total, flush=True)
    return 0 if ran and not total.failed else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that run_file's clean-up happens
    # A shell's background job begins with SIGINT ignored, and what the tests start would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
