"""How long does a decode step keep a GPU busy? Replays its CUDA graph back to back, without what the host does between.

    python benchmark/gemma4/step_time.py --model-path benchmark/gemma4/configs/26b-a4b --load-format dummy \\
        [--batch-size 1 8 26 64] [--input-len 1100] [--prompt-len 1024] [--trace]

Takes the server's flags. Sampling is left out. Two runs differ by 0.1 %, where bench_one_batch, which waits for each
step, shows the host's moods too. With --prompt-len also mixed steps, which compute such a prompt beside the decodes:
median milliseconds until the host has launched one, and until its tokens are there; where both are the same the GPU
waits for the host. With --trace also the kernels of one step of the first size: microseconds of its begin and end, and
how long it took.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from sglang.benchmark.static_batch import StaticBatch
from sglang.benchmark.static_bench import Bench, Case
from sglang.srt.arg_fields import OneLineParser
from sglang.srt.model_executor.step_layout import decode_layout
from sglang.srt.server_args import parse_with_server_args
from sglang.srt.utils.child import setup_logging, startup_errors
from sglang.srt.utils.flag_types import at_least
from sglang.test.kernel_timing import median_us

SAMPLES, STEPS = 20, 3  # of a median, and in each: steps that follow each other
MIXED_STEPS, FIRST_MIXED = 12, 3  # of a median, and before them


@torch.inference_mode()
def step_ms(step: Callable[[], object]) -> float:
    """Median milliseconds of a step."""

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return median_us(steps, SAMPLES) / 1000 / STEPS


@torch.inference_mode()
def trace(step: Callable[[], object]) -> list[str]:
    """A line for each kernel of the second of the steps."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    events = events[len(events) // STEPS : len(events) * 2 // STEPS]
    times = [(e.time_range.start - events[0].time_range.start, e.time_range.elapsed_us(), e.name) for e in events]
    return [f"{begin:9.2f} {begin + us:9.2f} {us:7.2f} {name[:80]}" for begin, us, name in times]


def mixed_ms(bench: Bench, batch: StaticBatch, prompt_len: int) -> tuple[float, float]:
    """Median milliseconds of a step that computes a prompt beside the batch's decodes: launched, and done."""
    launched, done = [], []
    for _ in range(FIRST_MIXED + MIXED_STEPS):
        with bench.batch(Case(1, prompt_len, 1)) as prompt:
            [step] = prompt.prefill_steps(beside=batch)
            bench.synchronize()
            start = time.perf_counter()
            pending = bench.worker.submit(step)
            launched.append(time.perf_counter() - start)
            pending.result()
            done.append(time.perf_counter() - start)
    return tuple(statistics.median(times[FIRST_MIXED:]) * 1000 for times in (launched, done))


def measure(bench: Bench, own: argparse.Namespace) -> None:
    graphs = bench.worker.runner.graphs
    if graphs is None:
        raise ValueError("there is no graph to replay: this needs a GPU, and neither speculation nor single launches")
    chunk, mixed_steps = bench.args.chunked_prefill_size, 0
    if own.prompt_len:
        mixed_steps = FIRST_MIXED + MIXED_STEPS
        if 0 < chunk < own.prompt_len:
            raise ValueError(
                f"--prompt-len {own.prompt_len} is above --chunked-prefill-size {chunk}, the most of a step"
            )
    titles = ["batch", "step ms"] + ["mixed launched ms", "mixed ms"] * bool(own.prompt_len)
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for batch_size in own.batch_size:
        case = Case(batch_size, own.input_len, 2 + mixed_steps)
        bench.check(case)
        with bench.batch(case) as batch:
            for step in batch.prefill_steps():
                bench.worker.submit(step).result()
            step = batch.decode_step()
            inputs = decode_layout(step)

            def replay(inputs: np.ndarray = inputs) -> None:
                graphs.run(inputs)

            times = [step_ms(replay)]
            lines = trace(replay) if own.trace and batch_size == own.batch_size[0] else []
            batch.keep([[0]] * batch_size)
            times += mixed_ms(bench, batch, own.prompt_len) if own.prompt_len else ()
            print(f"| {batch_size} | {' | '.join(f'{ms:.3f}' for ms in times)} |", flush=True)
        bench.kv.check_idle()
        print("\n".join(lines), end="\n" * bool(lines))


def add_flags(parser: OneLineParser) -> None:
    parser.set_defaults(log_level="warning", random_seed="0")
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "--batch-size", type=at_least(1), nargs="+", default=[1, 8, 26, 64], metavar="N", help="requests"
    )
    group.add_argument("--input-len", type=at_least(1), default=1100, metavar="N", help="cached tokens of each")
    group.add_argument("--prompt-len", type=at_least(1), metavar="N", help="also steps with a prompt of so many tokens")
    group.add_argument("--trace", action="store_true", help="also the kernels of a step of the first size")


def main(argv: list[str]) -> int:
    description = "Time decode steps on a GPU alone."
    typed, own = parse_with_server_args(argv, "python benchmark/gemma4/step_time.py", description, add_flags)
    setup_logging(typed.log_level, "bench")
    with startup_errors():
        measure(Bench(dataclasses.replace(typed, disable_radix_cache=True)), own)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
