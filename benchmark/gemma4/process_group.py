"""Ends a command that was started as the leader of its own process group, with everything it left running."""

import contextlib
import os
import signal
import subprocess

END_SECONDS = 30.0  # from SIGTERM to SIGKILL: a server's time to end by itself


def end_group(process: subprocess.Popen) -> None:
    """SIGTERM for the process, which ends its own children, then SIGKILL for what is left of the group."""
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    finally:  # a second Ctrl-C, too, must not leave anything
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
