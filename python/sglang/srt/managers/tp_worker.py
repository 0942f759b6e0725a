"""How steps reach a ModelRunner. On a GPU a launch returns at once, so the scheduler does it itself; on a CPU a launch
computes, so it goes to a thread and the scheduler plans meanwhile."""

import queue
import threading
from concurrent.futures import Future

from sglang.srt.model_executor.launched_step import LaunchedStep
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.step_io import StepInput, StepOutput


class InlineWorker:
    """Launches on the caller's thread: no hand-over, and no second thread that holds Python's lock."""

    def __init__(self, runner: ModelRunner):
        self.runner = runner

    def submit(self, step: StepInput) -> LaunchedStep:
        return self.runner.launch(step)


class ThreadWorker:
    """A step's failure comes out of its `result()`; later steps still run, so the caller must stop on it."""

    def __init__(self, runner: ModelRunner):
        self.runner = runner
        self._steps: queue.SimpleQueue[tuple[StepInput, Future]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="forward", daemon=True).start()

    def submit(self, step: StepInput) -> "Future[StepOutput]":
        done: Future[StepOutput] = Future()
        self._steps.put((step, done))
        return done

    def _run(self) -> None:
        while True:
            step, done = self._steps.get()
            try:
                done.set_result(self.runner.launch(step).result())
            except Exception as e:
                done.set_exception(e)


def make_worker(runner: ModelRunner, device: str) -> InlineWorker | ThreadWorker:
    """The worker for `device` (cpu or cuda)."""
    return InlineWorker(runner) if device == "cuda" else ThreadWorker(runner)
