"""Microseconds of CPU to schedule a step, with a model that costs nothing: python benchmark/scheduler/bench_steps.py

A step is everything the scheduler does for one decode of all running requests: receive, plan, give out slots, build
the arrays, process the tokens and make the messages. Prints the median over `--steps` steps for each batch size.
"""

import argparse
import statistics
import time

import msgspec

from sglang.srt.mem_cache.arena import ArenaShape
from sglang.test.fake_worker import NullWorker
from sglang.test.scheduler_harness import Harness


def measure(running: int, steps: int, stream: bool) -> float:
    """Median microseconds of CPU a step with `running` requests decoding."""
    h = Harness(
        shape=ArenaShape(pages := 32 * running + 200, 640, 64, pages * 640, pages * 64, 64),
        window=1024,
        rows=running,
        max_len=4096,
        chunk=8192,
        worker=NullWorker(),
    )
    for i in range(running):
        h.add(f"r{i}", [(i * 7 + j) % 900 for j in range(100)], 3900, stream=stream)
    encoder = msgspec.msgpack.Encoder()
    h.scheduler.send = encoder.encode  # what a socket's sender does with a message
    while len(h.scheduler.running) < running or any(r.is_prefilling for r in h.scheduler.running):
        h.step()
    times = []
    for _ in range(steps):
        start = time.thread_time()
        h.step()
        times.append(time.thread_time() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--no-stream", action="store_true", help="requests that are answered at their end only")
    args = parser.parse_args()
    print("running requests | us of CPU a step")
    for running in args.running:
        print(f"{running:16d} | {measure(running, args.steps, not args.no_stream):9.0f}")


if __name__ == "__main__":
    main()
