"""CudaGraphRunner: decode steps captured once for each of a few batch sizes, so that a step costs one launch.

A step of n requests runs in the smallest graph of at least n; the other columns are padding: request row 0 and
slot 0. Graphs share one memory pool, the largest captured first, since steps never overlap.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from sglang.srt.utils.device_copies import fill, to_device
from sglang.srt.utils.device_memory import free_memory

logger = logging.getLogger(__name__)

Outputs = TypeVar("Outputs")


def capture_sizes(max_bs: int) -> list[int]:
    """Batch sizes up to `max_bs`, itself included: close together where a padded row, with experts of its own, costs a
    large part of a step."""
    few = [*range(1, 9), *range(10, 17, 2), *range(20, 33, 4), *range(40, 65, 8)]
    sizes = [*few, *range(80, 129, 16), *range(160, max_bs + 1, 32)]
    return sorted({size for size in sizes if size <= max_bs} | {max_bs})


def padded(inputs: np.ndarray, size: int, padding: list[int]) -> np.ndarray:
    """inputs [F, n], a column a request, with columns of `padding` [F] up to [F, size], int64."""
    out = np.tile(np.array(padding, dtype=np.int64)[:, None], size)
    out[:, : inputs.shape[1]] = inputs
    return out


@contextmanager
def captures(what: str, device: torch.device) -> Iterator[None]:
    """Logs how long the captures inside took, and how much device memory."""
    started, free = time.monotonic(), free_memory(device)
    yield
    taken = (free - free_memory(device)) / 1e9
    logger.info("CUDA graphs: %s, %.2f GB, %.1f s", what, taken, time.monotonic() - started)


def capture(
    step: Callable[[], Outputs], pool: tuple[int, int] | None, device: torch.device
) -> tuple[Callable[[], None], Outputs, tuple[int, int]]:
    """(replay, the outputs it fills, the memory pool that the next capture may share) of a captured step."""
    step()  # kernels compile and libraries allocate their workspaces outside the capture
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = step()
    return graph.replay, outputs, pool or graph.pool()


class CudaGraphRunner(Generic[Outputs]):
    """`step(inputs)` takes a device tensor [F, n] int64, a column a request, and returns device tensors; it must not
    wait for the device, nor branch on its data. `padding` [F] is a column that does no harm."""

    def __init__(self, step: Callable[[Tensor], Outputs], padding: list[int], sizes: list[int], device: torch.device):
        self.sizes = sorted(sizes)
        self.padding = padding
        self._graphs: dict[int, tuple[Callable[[], None], Tensor, Outputs]] = {}
        pool = None
        with captures(f"{len(sizes)} batch sizes up to {self.sizes[-1]}", device):
            for size in reversed(self.sizes):
                inputs = to_device(padded(np.zeros((len(padding), 0)), size, padding), torch.int64, device)
                replay, outputs, pool = capture(partial(step, inputs), pool, device)
                self._graphs[size] = replay, inputs, outputs

    def takes(self, n: int) -> bool:
        """Whether a step of n requests fits the largest graph."""
        return n <= self.sizes[-1]

    def run(self, inputs: np.ndarray) -> tuple[Tensor, Outputs]:
        """inputs [F, n] host numbers -> the same on the device, and the step's outputs, padding at their ends included;
        both are valid until the next run."""
        n = inputs.shape[1]
        size = next(size for size in self.sizes if size >= n)
        replay, static, outputs = self._graphs[size]
        fill(static, padded(inputs, size, self.padding))
        replay()
        return static[:, :n], outputs
