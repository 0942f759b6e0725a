"""ProcessSupervisor: starts the child processes, notices any that dies or hangs, and ends them all. No requests here.

The children's side is utils/child.py.
"""

import contextlib
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

import sglang
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.child import STARTUP_FAILED, ProcessConfig, write_process_config
from sglang.srt.utils.heartbeat import IDLE_SECONDS, Heartbeat, Silence
from sglang.srt.utils.ipc import make_ipc_dir

logger = logging.getLogger(__name__)

SCHEDULER_MODULE = "sglang.srt.managers.run_scheduler"
DETOKENIZER_MODULE = "sglang.srt.managers.detokenizer_manager"
TERMINATE_SECONDS = 2.0  # from SIGTERM to SIGKILL
LOOK_SECONDS = 0.25  # between two looks at the heartbeats
STACKS_SECONDS = 0.5  # for a hung child to print where it hangs
ILL_SHARE = 0.2  # of the time until a silent child is given up: then it counts as ill
MIN_ILL_SECONDS = 2.0
DEAF_SECONDS = 4 * IDLE_SECONDS  # a child silent for so long that does not obey SIGTERM hung


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


class ChildHung(ChildDied):
    """Children that have not moved for too long."""

    def __init__(self, message: str):
        RuntimeError.__init__(self, message)
        self.explained = False


@dataclass
class Child:
    name: str
    process: subprocess.Popen
    silence: Silence

    def __str__(self) -> str:
        """Its name, and what the system says of it where that explains something."""
        state = ""
        with contextlib.suppress(psutil.Error):
            state = psutil.Process(self.process.pid).status()
        return f"{self.name} ({state})" if state in (psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP) else self.name


class ProcessSupervisor:
    """`on_death(ChildDied)` is called once, from a thread, for the first child that ends or hangs before shutdown().

    A child that has begun to beat (utils/heartbeat.py) hangs when it falls silent for as long as give_up_after() says;
    until that is called none does.
    """

    def __init__(self, on_death: Callable[[ChildDied], None]):
        self.ipc_dir = make_ipc_dir()
        self.hung: list[str] = []  # those that shutdown() found
        self._on_death = on_death
        self._children: list[Child] = []
        self._lock = threading.Lock()
        self._ending = False
        self._limit = math.inf  # seconds of silence
        self._stopped = threading.Event()
        threading.Thread(target=self._listen, name="heartbeats", daemon=True).start()

    def give_up_after(self, seconds: float) -> None:
        """From now on a child that is silent for so long ends the server."""
        for child in self._children:
            child.silence.seconds = 0.0
        self._limit = seconds

    def ill(self) -> str:
        """Which children are silent for a fifth of the time after which they are given up; empty if none is."""
        return self._silent_for(max(self._limit * ILL_SHARE, min(self._limit, MIN_ILL_SECONDS)))

    def _silent_for(self, seconds: float) -> str:
        silent = [child for child in list(self._children) if child.silence.seconds >= seconds]
        if not silent:
            return ""
        longest = max(child.silence.seconds for child in silent)
        return f"no sign of life for {longest:.0f} s from the {' and the '.join(map(str, silent))}"

    def _listen(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(LOOK_SECONDS):
            now = time.monotonic()
            for child in list(self._children):
                child.silence.look(now - last)
            last = now
            if message := self._silent_for(self._limit):
                with self._lock:
                    first, self._ending = not self._ending, True
                if first:
                    for child in self._children:
                        if child.silence.seconds >= self._limit and child.process.poll() is None:
                            child.process.send_signal(signal.SIGUSR1)
                    self._stopped.wait(STACKS_SECONDS)
                    self._on_death(ChildHung(f"{message} (--watchdog-timeout is {self._limit:g} s)"))
                return

    def start(self, name: str, module: str, server_args: dict, tp_rank: int = 0) -> None:
        """Start `python -m module` and hand it its configuration."""
        silence = Silence(Heartbeat(self.ipc_dir, name, create=True))
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
            self._children.append(Child(name, child, silence))
        threading.Thread(target=self._watch, args=(name, child), name=f"watch-{name}", daemon=True).start()
        try:
            write_process_config(child.stdin.fileno(), ProcessConfig(server_args, self.ipc_dir, tp_rank, name))
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
            return [child.process.pid for child in self._children if child.process.poll() is None]

    def pids(self) -> dict[str, int]:
        return {child.name: child.process.pid for child in self._children}

    def shutdown(self) -> None:
        """End all children, by force if need be, and remove the sockets. May be called twice."""
        self._stopped.set()
        with self._lock:
            self._ending = True
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + TERMINATE_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("the process of %s does not end by itself and is killed", child)
                if child.silence.seconds >= DEAF_SECONDS:
                    self.hung.append(child.name)
                child.process.kill()
                child.process.wait()
            child.process.stdin.close()
        shutil.rmtree(self.ipc_dir, ignore_errors=True)
