"""`python -m sglang.bench_one_batch`: latency of one static batch, without a server or a scheduler.

    python -m sglang.bench_one_batch --batch-size 1 8 26 64 --input-len 1024 --output-len 64 --model-path FOLDER
    python -m sglang.bench_one_batch --correctness-test --model-path FOLDER

Takes the server's flags; with --tp-size the ranks are processes on this machine. A batch runs through the steps that
serve requests: prompt chunks, CUDA graphs for decodes, tokens chosen on the device. What is timed of a step goes from
giving out slots to its tokens on the host, the device idle before and after. Exit codes: 2 for a mistake of the user's,
1 when the correctness test fails or a rank ends.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

from sglang.benchmark.bench_ranks import leading, other_ranks
from sglang.benchmark.static_bench import Bench, Case, Run
from sglang.srt.arg_fields import OneLineParser
from sglang.srt.model_loader.hub import with_folders
from sglang.srt.server_args import parse_with_server_args
from sglang.srt.utils.child import run_and_leave, setup_logging, startup_errors
from sglang.srt.utils.flag_types import at_least

WARMUP_TOKENS = 4  # output tokens of the run that compiles and allocates
PROFILE_STEPS = 5  # recorded of each stage
FIRST_STEPS = 5  # decode steps that are always printed


def summary(case: Case, runs: list[Run]) -> dict:
    """The figures of a case as medians over its runs; seconds and tokens a second."""
    tokens_in = case.batch_size * case.input_len
    tokens_out = case.batch_size + statistics.median(run.tokens for run in runs)
    prefill = statistics.median(run.prefill for run in runs)
    total = statistics.median(run.prefill + sum(run.decodes) for run in runs)
    figures = {"prefill_latency": prefill, "prefill_throughput": tokens_in / prefill}
    if case.output_len > 1:
        decode = statistics.median(statistics.median(run.decodes) for run in runs)
        steps = sum(len(run.decodes) for run in runs)
        tokens_a_step = sum(run.tokens for run in runs) / steps
        figures |= {"median_decode_latency": decode, "median_decode_throughput": tokens_a_step / decode}
        if tokens_a_step > case.batch_size:
            figures["accept_length"] = tokens_a_step / case.batch_size
    return figures | {"total_latency": total, "overall_throughput": (tokens_in + tokens_out) / total}


def print_run(case: Case, run: Run, log_decode_step: int) -> None:
    tokens = case.batch_size * case.input_len
    in_steps = f" in {run.prefill_steps} steps" if run.prefill_steps > 1 else ""
    print(f"Prefill. latency: {run.prefill:8.5f} s, throughput: {tokens / run.prefill:10.2f} token/s{in_steps}")
    for i, seconds in enumerate(run.decodes):
        if i < FIRST_STEPS or (log_decode_step and i % log_decode_step == 0):
            rate = f"latency: {seconds:8.5f} s, throughput: {case.batch_size / seconds:10.2f} token/s"
            print(f"Decode {i}. Batch size: {case.batch_size}, {rate}")


def print_summary(figures: dict) -> None:
    def line(title: str, latency: str, throughput: str) -> None:
        print(f"{title} latency: {figures[latency]:8.5f} s, throughput: {figures[throughput]:10.2f} token/s")

    line("Prefill.", "prefill_latency", "prefill_throughput")
    if "median_decode_latency" in figures:
        line("Decode.  median", "median_decode_latency", "median_decode_throughput")
    line("Total.", "total_latency", "overall_throughput")


def profile(bench: Bench, case: Case) -> None:
    """One more run of the case, with rank 0's trace and a table of each stage. Raises OSError when they can't be
    written."""
    from sglang.srt.managers.io_struct import ProfileSettings
    from sglang.srt.managers.step_profiler import StepProfiler
    from sglang.srt.utils.trace_table import stage_table

    case = dataclasses.replace(case, output_len=min(case.output_len, PROFILE_STEPS + 1))
    if bench.tp.rank > 0:
        bench.run(case)
        return
    prefix = f"bench_one_batch-{case.batch_size}-{case.input_len}"
    settings = ProfileSettings(num_steps=PROFILE_STEPS, profile_by_stage=True, profile_prefix=prefix)
    profiler = StepProfiler(bench.worker, settings)
    bench.run(case, profiler)
    profiler.stop()
    profiler.wait()
    if profiler.error:
        raise OSError(profiler.error)
    for path in profiler.files:
        print(f"\n{path}\n{stage_table(path).text(limit=30)}")


def measure(bench: Bench, case: Case, own: argparse.Namespace) -> dict:
    """Run and print a case; its record."""
    print(f"\nBenchmark. batch size: {case.batch_size}, input: {case.input_len}, output: {case.output_len}")
    bench.run(dataclasses.replace(case, output_len=min(case.output_len, WARMUP_TOKENS)))
    runs = []
    for _ in range(own.repeats):
        runs.append(bench.run(case))
        print_run(case, runs[-1], own.log_decode_step)
    figures = summary(case, runs)
    if own.repeats > 1:
        print(f"Medians of {own.repeats} runs:")
    print_summary(figures)
    details = {"prefill_steps": runs[0].prefill_steps, "repeats": own.repeats, "device": bench.device_name()}
    return {"run_name": own.run_name} | dataclasses.asdict(case) | figures | details


def plan(bench: Bench, own: argparse.Namespace, results: TextIO | None) -> Callable[[], int]:
    """What every rank is to run, which returns the exit code: the correctness test, or all cases with a line each in
    `results`. Raises ValueError for what can't be run."""
    if own.correctness_test:
        from sglang.benchmark.prefix_check import PrefixCheck

        check = PrefixCheck(bench, own.cut_len, own.output_len[0])
        return lambda: 0 if check.run() else 1
    cases = [Case(*lengths) for lengths in itertools.product(own.batch_size, own.input_len, own.output_len)]
    for case in cases:
        bench.check(case)
    return partial(run_cases, bench, cases, own, results)


