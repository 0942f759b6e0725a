"""ProcessSupervisor: starts the child processes, notices the death of any, and ends them all. It sends no requests.

The children's side is utils/child.py.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sglang
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.child import STARTUP_FAILED, LaunchConfig, write_launch_config
from sglang.srt.utils.ipc import make_ipc_dir

logger = logging.getLogger(__name__)

SCHEDULER_MODULE = "sglang.srt.managers.run_scheduler"
DETOKENIZER_MODULE = "sglang.srt.managers.detokenizer_manager"
TERMINATE_SECONDS = 2.0  # from SIGTERM to SIGKILL


class ChildDied(RuntimeError):
    """A child ended that should not have. `exit_code` as Popen gives it: negative is a signal's number. `explained`: it
    could not start, and has said in one line why."""

    def __init__(self, name: str, exit_code: int):
        how = (
            f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
        )
        super().__init__(f"the {name} process {how}")
        self.name = name
        self.exit_code = exit_code
        self.explained = exit_code == STARTUP_FAILED


class ProcessSupervisor:
    """`on_death(ChildDied)` is called once, from a thread, for the first child that ends before shutdown()."""

    def __init__(self, on_death: Callable[[ChildDied], None]):
        self.ipc_dir = make_ipc_dir()
        self._on_death = on_death
        self._children: list[tuple[str, subprocess.Popen]] = []
        self._lock = threading.Lock()
        self._ending = False

    def start(self, name: str, module: str, server_args: dict, tp_rank: int = 0) -> None:
        """Start `python -m module` and hand it its launch configuration."""
        root = str(Path(sglang.__file__).resolve().parent.parent)
        path = os.environ.get("PYTHONPATH")
        # Own process group: Ctrl-C in a terminal reaches the parent alone, which lets running requests finish.
        # -P: a file in the working directory must not shadow a library.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root},
            process_group=0,
        )
        with self._lock:
            self._children.append((name, child))
        threading.Thread(target=self._watch, args=(name, child), name=f"watch-{name}", daemon=True).start()
        try:
            write_launch_config(child.stdin.fileno(), LaunchConfig(server_args, self.ipc_dir, tp_rank))
        except BrokenPipeError:
            pass  # it died at once; the watching thread reports that

    def start_ranks(self, module: str, args: ServerArgs) -> None:
        """Start this node's schedulers, one a rank."""
        here = args.tp_size // args.nnodes
        for rank in range(args.node_rank * here, (args.node_rank + 1) * here):
            name = f"scheduler rank {rank}" if rank else "scheduler"
            self.start(name, module, args.to_dict(), rank)

    def _watch(self, name: str, child: subprocess.Popen) -> None:
        exit_code = child.wait()
        with self._lock:
            first, self._ending = not self._ending, True
        if first:
            self._on_death(ChildDied(name, exit_code))

    def live_pids(self) -> list[int]:
        with self._lock:
            return [child.pid for _, child in self._children if child.poll() is None]

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self._children}

    def shutdown(self) -> None:
        """End all children, by force if need be, and remove the sockets. May be called twice."""
        with self._lock:
            self._ending = True
            children = [child for _, child in self._children]
        for child in children:
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + TERMINATE_SECONDS
        for child in children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("process %d does not end by itself and is killed", child.pid)
                child.kill()
                child.wait()
            child.stdin.close()
        shutil.rmtree(self.ipc_dir, ignore_errors=True)
