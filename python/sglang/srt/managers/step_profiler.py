"""StepProfiler: torch's profiler over a worker's steps, and the trace files it makes. It knows no requests.

While it runs it stands in for the worker, so that steps without a profile pay nothing. It starts and ends between
steps, when no earlier one is under way: a trace holds the kernels of its own steps and no others.
"""

import gzip
import logging
import os
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import msgspec
import torch
from torch.profiler import ProfilerActivity, record_function

from sglang.srt.managers.io_struct import MAX_PROFILE_STEPS, ProfileSettings
from sglang.srt.model_executor.step_io import PendingStep, StepInput, Worker

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "SGLANG_TORCH_PROFILER_DIR"
DEFAULT_ROOT = "/tmp"
EXTEND, DECODE, ALL = "EXTEND", "DECODE", ""  # stages; ALL holds both
STEP_PREFIX = "step "  # of the annotation around each step's launch


class StepProfiler:
    """`steps_done`: steps submitted before; `last`: the latest of them if its result may still be to come.
    `on_end` is called once, when no step is recorded any more.

    A session is one start and stop of torch's profiler. By stage, each change of stage ends a session, and a stage's
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
        self.running = True
        self.error = ""  # why a trace could not be written
        self.files: list[str] = []
        self._settings = settings
        self._activities = _activities(settings)
        self._folder = profile_folder(settings.output_dir)
        self._profile_id = f"{time.time():.6f}"
        self._limit = settings.num_steps or MAX_PROFILE_STEPS
        self._early = max(0, (settings.start_step or 0) - steps_done)  # steps to come before the first recorded
        self._last = last
        self._on_end = on_end
        self._session: torch.profiler.profile | None = None
        self._stage = ALL  # the session's
        self._steps: Counter[str] = Counter()  # recorded, by stage
        self._raw: defaultdict[str, list[str]] = defaultdict(list)  # files of ended sessions, by stage

    def state(self) -> dict:
        """JSON-safe: what /start_profile, /stop_profile and /server_info tell of it."""
        return {
            "profile_id": self._profile_id,
            "output_dir": self._folder,
            "running": self.running,
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
        if self._steps[stage] == self._limit:
            self._end_session()
            self._write_trace(stage)
            if stage == ALL or self._steps[EXTEND] == self._steps[DECODE] == self._limit:
                self.stop()
        return self._last

    def stop(self) -> None:
        """End here, with the traces of what was recorded."""
        if self._session is not None:
            self._end_session()
        for stage in list(self._raw):
            self._write_trace(stage)
        self.running = False
        self._on_end()
        logger.info("profile %s: %s", self._profile_id, self.error or ", ".join(self.files) or "no step was recorded")

    def _begin_session(self, stage: str) -> None:
        self._drain()
        self._stage = stage
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
        try:
            raw = self._temporary()
            self._raw[self._stage].append(raw)
            session.export_chrome_trace(raw)
        except OSError as e:  # the server goes on without its trace
            self._failed(e)

    def _drain(self) -> None:
        """Wait for the steps submitted so far; they run in order."""
        if self._last is not None:
            self._last.result()

    def _write_trace(self, stage: str) -> None:
        """One compressed file of the stage's sessions; a reader never sees a part of it."""
        prefix = f"{self._settings.profile_prefix}-" if self._settings.profile_prefix else ""
        name = f"{prefix}{self._profile_id}-TP-0{f'-{stage}' if stage else ''}.trace.json.gz"
        path = os.path.join(self._folder, name)
        raw = self._raw.pop(stage, [])
        try:
            whole = self._temporary()
            raw.append(whole)
            _compress(raw[:-1], whole)
            os.replace(whole, path)
            self.files.append(path)
        except (OSError, msgspec.DecodeError) as e:
            self._failed(e)
        for leftover in raw:
            if os.path.exists(leftover):
                os.unlink(leftover)

    def _temporary(self) -> str:
        """A new file that no other user can have prepared."""
        handle, path = tempfile.mkstemp(prefix=".profile-", suffix=".json", dir=self._folder)
        os.close(handle)
        return path

    def _failed(self, error: Exception) -> None:
        self.error = f"the trace could not be written: {error}"
        logger.error("profile %s: %s", self._profile_id, self.error)


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


def _compress(parts: list[str], target: str) -> None:
    """Traces of one process joined into one: their clocks start at the same time."""
    if len(parts) == 1:
        with open(parts[0], "rb") as source, gzip.open(target, "wb", compresslevel=5) as out:
            shutil.copyfileobj(source, out)
        return
    traces = []
    for part in parts:
        with open(part, "rb") as source:
            traces.append(msgspec.json.decode(source.read()))
    joined = traces[0] | {"traceEvents": [event for trace in traces for event in trace["traceEvents"]]}
    with gzip.open(target, "wb", compresslevel=5) as out:
        out.write(msgspec.json.encode(joined))
