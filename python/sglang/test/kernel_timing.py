"""How kernel benchmarks take times: replayed from a CUDA graph, as a server runs its decode steps."""

import statistics
from collections.abc import Callable, Iterable

import torch


def graph_us(calls: Iterable[Callable[[], object]], replays: int) -> float:
    """Median microseconds of one call: all calls in one CUDA graph, the way a server runs them, replayed."""
    calls = list(calls)
    calls[0]()  # compiles, outside of the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(replays)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) * 1000 / len(calls)
