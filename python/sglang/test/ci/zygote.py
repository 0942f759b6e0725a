"""A process that has imported what test files import, and forks one that runs a file, for each it is asked for.

`python -u zygote.py MODULE...` imports the modules and listens on its standard input, a Unix socket. Each byte there
carries two descriptors: where a file's output goes, and a socket from which the forked process reads one line of JSON,
{"path", "env", "forks"}. It becomes `python -u PATH -f` in a session of its own, with `env` beside the zygote's; with
`forks` it keeps a forker (forker.py). Back on that socket come two lines: the process id, and when it has ended
{"status", "seconds"}: as os.waitpid gives it, and processor time with that of its children. The zygote ends when its
standard input does. What it imports starts no threads: a fork would lose them.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import types

from sglang.test.ci.forker import keep_forker, read_line

# ---- the runner's side ------------------------------------------------------------------------------------------


class Zygote:
    """A zygote with `modules` imported, under `env`; the first fork() waits for that."""

    def __init__(self, modules: list[str], env: dict[str, str]):
        self._lock = threading.Lock()
        self._asked, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", __file__, *modules], stdin=theirs, env=env, start_new_session=True
            )

    def fork(self, path: str, env: dict[str, str], output: int, forks: bool = False) -> tuple[int, socket.socket]:
        """A process that runs the file `path`: its id, and the socket that tells its end. `forks`: what it starts has
        the modules too (forker.py). Raises RuntimeError if the zygote has ended, e.g. because a module can't be
        imported."""
        mine, theirs = socket.socketpair()
        with theirs, self._lock:
            mine.sendall(json.dumps({"path": path, "env": env, "forks": forks}).encode() + b"\n")
            try:
                socket.send_fds(self._asked, [b"f"], [output, theirs.fileno()])
            except OSError as e:
                mine.close()
                raise RuntimeError(f"the zygote takes no file: {e}") from e
        pid = read_line(mine)
        if not pid:
            mine.close()
            raise RuntimeError("the zygote has ended; what it printed says why")
        return int(pid), mine

    def close(self) -> None:
        self._asked.close()
        self._process.kill()
        self._process.wait()


def read_end(told: socket.socket) -> tuple[int, float] | None:
    """The status and the processor seconds of a forked process that has ended; None if nobody can tell any more."""
    line = read_line(told)
    if not line:
        return None
    end = json.loads(line)
    return end["status"], end["seconds"]


# ---- the zygote -------------------------------------------------------------------------------------------------


def serve(asked: socket.socket) -> dict:
    """Fork for every message. Returns what is asked of it in each forked process, and never in the zygote."""
    running: dict[int, socket.socket] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report_ended(running)
        if asked not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(asked, 1, 2)
        if not message:
            os._exit(0)
        output, stream = descriptors[0], socket.socket(fileno=descriptors[1])
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (asked, *running.values()):
                other.close()
            os.close(woken)
            os.close(wake)
            return _become(output, stream)
        os.close(output)
        running[pid] = stream
        with contextlib.suppress(OSError):  # a runner that has gone away
            stream.sendall(b"%d\n" % pid)


def _report_ended(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            return
        end = {"status": status, "seconds": usage.ru_utime + usage.ru_stime}
        with running.pop(pid) as stream, contextlib.suppress(OSError):
            stream.sendall(json.dumps(end).encode() + b"\n")


def _become(output: int, stream: socket.socket) -> dict:
    """Take a new process's standard files, session and signals, and read what it is to run."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    os.close(nothing)
    os.close(output)
    with stream:
        return json.loads(read_line(stream))


def run(path: str) -> None:
    """What `python path -f` does in an interpreter of its own; globals are those of a fresh __main__."""
    main = types.ModuleType("__main__")
    main.__file__ = path
    main.__builtins__ = __builtins__
    sys.modules["__main__"] = main
    sys.argv = [path, "-f"]
    sys.path.insert(0, os.path.dirname(path))
    with open(path, "rb") as file:
        exec(compile(file.read(), path, "exec"), main.__dict__)


def main(modules: list[str]) -> None:
    import gc

    del sys.path[0]  # this folder, whose files are no libraries
    for name in modules:
        importlib.import_module(name)
    if others := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]:
        raise SystemExit(f"zygote: importing {' '.join(modules)} starts threads, which no fork keeps: {others}")
    gc.freeze()  # a collection in a forked process then writes to no page that all share
    # a copy: standard input becomes /dev/null in what is forked
    asked = socket.socket(fileno=os.dup(0))
    file = serve(asked)
    os.environ.update(file["env"])
    job = None
    while file["forks"] and (started := keep_forker(os.environ)) is not None:
        job = started
    if job is None:
        run(file["path"])
    else:
        job.run()


if __name__ == "__main__":
    main(sys.argv[1:])
