"""StepProfiler: torch's profiler over a worker's steps. It knows no requests; its files are trace_writer.py's.

While it runs it stands in for the worker, so that steps without a profile pay nothing. It starts and ends between
steps, when no earlier one is under way: a trace holds the kernels of its own steps and no others.

Events lie in memory until a session of torch's profiler is stopped, which takes 6 to 15 us for each and holds up every
thread. So a long profile is made of sessions of few steps, and ends by itself when it has MAX_PROFILE_EVENTS.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, record_function

from sglang.srt.managers.io_struct import MAX_PROFILE_EVENTS, MAX_PROFILE_STEPS, ProfileSettings
from sglang.srt.managers.trace_writer import TraceWriter
from sglang.srt.mem_cache.slot_copies import StepCopies
from sglang.srt.model_executor.step_io import HeldStep, PendingStep, StepInput, Worker

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "SGLANG_TORCH_PROFILER_DIR"
DEFAULT_ROOT = "/tmp"
EXTEND, DECODE, ALL = "EXTEND", "DECODE", ""  # stages; ALL holds both
FIRST_STEPS = 2  # of the first session: nobody knows yet how many events a step has
SESSION_EVENTS = 20_000  # wanted of the others
STEP_PREFIX = "step "  # of the annotation around each step's launch


class StepProfiler:
    """`steps_done`: steps submitted before; `last`: the latest of them if its result may still be to come.
    `on_end` is called once, when no step is recorded any more; files may still be written then.

    A session is one start and stop of torch's profiler. By stage, each change of stage ends a session, too; a stage's
    sessions become one trace in the end. Raises ValueError for settings that can't be served, OSError for a folder
    that can't be made.
    """

    def __init__(
        self,
        worker: Worker,
        settings: ProfileSettings,
        steps_done: int = 0,
        last: PendingStep | None = None,
        on_end: Callable[[], None] = lambda: None,
    ):
        if settings.profile_by_stage and settings.num_steps is None:
            raise ValueError("profile_by_stage needs num_steps: how many steps of each stage to record")
        self.worker = worker
        self.recording = True
        self.end_reason = ""
        self._settings = settings
        self._activities = _activities(settings)
        self._folder = profile_folder(settings.output_dir)
        self._profile_id = f"{time.time():.6f}"
        prefix = f"{settings.profile_prefix}-" if settings.profile_prefix else ""
        self._writer = TraceWriter(self._folder, f"{prefix}{self._profile_id}-TP-0")
        self._limit = settings.num_steps or MAX_PROFILE_STEPS
        self._early = max(0, (settings.start_step or 0) - steps_done)  # steps to come before the first recorded
        self._last = last
        self._on_end = on_end
        self._session: torch.profiler.profile | None = None
        self._stage = ALL  # the session's
        self._session_steps = 0
        self._session_limit = FIRST_STEPS
        self._events = 0  # of ended sessions
        self._steps: Counter[str] = Counter()  # recorded, by stage

    @property
    def running(self) -> bool:
        """Whether it records, or still writes its traces."""
        return self.recording or not self._writer.is_idle

    @property
    def error(self) -> str:
        """Why a trace could not be written."""
        return self._writer.error

    @property
    def files(self) -> list[str]:
        return list(self._writer.files)

    def wait(self) -> None:
        """Until the traces are written."""
        self._writer.wait()

    def state(self) -> dict:
        """JSON-safe: what /start_profile, /stop_profile and /server_info tell of it."""
        return {
            "profile_id": self._profile_id,
            "output_dir": self._folder,
            "running": self.running,
            "end_reason": self.end_reason,
            "events": self._events,
            "steps": {stage or "ALL": count for stage, count in self._steps.items()},
            "files": self.files,
            "error": self.error,
        }

    def submit(self, step: StepInput) -> PendingStep:
        stage = (EXTEND if step.num_extends else DECODE) if self._settings.profile_by_stage else ALL
        if self._session is not None and stage != self._stage:
            self._end_session()
        if self._early > 0 or self._steps[stage] == self._limit:
            self._early = max(0, self._early - 1)
            self._last = self.worker.submit(step)
            return self._last
        if self._session is None:
            self._begin_session(stage)
        text = f"{STEP_PREFIX}{step.num_extends} extend {len(step.rows) - step.num_extends} decode"
        with record_function(f"{text} {int(step.extend_lens.sum())} tokens"):
            self._last = self.worker.submit(step)
        self._steps[stage] += 1
        self._session_steps += 1
        done = self._steps[stage] == self._limit
        if done or self._session_steps == self._session_limit:
            self._end_session()
        if done:
            self._writer.finish(stage)
        if done and (stage == ALL or self._steps[EXTEND] == self._steps[DECODE] == self._limit):
            self.stop(f"{self._limit} steps are recorded")
        elif self._events >= MAX_PROFILE_EVENTS:
            self.stop(f"the limit of {MAX_PROFILE_EVENTS} events is reached")
        return self._last

    def copy(self, copies: StepCopies) -> None:
        self.worker.copy(copies)

    def stop(self, reason: str = "stopped") -> None:
        """End here; the traces of what was recorded are still to be written then. Does nothing if it has ended."""
        if not self.recording:
            return
        if self._session is not None:
            self._end_session()
        self._writer.close()
        self.recording = False
        self.end_reason = reason
        self._on_end()
        logger.info(
            "profile %s in %s: %s; %d steps, %d events",
            self._profile_id, self._folder, reason, self._steps.total(), self._events,
        )  # fmt: skip

    def _begin_session(self, stage: str) -> None:
        self._drain()
        self._stage = stage
        self._session_steps = 0
        self._session = torch.profiler.profile(
            activities=self._activities,
            with_stack=self._settings.with_stack,
            record_shapes=self._settings.record_shapes,
            # On a CPU steps run in a thread of their own; there is no public way to ask for the threads of others.
            experimental_config=torch._C._profiler._ExperimentalConfig(profile_all_threads=True),
        )
        self._session.start()

    def _end_session(self) -> None:
        self._drain()
        session, self._session = self._session, None
        session.stop()
        count = len(session.profiler.kineto_results.events())
        self._events += count
        self._session_limit = max(1, SESSION_EVENTS * self._session_steps // max(1, count))
        self._writer.add(session, self._stage)

    def _drain(self) -> None:
        """Wait for the steps submitted so far; they run in order."""
        if self._last is not None:
            self._last.settle() if isinstance(self._last, HeldStep) else self._last.result()


def profile_folder(output_dir: str | None) -> str:
    """The folder for traces, made if need be. A relative path starts at the root that SGLANG_TORCH_PROFILER_DIR names.

    Raises ValueError for a path outside of the root, links followed, and OSError when it can't be made.
    """
    root = os.path.realpath(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    folder = os.path.realpath(os.path.join(root, output_dir or ""))
    if os.path.commonpath([root, folder]) != root:
        raise ValueError(f"output_dir {output_dir!r} is outside of {root}, the server's {ROOT_VARIABLE}")
    os.makedirs(folder, exist_ok=True)
    return folder


def _activities(settings: ProfileSettings) -> list[ProfilerActivity]:
    has_gpu = torch.cuda.is_available()
    asked = settings.activities or (["CPU", "GPU"] if has_gpu else ["CPU"])
    if "GPU" in asked and not has_gpu:
        raise ValueError("activities: GPU can't be recorded, the server runs on a CPU")
    return [{"CPU": ProfilerActivity.CPU, "GPU": ProfilerActivity.CUDA}[name] for name in asked]
