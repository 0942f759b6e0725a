"""TpWorker: runs a ModelRunner's steps one after another in a thread, so that the scheduler plans meanwhile."""

import queue
import threading
from concurrent.futures import Future

from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.step_io import StepInput, StepOutput


class TpWorker:
    """A step's failure comes out of its `result()`; later steps still run, so the caller must stop on it."""

    def __init__(self, runner: ModelRunner):
        self._runner = runner
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
                done.set_result(self._runner.execute(step))
            except Exception as e:
                done.set_exception(e)
