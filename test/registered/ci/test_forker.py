"""What a forker forks is what a new interpreter would be, but for its start: compared on a made-up module."""

import contextlib
import json
import os
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from sglang.test.ci import forker
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.ci.zygote import Zygote, read_end

register_cpu_ci(est_time=4, suite="unit-test-cpu")

# The module that processes run: it tells what it was given, or does what its argument says.
TOLD = """
import json, os, signal, subprocess, sys
if sys.argv[1:2] == ["do"]:
    exec(sys.argv[2])
else:
    signals = {n.name: str(signal.getsignal(n)) for n in signal.valid_signals() if isinstance(n, signal.Signals)}
    print(json.dumps({
        "forked": "loaded" in sys.modules, "arguments": sys.argv[1:], "first on the path": sys.path[0],
        "folder": os.getcwd(), "environment": dict(os.environ), "signals": signals,
        "parent": os.getppid(), "leads": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
        "files": sorted(os.listdir("/proc/self/fd"))[:-1], "name": __name__, "input": sys.stdin.read(),
    }))
"""
# Imported by the zygote.
LOADED = """
from sglang.test.ci import forker
forker.PREFIX = "told"
"""
HEAD = """
import json, os, signal, subprocess, sys
def told(*flags, words=(), **options):
    command = [sys.executable, *flags, "-m", "told", *words]
    found = subprocess.run(command, input="a line", stdout=subprocess.PIPE, text=True, check=True, **options).stdout
    return json.loads(found)
def do(code, **options):
    return subprocess.run([sys.executable, "-m", "told", "do", code], capture_output=True, text=True, **options)
"""


@pytest.fixture
def run(tmp_path: Path, capfd):
    """run(body): what a forked file prints that has HEAD and `body`, and keeps a forker."""
    (tmp_path / "told.py").write_text(TOLD)
    (tmp_path / "loaded.py").write_text(LOADED)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    zygote = Zygote(["loaded"], os.environ | {"PYTHONPATH": os.pathsep.join(path)})

    def run(body: str) -> str:
        (tmp_path / "body.py").write_text(HEAD + textwrap.dedent(body))
        _, end = zygote.fork(str(tmp_path / "body.py"), {}, 1, forks=True)
        assert read_end(end)[0] == 0, capfd.readouterr().out
        return capfd.readouterr().out

    with contextlib.closing(zygote):
        yield run


def test_it_is_as_a_new_one(run, tmp_path):
    run(
        f"""
        fresh = os.environ | {forker.FRESH}
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        for flags, options in [
            ([], {{}}), (["-P"], {{"process_group": 0}}), (["-u"], {{"start_new_session": True}}),
            ([], {{"cwd": {str(tmp_path.parent)!r}}}),
        ]:
            options["words"] = ["a b", "--c"]
            new, forked = told(*flags, env=fresh, **options), told(*flags, **options)
            assert (new.pop("forked"), forked.pop("forked")) == (False, True)
            assert new["environment"].pop("START_FRESH") == "1"
            assert new["parent"] == os.getpid() and new["signals"]["SIGUSR2"] == str(signal.SIG_IGN)
            forked["files"].remove("3")  # its own forker hears from it there
            assert forked == new, {{k: (v, new[k]) for k, v in forked.items() if v != new[k]}}
        """
    )


def test_how_it_ends(run):
    run(
        """
        for code, expected in [
            ("sys.exit(3)", 3), ("sys.exit('no')", 1), ("1 / 0", 1), ("os._exit(4)", 4),
            ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("signal.raise_signal(signal.SIGTERM)", -15),
            ("signal.raise_signal(signal.SIGINT)", -2), ("import atexit; atexit.register(os._exit, 5)", 5),
        ]:
            assert do(code).returncode == expected, code
        assert do("sys.exit('no')").stderr == "no\\n" and "ZeroDivisionError" in do("1 / 0").stderr
        """
    )


def test_what_it_starts_is_forked_too_but_not_under_other_settings(run):
    code = (
        "print(subprocess.run([sys.executable, '-P', '-m', 'told'], input='', capture_output=True, text=True).stdout)"
    )
    found = run(
        f"""
        for extra in ({{"TMPDIR": "/tmp"}}, {{"OMP_NUM_THREADS": "3"}}, {forker.FRESH}):
            print(do({code!r}, env=os.environ | extra).stdout.strip())
        pid = os.fork()  # the forker is not its own
        if pid == 0:
            print(json.dumps(told()), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        """
    )
    assert [json.loads(line)["forked"] for line in found.splitlines()] == [True, False, False, False]


def test_it_shows_its_command_and_the_forker_ends_with_its_process(run):
    found = run(
        """
        import psutil, time
        child = subprocess.Popen([sys.executable, "-m", "told", "do", "sys.stdin.read()"], stdin=subprocess.PIPE)
        names = lambda pid: sorted(p.cmdline()[-1] for p in psutil.Process(pid).children())
        deadline = time.monotonic() + 10
        while "forker" not in names(child.pid) and time.monotonic() < deadline:
            time.sleep(0.01)  # a process has its name a moment after it has been forked
        pids = [p.pid for p in psutil.Process().children(recursive=True)]
        print(json.dumps([names(os.getpid()), names(child.pid), pids]))
        child.communicate()
        """
    )
    own, below, pids = json.loads(found)
    assert own == sorted([forker.NAME, "sys.stdin.read()"]) and below == [forker.NAME]
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], 10)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
