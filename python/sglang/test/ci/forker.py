"""`python -m sglang...` without the seconds of its imports: forked from a process that has done them.

A process that keeps a forker has a child that stays as the process was when it began, one thread and no work done. Its
subprocess.Popen lets that child fork where it would begin a new interpreter with a module of this package; pipes, exit
codes and process groups stay subprocess's own. What is forked is the child of the process that asked, and keeps a
forker itself. A start under other settings than those of the imports is a real one, and so are all below it.

    job = Job(...)
    while (other := keep_forker(os.environ)) is not None:  # in what the forker forks
        job = other
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

NAME = "forker"  # the last part of its command line
FRESH = {"START_FRESH": "1"}  # in a process's environment: it and those below it are started, not forked
FLAGS = ("-P", "-u")
PREFIX = "sglang."  # of the modules
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
# Read when they are used. What reads any other variable may do so while it is imported.
READ_LATE = re.compile(
    "CI|TMPDIR|PYTHONUNBUFFERED|PYTEST_.*|GLOO_SOCKET_IFNAME|"
    "SGLANG_(API_KEY|EXTRA_SERVER_ARGS|TEST_WEEKLY|TORCH_PROFILER_DIR)"
)


@dataclasses.dataclass
class Job:
    """A start of `python [-P] -m module arguments...`: what a new process would be given."""

    module: str
    arguments: list[str]
    safe_path: bool  # -P
    env: dict[str, str]
    folder: str  # it works in
    ignored: list[int]  # signals
    session: bool  # a new one
    group: int  # as subprocess has it: -1 that of the process which asks

    def run(self) -> None:
        if not self.safe_path:
            sys.path.insert(0, os.getcwd())
        sys.argv = [self.module, *self.arguments]
        sys.modules.pop(self.module, None)  # runpy warns of one that runs a second time
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


def keep_forker(started: Mapping[str, str]) -> Job | None:
    """Fork a process that waits here; Popen then has jobs forked from it, under environments that are `started` but for
    READ_LATE. None in this process, a job in each that is forked for one."""
    mine, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        mine.close()
        return _serve(theirs)
    theirs.close()
    Forker(mine, dict(started)).install()
    return None


# ---- the side that asks -----------------------------------------------------------------------------------------


class Forker:
    def __init__(self, asked: socket.socket, started: dict[str, str]):
        self._asked = asked
        self._path = sys.path.copy()
        self._settings = self._read_early(started)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._start = subprocess._fork_exec

    def install(self) -> None:
        """A Popen object does everything else itself; this one function returns a process id."""
        subprocess._fork_exec = self._fork_exec

    def _fork_exec(self, argv, executables, close_fds, keep, cwd, env, *rest):
        stdin, _, _, stdout, _, stderr, _, _, _, session, group, gid, gids, uid, umask, prepare, *_ = rest
        plain = close_fds and len(keep) == 1 and prepare is gid is gids is uid is None and umask == -1
        folder = os.path.abspath(os.fsdecode(cwd or "."))
        if plain and (job := self._job([os.fsdecode(word) for word in argv], env, folder, session, group)):
            files = [own if given == -1 else given for own, given in enumerate((stdin, stdout, stderr))]
            return self._fork(job, files)
        return self._start(argv, executables, close_fds, keep, cwd, env, *rest)

    def _job(self, words: list[str], pairs: list[bytes] | None, folder: str, session: bool, group: int) -> Job | None:
        """None for what must be started."""
        program, *words = words
        flags = [words.pop(0) for _ in FLAGS if words and words[0] in FLAGS]
        if program != sys.executable or len(words) < 2 or words[0] != "-m" or not words[1].startswith(PREFIX):
            return None
        env = dict(os.environ) if pairs is None else dict(os.fsdecode(pair).split("=", 1) for pair in pairs)
        here = os.getpid() == self._pid  # not a fork of the process that keeps the forker
        if not here or not os.path.isdir(folder) or self._read_early(env) != self._settings:
            return None
        ignored = [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
        return Job(words[1], words[2:], "-P" in flags, env, folder, ignored, bool(session), group)

    def _read_early(self, env: Mapping[str, str]) -> dict[str, str]:
        settings = {name: value for name, value in env.items() if not READ_LATE.fullmatch(name)}
        path = settings.pop("PYTHONPATH", "").split(os.pathsep)
        return settings | {"PYTHONPATH": os.pathsep.join(entry for entry in path if entry not in self._path)}

    def _fork(self, job: Job, files: list[int]) -> int:
        prctl = ctypes.CDLL(None).prctl
        with self._lock:
            prctl(SUBREAPER, 1, 0, 0, 0)  # it becomes the parent of the forker's grandchild, whose own parent ends
            try:
                socket.send_fds(self._asked, [b"f"], files)
                self._asked.sendall(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
                line = read_line(self._asked)
            finally:
                prctl(SUBREAPER, 0, 0, 0, 0)
        if not line:
            raise RuntimeError("the process that forks others has ended")
        return int(line)


# ---- the forker -------------------------------------------------------------------------------------------------


def _serve(asked: socket.socket) -> Job:
    """Fork for each job. Returns in what is forked, and never in the forker."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the process that asks
    _become_files([os.open(os.devnull, os.O_RDWR)] * 3, but=asked.fileno())
    show_command_line(NAME)
    while True:
        with contextlib.suppress(ConnectionResetError):
            _, files, _, _ = socket.recv_fds(asked, 1, 3)
        if not files:
            os._exit(0)
        job = Job(**json.loads(read_line(asked)))
        readable, writable = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            _become(job, files, but=writable)
            asked.detach()  # closed
            while os.getppid() == between:
                time.sleep(0.001)
            os.write(writable, b"%d\n" % os.getpid())
            os.close(writable)
            return job
        os.waitpid(between, 0)
        os.close(writable)
        for file in files:
            os.close(file)
        with open(readable, "rb") as told, contextlib.suppress(OSError):
            asked.sendall(told.readline())


def _become_files(files: list[int], but: int) -> None:
    """Standard input, output and error; all others are closed."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != but:
            with contextlib.suppress(OSError):  # the folder's own
                os.close(int(name))


def _become(job: Job, files: list[int], but: int) -> None:
    """What exec keeps of the process that asks, and how an interpreter begins."""
    _become_files(files, but)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in job.ignored else signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if signal.SIGINT not in job.ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if job.session:
        os.setsid()
    elif job.group >= 0:
        os.setpgid(0, job.group)
    os.chdir(job.folder)
    os.environ.clear()
    os.environ.update(job.env)
    show_command_line(" ".join([sys.executable, "-m", job.module, *job.arguments]))


def show_command_line(text: str) -> None:
    """In /proc, over what the process was started with, as far as there is room."""
    with open("/proc/self/stat") as stat:
        start, end = map(int, stat.read().rpartition(")")[2].split()[45:47])
    room = end - start
    shown = os.fsencode(text)[: room - 2]
    ctypes.memmove(start, shown.ljust(room - 1, b"\0") + b" ", room)  # ends in no NUL: the kernel shows one text


def read_line(stream: socket.socket) -> bytes:
    """Empty if the other side has gone away."""
    line = b""
    with contextlib.suppress(ConnectionResetError):
        while not line.endswith(b"\n") and (byte := stream.recv(1)):
            line += byte
    return line