def run_cases(bench: Bench, cases: list[Case], own: argparse.Namespace, results: TextIO) -> int:
    for case in cases:
        results.write(json.dumps(measure(bench, case, own)) + "\n")
        results.flush()
        if own.profile:
            profile(bench, case)
    return 0


def add_flags(parser: OneLineParser) -> None:
    parser.set_defaults(log_level="warning", random_seed="0")
    group = parser.add_argument_group("benchmark (--log-level is warning and --random-seed 0 here if not given)")

    def add(flag: str, default, text: str, **options) -> None:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        group.add_argument(flag, default=default, help=f"{text} (default: {shown})", **options)

    add("--batch-size", [1], "requests", type=at_least(1), nargs="+", metavar="N")
    add("--input-len", [1024], "prompt tokens of each", type=at_least(1), nargs="+", metavar="N")
    add("--output-len", [16], "output tokens of each, the prefill's included", type=at_least(1), nargs="+", metavar="N")
    add("--repeats", 1, "timed runs of each combination; figures are their medians", type=at_least(1), metavar="N")
    add("--run-name", "default", "written into the records", metavar="TEXT")
    add("--result-filename", "result.jsonl", "a JSON line of each combination is added here", metavar="PATH")
    every = f"print every Nth decode step, beside the first {FIRST_STEPS}; 0 for no others"
    add("--log-decode-step", 0, every, type=at_least(0), metavar="N")
    add("--cut-len", 4, "prompt tokens that the correctness test reuses", type=at_least(1), metavar="N")
    group.add_argument(
        "--profile",
        action="store_true",
        help="one more run of each combination with torch's profiler: traces into SGLANG_TORCH_PROFILER_DIR (/tmp), "
        "tables of both stages",
    )
    group.add_argument(
        "--correctness-test",
        action="store_true",
        help="instead of timing: the tokens and log-probabilities of short prompts, computed whole and from a reused "
        "prefix, which must agree",
    )


def main(argv: list[str], prog: str = "python -m sglang.bench_one_batch") -> int:
    typed, own = parse_with_server_args(argv, prog, "Time one static batch without a server.", add_flags)
    setup_logging(typed.log_level, "bench")
    with contextlib.ExitStack() as at_the_end:
        with startup_errors():
            typed = with_folders(typed, print)
            results = None
            if not own.correctness_test:
                results = at_the_end.enter_context(open(own.result_filename, "a"))
                typed = dataclasses.replace(typed, disable_radix_cache=True)
            if own.profile:
                from sglang.srt.managers.step_profiler import profile_folder

                profile_folder(None)
            bench = Bench(typed, at_the_end.enter_context(other_ranks(typed)))
            run = plan(bench, own, results)
        with leading(bench, own):
            return run()


if __name__ == "__main__":
    run_and_leave(lambda: main(sys.argv[1:]))
