"""The process that compiles grammars, with a compiler that does what it is told: sleep, burn, crash, eat memory."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from sglang.srt.constrained.compile_process import CompileProcess, CompilerSettings
from sglang.srt.constrained.grammar import GrammarError
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=15, suite="unit-test-cpu", mostly_waits=True)

MODULE = "sglang.test.odd_compiler"


def process(**limits) -> CompileProcess:
    return CompileProcess(MODULE, CompilerSettings("", 1, [], 0, **limits), lambda first, data: (first, data))


@pytest.fixture(scope="module")
def shared():
    return process()


def children_of(compiler: CompileProcess) -> list[psutil.Process]:
    """The process of one compiler: the youngest of them, and its forks."""
    roots = [p for p in psutil.Process().children() if MODULE in " ".join(p.cmdline())]
    root = max(roots, key=lambda p: p.create_time())
    return [root, *root.children()]


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_compiled_comes_back(shared):
    futures = [shared.compile("regex", f"say {i}") for i in range(50)]  # more than there are places
    assert [f.result(30) for f in futures] == [(b"first", f"{i}".encode()) for i in range(50)]
    assert shared.compile("regex", "long 300000").result(30)[1] == b"x" * 300_000


@pytest.mark.parametrize(
    "text,message",
    [
        ("bad", "regex cannot be compiled: bad at 3"),
        ("kill 11", "regex cannot be compiled: it ends in SIGSEGV"),
        ("exit 3", "regex cannot be compiled: it ends in exit code 3"),
        ("raise", "regex cannot be compiled: it ends in exit code 1"),
        ("eat", "regex cannot be compiled: it ends in exit code 1"),  # MemoryError
    ],
)
def test_one_that_fails_harms_no_other(shared, text, message):
    other, bad = shared.compile("regex", "sleep 0.3"), shared.compile("regex", text)
    with pytest.raises(GrammarError) as error:
        bad.result(30)
    assert str(error.value) == message
    assert other.result(30)[1] == b"slept"


def test_one_that_takes_too_long_is_ended():
    compiler = process(seconds=1.0)
    slow, quick = compiler.compile("regex", "burn"), compiler.compile("regex", "say 1")
    assert quick.result(30)[1] == b"1" and not slow.done()
    with pytest.raises(GrammarError, match="regex cannot be compiled: it takes more than 1 s; use a simpler one"):
        slow.result(30)
    wait_until(lambda: len(children_of(compiler)) == 1)


def test_many_slow_ones_leave_a_place():
    """Whoever has had its share goes when another waits: none waits for the slow ones' whole time."""
    compiler = process(seconds=60.0, places=2, share_seconds=0.5)
    slow = [compiler.compile("regex", "burn") for _ in range(5)]
    assert compiler.compile("regex", "say 1").result(30)[1] == b"1"
    with pytest.raises(GrammarError, match="more than 0.5 s while others waited"):
        slow[0].result(30)
    assert not slow[4].done()
    for future in slow:
        future.cancel()
    wait_until(lambda: len(children_of(compiler)) == 1)


def test_slow_ones_have_the_lowest_priority():
    compiler = process()
    slow = compiler.compile("regex", "burn")
    wait_until(lambda: any(p.nice() == 19 for p in children_of(compiler)[1:]))
    assert children_of(compiler)[0].nice() < 19
    slow.cancel()
    wait_until(lambda: len(children_of(compiler)) == 1)


def test_a_process_that_dies_is_replaced():
    compiler = process()
    assert compiler.compile("regex", "say 1").result(30)
    slow = compiler.compile("regex", "burn")
    wait_until(lambda: len(children_of(compiler)) == 2)
    root, fork = children_of(compiler)
    root.kill()
    with pytest.raises(ChildProcessError, match="has ended"):
        slow.result(30)
    wait_until(lambda: not fork.is_running() or fork.status() == psutil.STATUS_ZOMBIE)
    assert compiler.compile("regex", "say 2").result(30)[1] == b"2"


def test_one_that_cannot_start():
    compiler = CompileProcess("sglang.test.no_such_module", CompilerSettings("", 1, [], 0), lambda *_: None)
    with pytest.raises(ChildProcessError):
        compiler.compile("regex", "say 1").result(30)


PARENT = f"""
import sys, time
from sglang.srt.constrained.compile_process import CompileProcess, CompilerSettings
compiler = CompileProcess("{MODULE}", CompilerSettings("", 1, [], 0), lambda first, data: data)
compiler.compile("regex", "say 1").result()
compiler.compile("regex", "burn")
compiler.compile("regex", "burn")
print("ready", flush=True)
if sys.argv[1] == "stays":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["by itself", "kill -9", "kill -9 of all but the forks"])
def test_nothing_stays_behind(end):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, "leaves" if end == "by itself" else "stays"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "ready\n"
    family = []
    if end != "by itself":
        wait_until(lambda: len(psutil.Process(parent.pid).children(recursive=True)) == 3)
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(signal.SIGKILL)
        if end != "kill -9":
            os.kill(family[0].pid, signal.SIGKILL)
    parent.wait(30)
    wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))
    parent.stdout.close()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
