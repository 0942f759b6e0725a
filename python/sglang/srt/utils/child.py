"""The child's side of process supervision: read the configuration, end with the parent, fail in one line.

The parent's side is managers/process_supervisor.py. stdin carries one length-prefixed msgpack map and then stays open
for as long as the parent lives.
"""

import contextlib
import faulthandler
import gc
import logging
import os
import select
import shutil
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

import msgspec

from sglang.srt.utils.shown import LogFormatter

STARTUP_FAILED = 2  # exit code: a mistake of the user's that one printed line explains
PARENT_POLL_SECONDS = 1.0
GC_OBJECTS = 50_000  # new ones before the garbage collector looks: at 700 it took half of the time of a large answer


class ProcessConfig(msgspec.Struct):
    """What a child is told. `server_args` is ServerArgs.to_dict(), `ipc_dir` the directory of all sockets, `name` its
    own, `tp_rank` which of the ranks that share the model a scheduler is."""

    server_args: dict
    ipc_dir: str
    tp_rank: int = 0
    name: str = ""


def write_process_config(fd: int, config: ProcessConfig) -> None:
    data = msgspec.msgpack.encode(config)
    data = struct.pack(">I", len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def read_process_config() -> ProcessConfig:
    """Call first of all in a child, before slow imports. The terminal's Ctrl-C is the parent's to handle. At SIGUSR1,
    which the parent sends when it hangs, it prints where each thread is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, file=2)
    (size,) = struct.unpack(">I", _read_exactly(4))
    return msgspec.msgpack.decode(_read_exactly(size), type=ProcessConfig)


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            sys.exit("error: this is a server's inner process; start it with python -m sglang.launch_server")
        data += more
    return data


def exit_when_parent_dies(ipc_dir: str) -> None:
    """Start a thread that ends this process, and removes the sockets, once the parent is gone."""
    parent = os.getppid()

    def watch() -> None:
        # EOF is the quick sign. The pid is checked too: a fork of the parent may still hold the pipe open.
        while os.getppid() == parent:
            if select.select([0], [], [], PARENT_POLL_SECONDS)[0] and not os.read(0, 1):
                break
        shutil.rmtree(ipc_dir, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def freeze_startup_objects() -> None:
    """To be called when a process has started up: what lives now lives as long as the process, so the garbage collector
    need not go through it again and again. A full collection of a scheduler's 300,000 objects takes 0.14 s, in which no
    request gets a token; what requests leave behind is still collected."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, *gc.get_threshold()[1:])


def setup_logging(level: str, process_name: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(f"[%(asctime)s {process_name}] %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def open_standard_files() -> None:
    """Where standard input, output or error is closed, open /dev/null in its place: or else the next socket would get
    its number, and whatever is printed."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number, this one


def end_signals() -> list[signal.Signals]:
    """Those that ask a server to end; SIGHUP is not among them under nohup, which must keep its meaning."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    return numbers if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*numbers, signal.SIGHUP]


def say(text: str, file: TextIO | None = None) -> None:
    """print() to standard output or `file`. That nobody listens, or the disk is full, is no reason to end."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=file, flush=True)


def run_and_leave(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and end the process with its code, but clear nothing up: at the end of a process NCCL would wait for
    captured graphs, which hold its communicators, and threads of NCCL's and gloo's for ranks that are gone, Python for
    threads that work for requests."""
    code = 1
    try:
        code = main() or 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except Exception:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or never there
                stream.flush()
        os._exit(code)


@contextlib.contextmanager
def startup_errors() -> Iterator[None]:
    """Around a child's start-up: what the user can mend (ValueError, OSError) ends it in one line, no traceback."""
    try:
        yield
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        sys.exit(STARTUP_FAILED)
