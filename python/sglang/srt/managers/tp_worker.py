"""How steps reach a ModelRunner. On a GPU a launch returns at once, so the scheduler does it itself; on a CPU a launch
computes, so it goes to a thread and the scheduler plans meanwhile."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sglang.srt.mem_cache.slot_copies import StepCopies
from sglang.srt.model_executor.launched_step import LaunchedStep
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.step_io import HeldStep, StepInput, StepOutput, TokenMasks
from sglang.srt.sampling.sampling_flags import SamplingFlags


class InlineWorker:
    """Launches on the caller's thread: no hand-over, and no second thread that holds Python's lock."""

    def __init__(self, runner: ModelRunner):
        self.runner = runner

    def submit(self, step: StepInput) -> LaunchedStep | HeldStep:
        if step.flags & SamplingFlags.MASK:
            forwarded = self.runner.forward(step)
            return HeldStep(lambda masks: self.runner.sample(step, forwarded, masks), lambda: None, forwarded.drafts)
        return self.runner.launch(step)

    def copy(self, copies: StepCopies) -> None:
        self.runner.copy(copies)


class ThreadWorker:
    """A step's failure comes out of its `result()`; later steps still run, so the caller must stop on it.

    The runner is made on the thread that it then runs on, and nothing else computes: two threads that do have a pool of
    cores each, and where OpenMP counts more threads than cores it puts them to sleep after every op, at half the speed.
    """

    def __init__(self, make_runner: Callable[[], ModelRunner]):
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="forward", daemon=True).start()
        self.runner: ModelRunner = self._put(make_runner).result()

    def submit(self, step: StepInput) -> "Future[StepOutput] | HeldStep":
        if step.flags & SamplingFlags.MASK:
            forwarded = self._put(lambda: self.runner.forward(step))

            def sample(masks: TokenMasks) -> "Future[StepOutput]":
                return self._put(lambda: self.runner.sample(step, forwarded.result(), masks).result())

            drafts = step.num_extends == 0 and self.runner.speculation is not None
            return HeldStep(sample, forwarded.result, (lambda: forwarded.result().drafts()) if drafts else lambda: None)
        return self._put(lambda: self.runner.launch(step).result())

    def copy(self, copies: StepCopies) -> None:
        self._put(lambda: self.runner.copy(copies)).result()

    def _put(self, work: Callable[[], Any]) -> Future:
        done: Future = Future()
        self._work.put((work, done))
        return done

    def _run(self) -> None:
        while True:
            work, done = self._work.get()
            try:
                done.set_result(work())
            except BaseException as e:  # whatever it is, somebody waits for it
                done.set_exception(e)


def make_worker(make_runner: Callable[[], ModelRunner], device: str) -> InlineWorker | ThreadWorker:
    """The worker for `device` (cpu or cuda), over the runner that `make_runner` makes. Raises what that raises."""
    return InlineWorker(make_runner()) if device == "cuda" else ThreadWorker(make_runner)
