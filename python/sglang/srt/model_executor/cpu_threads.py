"""How many threads torch computes with on a CPU: tried out on the model itself before the server is ready.

Small models have ops that end before a second thread has been woken; large ones need all cores. What other programs
leave of the cores counts too, and shows in the trial.
"""

import logging
import os
import statistics
import time
from typing import TYPE_CHECKING

import torch

from sglang.srt.utils import host

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 8)  # requests in the steps of the trial
ROUNDS = 7
LONG_SECONDS = 0.5  # of steps with one number of threads: after so long the matter is clear
GAIN = 1.1  # threads that save less are not worth what they lose where another program takes a core


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
        number = runner.tp.minimum(most if seconds[1] > GAIN * seconds[most] else 1)
        reason = f"a trial: {1e3 * seconds[1]:.1f} ms with 1, {1e3 * seconds[most]:.1f} ms with {most}"
    torch.set_num_threads(number)
    runner.cpu_threads = number
    logger.info("cpu_threads = %d (%s)", number, reason)
    dtype, instructions = runner.config.dtype, torch.backends.cpu.get_cpu_capability()
    logger.info("arithmetic = %s on %s (the dtype, and what torch uses of this CPU)", dtype, instructions)


def _trial(runner: "ModelRunner", most: int) -> dict[int, float]:
    """Number of threads -> seconds that steps of BATCH_SIZES take, the median of rounds in which both take turns."""
    seconds: dict[int, list[float]] = {1: [], most: []}
    for number in (most, 1):  # what the first steps prepare is no part of it
        torch.set_num_threads(number)
        _steps(runner)
    for left in reversed(range(ROUNDS)):
        for number, taken in seconds.items():
            torch.set_num_threads(number)
            taken.append(_steps(runner))
        is_long = max(map(sum, seconds.values())) > LONG_SECONDS
        if runner.tp.minimum(0 if is_long else left) == 0:  # one decision of all ranks
            break
    return {number: statistics.median(taken) for number, taken in seconds.items()}


def _steps(runner: "ModelRunner") -> float:
    """Seconds of a decode step of each size, for padding rows with a single token."""
    start = time.perf_counter()
    for size in BATCH_SIZES:
        numbers = torch.zeros(4, size, dtype=torch.int64)  # see decode_layout
        numbers[1] = 1
        runner.decode(numbers, [1] * size)
    return time.perf_counter() - start
