"""Processes: what a child is told, and that parent and children notice each other's end."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from sglang.srt.managers.process_supervisor import ChildDied, ProcessSupervisor
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import wait_for

register_cpu_ci(est_time=15, suite="base-a-test-cpu", mostly_waits=True)

CHILD = """
    import os, sys, time, signal
    from sglang.srt.utils.child import read_process_config, exit_when_parent_dies, startup_errors
    config = read_process_config()
    exit_when_parent_dies(config.ipc_dir)
    open(os.path.join(config.ipc_dir, "told"), "w").write(repr(config.server_args))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Make a module that children can run: CHILD, then the given lines."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def module(lines: str, name: str = "a_child") -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(CHILD) + textwrap.dedent(lines))
        return name

    return module


@pytest.fixture
def supervisor():
    deaths: list[ChildDied] = []
    supervisor = ProcessSupervisor(deaths.append)
    supervisor.deaths = deaths
    yield supervisor
    supervisor.shutdown()


def told(supervisor) -> str:
    path = os.path.join(supervisor.ipc_dir, "told")
    wait_for(lambda: os.path.exists(path) and open(path).read())
    return open(path).read()


def test_child_is_told_its_arguments(supervisor, module):
    arguments = {"model_path": "ü", "list": [1, None, 2.5], "nested": {"a": True}, "long": "x" * 200_000}
    supervisor.start("one", module("time.sleep(60)"), arguments)
    assert told(supervisor) == repr(arguments)
    (pid,) = supervisor.pids().values()
    assert os.getpgid(pid) == pid  # Ctrl-C in the terminal is not for it
    supervisor.shutdown()
    assert not psutil.pid_exists(pid)
    assert not os.path.exists(supervisor.ipc_dir)
    assert supervisor.deaths == []  # ended on purpose


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("sys.exit(3)", "the one process ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the one process was killed by SIGSEGV"),
        ("with startup_errors(): raise ValueError('bad')", "the one process ended with exit code 2"),
        ("with startup_errors(): open('/no/such/file')", "the one process ended with exit code 2"),
        ("with startup_errors(): 1 / 0", "the one process ended with exit code 1"),
        ("", "the one process ended with exit code 0"),  # it should not have
    ],
)
def test_death_is_reported_once_with_its_cause(supervisor, module, lines, message):
    supervisor.start("two", module("time.sleep(60)", "other"), {})
    supervisor.start("one", module(lines), {})
    wait_for(lambda: supervisor.deaths)
    os.kill(supervisor.pids()["two"], signal.SIGKILL)
    time.sleep(0.3)
    assert [str(d) for d in supervisor.deaths] == [message]


def test_startup_error_is_one_line(module, capfd, supervisor):
    supervisor.start("one", module("with startup_errors(): raise ValueError('the file is cut short')"), {})
    wait_for(lambda: supervisor.deaths)
    assert capfd.readouterr().err == "error: the file is cut short\n"


def test_stubborn_child_is_killed(supervisor, module):
    supervisor.start("one", module("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"), {})
    told(supervisor)
    time.sleep(0.3)
    started = time.monotonic()
    supervisor.shutdown()
    assert time.monotonic() - started < 5
    assert not any(psutil.pid_exists(pid) for pid in supervisor.pids().values())


def test_shutdown_from_two_threads(supervisor, module):
    supervisor.start("one", module("time.sleep(60)"), {})
    told(supervisor)
    threads = [threading.Thread(target=supervisor.shutdown) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("fork", [False, True])
def test_child_ends_when_its_parent_is_killed(module, tmp_path, fork):
    """Even when a fork of the parent still holds the pipe that the child watches."""
    name = module("time.sleep(60)")
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, time
        from sglang.srt.managers.process_supervisor import ProcessSupervisor
        supervisor = ProcessSupervisor(print)
        supervisor.start("one", {name!r}, {{}})
        while not os.path.exists(supervisor.ipc_dir + "/told"):
            time.sleep(0.02)
        forked = os.fork() if {fork} else 0
        if {fork} and forked == 0:
            time.sleep(8)
            os._exit(0)
        print(supervisor.pids()["one"], supervisor.ipc_dir, forked, flush=True)
        time.sleep(60)
        """)
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pid, ipc_dir, forked = parent.stdout.readline().split()
        parent.kill()
        parent.wait()
        try:
            wait_for(lambda: not psutil.pid_exists(int(pid)), 5)
            assert not os.path.exists(ipc_dir)
        finally:
            if fork:
                os.kill(int(forked), signal.SIGKILL)


def test_inner_process_started_by_hand_says_so():
    command = [sys.executable, "-m", "sglang.srt.managers.detokenizer_manager"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode != 0
    assert result.stderr.strip() == (
        "error: this is a server's inner process; start it with python -m sglang.launch_server"
    )


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
