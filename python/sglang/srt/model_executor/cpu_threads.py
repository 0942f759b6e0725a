"""How many threads torch computes with on a CPU: tried out on the model itself before the server is ready.

Small models have ops that end before a second thread has been woken; large ones need all cores. What other programs
leave of the cores counts too, and shows in the trial.
"""

import logging
import os
import statistics
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from sglang.srt.utils import host

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 8)  # requests in the steps of the trial
ROUNDS = 7
LONG_SECONDS = 2.0  # of steps with one number of threads: after so long the matter is clear, whatever else starts
GAIN = 1.1  # mean over sizes: threads that save less are not worth what they lose where another program takes a core


def limit(ranks: int) -> int:
    """Let torch use at most this process's part of the cores, which `ranks` processes share; the number of threads."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), host.cores() // ranks)))
    return torch.get_num_threads()


@torch.inference_mode()
def choose(runner: "ModelRunner", most: int) -> None:
    """Set 1 thread or `most`, whichever takes less time for decode steps. All ranks must call it, and take the same."""
    number, reason = most, "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else "this process's cores"
    if most > 1 and "OMP_NUM_THREADS" not in os.environ:
        seconds = _trial(runner, most)
        gain = statistics.geometric_mean(a / b for a, b in zip(seconds[1], seconds[most], strict=True))
        number = runner.tp.minimum(most if gain > GAIN else 1)
        reason = (
            f"a trial of {_sizes(BATCH_SIZES)} requests: {_ms(seconds[1])} with 1, {_ms(seconds[most])} with {most}"
        )
    torch.set_num_threads(number)
    runner.cpu_threads = number
    logger.info("cpu_threads = %d (%s)", number, reason)
    dtype, instructions = runner.config.dtype, torch.backends.cpu.get_cpu_capability()
    logger.info("arithmetic = %s on %s (the dtype, and what torch uses of this CPU)", dtype, instructions)


def _sizes(numbers: Iterable) -> str:
    return " and ".join(map(str, numbers))


def _ms(seconds: list[float]) -> str:
    return _sizes(f"{1e3 * s:.1f}" for s in seconds) + " ms"


def _trial(runner: "ModelRunner", most: int) -> dict[int, list[float]]:
    """Number of threads -> seconds of a step of each of BATCH_SIZES, medians of rounds in which both take turns."""
    seconds: dict[int, list[list[float]]] = {1: [], most: []}
    for number in (most, 1):  # what the first steps prepare is no part of it
        torch.set_num_threads(number)
        _steps(runner)
    for left in reversed(range(ROUNDS)):
        for number, taken in seconds.items():
            torch.set_num_threads(number)
            taken.append(_steps(runner))
        is_long = max(sum(map(sum, taken)) for taken in seconds.values()) > LONG_SECONDS
        if runner.tp.minimum(0 if is_long else left) == 0:  # one decision of all ranks
            break
    return {number: list(map(statistics.median, zip(*taken, strict=True))) for number, taken in seconds.items()}


def _steps(runner: "ModelRunner") -> list[float]:
    """Seconds of a decode step of each size, for padding rows with a single token."""
    seconds = []
    for size in BATCH_SIZES:
        start = time.perf_counter()
        numbers = torch.zeros(4, size, dtype=torch.int64)  # see decode_layout
        numbers[1] = 1
        runner.decode(numbers, [1] * size)
        seconds.append(time.perf_counter() - start)
    return seconds
