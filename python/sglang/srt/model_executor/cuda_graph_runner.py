"""CudaGraphRunner: decode steps captured once for each of a few batch sizes, so that a step costs one launch.

A step of n requests runs in the smallest graph of at least n; the other rows are padding: request row 0, one token,
slot 0, which belong to nobody. Graphs share one memory pool, the largest captured first, since steps never overlap.
"""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sglang.srt.utils.device_copies import to_device

logger = logging.getLogger(__name__)


def capture_sizes(max_bs: int) -> list[int]:
    """Batch sizes up to `max_bs`, itself included: close together where a padded row costs a large part of a step."""
    steps = [1, 2, 4, *range(8, 33, 8), *range(48, 129, 16), *range(160, max_bs + 1, 32)]
    return sorted({size for size in steps if size <= max_bs} | {max_bs})


def padded(inputs: np.ndarray, size: int) -> np.ndarray:
    """inputs [4, n] (request rows, lengths, full and sliding slots) with padding rows up to [4, size], int64."""
    out = np.zeros((4, size), dtype=np.int64)
    out[1] = 1
    out[:, : inputs.shape[1]] = inputs
    return out


class CudaGraphRunner:
    """`decode(inputs)` takes a device tensor [4, n] as `padded` lays it out and returns logits [n, V]; it must neither
    wait for the device nor branch on its data."""

    def __init__(self, decode: Callable[[Tensor], Tensor], sizes: list[int], device: torch.device):
        started = time.monotonic()
        free = torch.cuda.mem_get_info(device)[0]
        self.sizes = sorted(sizes)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        pool = None
        for size in reversed(self.sizes):
            inputs = to_device(padded(np.zeros((4, 0)), size), torch.int64, device)
            decode(inputs)  # kernels compile and libraries allocate their workspaces outside the capture
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = decode(inputs)
            pool = pool or graph.pool()
            self._graphs[size] = graph, inputs, logits
        taken = (free - torch.cuda.mem_get_info(device)[0]) / 1e9
        logger.info(
            "CUDA graphs: %d batch sizes up to %d, %.2f GB, %.1f s",
            len(sizes),
            self.sizes[-1],
            taken,
            time.monotonic() - started,
        )

    def takes(self, n: int) -> bool:
        """Whether a step of n requests fits the largest graph."""
        return n <= self.sizes[-1]

    def run(self, inputs: np.ndarray) -> tuple[Tensor, Tensor]:
        """inputs [4, n] host numbers -> the same on the device and logits [n, V], both valid until the next run."""
        n = inputs.shape[1]
        size = next(size for size in self.sizes if size >= n)
        graph, static, logits = self._graphs[size]
        static.copy_(torch.from_numpy(padded(inputs, size)).pin_memory(), non_blocking=True)
        graph.replay()
        return static[:, :n], logits[:n]
