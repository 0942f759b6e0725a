"""How kernel benchmarks take times: replayed from a CUDA graph, as a server runs its decode steps."""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

BANDWIDTH = 4.3e12  # bytes a second, measured on an H200: of the floors
L2_BYTES = 50 << 20


def buffers(*shape: int) -> list[Tensor]:
    """Random bfloat16 inputs that do not fit the L2 cache together, except where it would take more than 64."""
    count = min(64, 1 + 2 * L2_BYTES // (2 * math.prod(shape)))
    return [torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for _ in range(count)]


def rotating_us(inputs: Iterable, run: Callable, *rest, calls: int = 32, **named) -> float:
    """Median microseconds of `run(input, *rest, **named)`; inputs take turns in `calls` calls of one graph."""
    source = cycle(inputs)
    return graph_us([partial(run, next(source), *rest, **named) for _ in range(calls)], replays=20)


def graph_us(calls: Iterable[Callable[[], object]], replays: int) -> float:
    """Median microseconds of one call: all calls in one CUDA graph, the way a server runs them, replayed."""
    calls = list(calls)
    calls[0]()  # compiles, outside of the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return median_us(graph.replay, replays) / len(calls)


def median_us(run: Callable[[], object], samples: int) -> float:
    """Median microseconds between events before and after `run()`, after a first one that does not count."""
    run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(samples)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) * 1000


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="append what switches change, a JSON line a case")


def add_case(path: Path | None, kernel: str, case: str, us: float, off_us: float | None, floor_us: float) -> None:
    """Append a case to the `--json` file, if there is one: what a server would run, and `off_us` with the
    environment variable set that switches the kernel's optimization off, None if that changes nothing here."""
    if path is not None:
        line = {"kernel": kernel, "case": case, "us": us, "off_us": off_us, "floor_us": floor_us}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
