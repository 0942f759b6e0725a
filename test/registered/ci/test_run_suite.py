"""Registrations read from the syntax tree, and the runner on folders of made-up test files."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sglang.test.ci.ci_register import (
    KNOWN_SUITES,
    UNIT_SUITE,
    WEEKLY_SUITE,
    CIRecord,
    RegistrationError,
    parse,
    register_cpu_ci,
)
from sglang.test.ci.file_process import WITH_ALL, WITH_TORCH, WITHOUT_TORCH, preloaded
from sglang.test.ci.kinds import NO_TORCH, kind_of
from sglang.test.ci.zygote import Zygote
from sglang.test.server_process import children_of

register_cpu_ci(est_time=25, suite="base-a-test-cpu")

RUN_SUITE = Path(__file__).parents[2] / "run_suite.py"
MAIN = '\nif __name__ == "__main__":\n    import sys, pytest\n    sys.exit(pytest.main([__file__, "-q"]))\n'


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("run_suite", RUN_SUITE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_suite"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def write(
    folder: Path, name: str, body: str, call: str = 'register_cpu_ci(est_time=1, suite="base-a-test-cpu")'
) -> Path:
    path = folder / name
    path.write_text(f"from sglang.test.ci.ci_register import *\n{call}\n{textwrap.dedent(body)}{MAIN}")
    return path


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    """Made-up files lie outside of this project, whose settings say so."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "--disable-plugin-autoload")


def run(runner, folder: Path, capsys, *flags: str, fresh: bool = True) -> tuple[int, list[str]]:
    """Exit code and output. A new interpreter for each of a few small files is faster than a zygote."""
    code = runner.main(["--hw", "cpu", *(["--fresh"] if fresh else []), *flags], root=folder)
    return code, capsys.readouterr().out.strip().splitlines()


def test_parse_reads_literals(tmp_path: Path):
    calls = (
        'register_cpu_ci(3, "base-b-test-cpu", disabled="why")\n'
        'register_cuda_ci(est_time=720, stage="extra-a", runner_config="2-gpu-large")\n'
        'register_amd_ci(5.5, suite="anything", nightly=True)'
    )
    records = parse(write(tmp_path, "test_a.py", "", calls))
    assert [(r.backend, r.suite, r.est_time, r.nightly, r.disabled) for r in records] == [
        ("cpu", "base-b-test-cpu", 3, False, "why"),
        ("cuda", "extra-a-test-2-gpu-large", 720, False, None),
        ("amd", "anything", 5.5, True, None),
    ]


@pytest.mark.parametrize(
    "call,message",
    [
        ("", "no registration"),
        ('T = 5\nregister_cpu_ci(est_time=T, suite="base-a-test-cpu")', "not a literal"),
        ('register_cpu_ci(**{"est_time": 1})', "not literals"),
        ('register_cpu_ci(est_time=1, suite="base-z-test-cpu")', "unknown cpu suite 'base-z-test-cpu'"),
        ('register_cuda_ci(est_time=1, stage="base-a", runner_config="9-gpu")', "unknown cuda suite"),
        ("register_cpu_ci(est_time=1)", "give either suite, or stage"),
        ('register_cpu_ci(est_time=1, stage="base-a")', "give either suite, or stage"),
        ('register_cpu_ci(est_time="1", suite="base-a-test-cpu")', "wrong type"),
        ('register_cpu_ci(est_time=0, suite="base-a-test-cpu")', "more than 0"),
        ('register_cpu_ci(suite="base-a-test-cpu")', "est_time"),
        ('register_cpu_ci(est_time=1, suite="base-a-test-cpu", colour=1)', "colour"),
        ('register_cpu_ci(est_time=1, suite="base-a-test-cpu", disabled="")', "needs a reason"),
        ('if True:\n    register_cpu_ci(est_time=1, suite="base-a-test-cpu")', "top level"),
    ],
)
def test_parse_names_what_is_wrong(tmp_path: Path, call: str, message: str):
    with pytest.raises(RegistrationError, match=message):
        parse(write(tmp_path, "test_a.py", "", call))


def test_an_enabled_file_must_run_its_tests(tmp_path: Path):
    path = tmp_path / "test_a.py"
    path.write_text('register_cpu_ci(est_time=1, suite="base-a-test-cpu")\ndef test(): pass\n')
    with pytest.raises(RegistrationError, match="__main__"):
        parse(path)
    path.write_text('register_cpu_ci(est_time=1, suite="base-a-test-cpu", disabled="later")\n')
    assert parse(path)[0].disabled == "later"


def test_every_registered_file_of_the_project_is_in_order(runner):
    records, errors = runner.collect(RUN_SUITE.parent / "registered")
    assert not errors
    assert Path(__file__).resolve() in {r.path.resolve() for r in records}


def test_partition_is_longest_first_and_complete(runner):
    records = [CIRecord(Path(f"{i}.py"), "cpu", "s", est, False, None) for i, est in enumerate([9, 1, 5, 5, 2, 8])]
    parts = runner.partition(records, 3)
    assert sorted(r.est_time for part in parts for r in part) == [1, 2, 5, 5, 8, 9]
    assert max(sum(r.est_time for r in part) for part in parts) <= 11
    assert parts == runner.partition(list(reversed(records)), 3)


def test_counts_timings_and_the_last_line(runner, tmp_path: Path, capsys):
    write(
        tmp_path,
        "test_a.py",
        "import pytest\ndef test_1(): pass\ndef test_2(): pass\n@pytest.mark.skip\ndef test_3(): pass\n",
    )
    write(
        tmp_path,
        "test_off.py",
        "def test(): assert False\n",
        'register_cpu_ci(1, "base-a-test-cpu", disabled="broken")',
    )
    (tmp_path / "conftest.py").write_text("")
    code, lines = run(runner, tmp_path, capsys)
    assert code == 0 and lines[-1] == "2 passed, 0 failed, 1 skipped"
    assert any(line.startswith("TIMINGS") for line in lines) and any(
        "disabled: test_off.py: broken" in line for line in lines
    )


@pytest.mark.parametrize("flags,ran", [((), 1), (("--continue-on-error",), 2)])
def test_a_failure_stops_the_run_unless_told_otherwise(runner, tmp_path: Path, capsys, flags: tuple, ran: int):
    write(tmp_path, "test_a.py", "def test(): assert 1 == 2\n")
    write(tmp_path, "test_b.py", "def test(): pass\n")
    code, lines = run(runner, tmp_path, capsys, *flags)
    assert code == 1 and lines[-1] == f"{ran - 1} passed, 1 failed"


def test_jobs_run_files_side_by_side(runner, tmp_path: Path, capsys):
    """Each of the two files waits for a mark that only the other makes; what one prints stays together."""
    for mine, other in ("ab", "ba"):
        body = f"""
        import time
        from pathlib import Path
        def test():
            print("begin {mine}", flush=True)
            Path({str(tmp_path / mine)!r}).touch()
            deadline = time.monotonic() + 60
            while not Path({str(tmp_path / other)!r}).exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            print("end {mine}")
        """
        path = write(tmp_path, f"test_{mine}.py", body)
        path.write_text(path.read_text().replace('"-q"', '"-q", "-s"'))
    code, lines = run(runner, tmp_path, capsys, "--jobs", "2")
    assert code == 0 and lines[-1] == "2 passed, 0 failed"
    told = [line[:7].strip(" .") for line in lines if line.startswith(("begin", "end", ".end"))]
    assert sorted([told[:2], told[2:]]) == [["begin a", "end a"], ["begin b", "end b"]]


def test_a_file_that_mostly_waits_runs_beside_all_jobs(runner, tmp_path: Path, capsys):
    """Three files, two jobs: each waits for the marks of all."""
    for name in "abc":
        waits = ", mostly_waits=True" if name == "c" else ""
        body = f"""
        import time
        from pathlib import Path
        def test():
            folder = Path({str(tmp_path)!r})
            (folder / "{name}").touch()
            deadline = time.monotonic() + 60
            while not all((folder / other).exists() for other in "abc"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        """
        write(tmp_path, f"test_{name}.py", body, f'register_cpu_ci(est_time=1, suite="base-a-test-cpu"{waits})')
    code, lines = run(runner, tmp_path, capsys, "--jobs", "2")
    assert code == 0 and lines[-1] == "3 passed, 0 failed"


def test_a_failure_ends_the_files_beside_it(runner, tmp_path: Path, capsys):
    write(
        tmp_path,
        "test_a.py",
        f"""
    import time
    from pathlib import Path
    def test():
        Path({str(tmp_path / "mark")!r}).touch()
        time.sleep(100)
    """,
    )
    write(
        tmp_path,
        "test_b.py",
        f"""
    import time
    from pathlib import Path
    def test():
        while not Path({str(tmp_path / "mark")!r}).exists():
            time.sleep(0.01)
        assert 1 == 2
    """,
    )
    write(tmp_path, "test_c.py", "def test(): pass\n")
    code, lines = run(runner, tmp_path, capsys, "--jobs", "2")
    assert code == 1 and lines[-1] == "0 passed, 1 failed"
    assert [line.strip().split(": ")[1] for line in lines if line.endswith("not run")] == ["not run"] * 2


@pytest.mark.parametrize(
    "body", ["raise SystemExit(3)\n", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "def x(\n"]
)
def test_a_file_that_crashes_counts_as_a_failure(runner, tmp_path: Path, capsys, body: str):
    write(tmp_path, "test_a.py", body)
    code, lines = run(runner, tmp_path, capsys)
    assert code == 1 and lines[-1] == "0 passed, 1 failed"


def test_forked_files_do_not_see_each_other(runner, tmp_path: Path, capsys):
    """Each begins with torch imported, and otherwise as `python3 FILE -f` does."""
    body = """
    import os, signal, sys
    found = set(sys.modules)
    def test():
        assert "torch" in found
        import torch
        assert not hasattr(torch, "seen") and "SEEN" not in os.environ
        torch.seen = os.environ["SEEN"] = "1"
        assert sys.argv == [sys.modules["__main__"].__file__, "-f"] and sys.path[0] == os.path.dirname(sys.argv[0])
        assert os.getsid(0) == os.getpid() and os.read(0, 1) == b""
        assert signal.getsignal(signal.SIGCHLD) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        assert signal.set_wakeup_fd(-1) == -1
    """
    for name in "abc":
        write(tmp_path, f"test_{name}.py", body)
    code, lines = run(runner, tmp_path, capsys, "--jobs", "2", fresh=False)
    assert code == 0 and lines[-1] == "3 passed, 0 failed"
    assert not children_of()


def test_how_forked_files_end(runner, tmp_path: Path, capsys):
    unit = f'register_cpu_ci(est_time=1, suite="{UNIT_SUITE}")'
    for name, body in {
        "exits": "raise SystemExit(3)\n",
        "dies": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
        "works": f"""
            import atexit, subprocess, sys
            from pathlib import Path
            atexit.register(Path({str(tmp_path / "ended")!r}).touch)
            def test():
                code = "import time\\nwhile time.process_time() < 1.0: pass"
                assert subprocess.run([sys.executable, "-c", code]).returncode == 0
            """,
    }.items():
        write(tmp_path, f"test_{name}.py", body, unit)
    code, lines = run(runner, tmp_path, capsys, "--continue-on-error", fresh=False)
    told = {line.split()[3].rstrip(":"): line for line in lines if "[1] test_" in line}
    assert code == 1 and lines[-1] == "1 passed, 2 failed"
    assert told["test_exits.py"].endswith("0 passed, 1 failed (exit code 3)")
    assert told["test_dies.py"].endswith("0 passed, 1 failed (killed by SIGKILL)")
    assert 1.0 <= float(told["test_works.py"].split()[1]) and (tmp_path / "ended").exists()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("raise ImportError('it is gone')", "it is gone"),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), name='lost', daemon=True).start()",
            "starts threads, which no fork keeps: ['lost']",
        ),
    ],
)
def test_a_zygote_that_cannot_serve_says_why(tmp_path: Path, capfd, module: str, message: str):
    (tmp_path / "needed.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    zygote = Zygote(["needed"], os.environ | {"PYTHONPATH": path})
    with contextlib.closing(zygote), pytest.raises(RuntimeError, match="the zygote"):
        zygote.fork(str(tmp_path / "test_a.py"), {}, 2)
    assert message in capfd.readouterr().err


def test_which_zygote_a_file_is_forked_from(tmp_path: Path):
    """Triton's interpreter is chosen before Triton is imported, which transformers' models do."""
    models = write(tmp_path, "test_a.py", "from sglang.test import tiny_models")
    assert preloaded(models, "base-a-test-cpu") == WITH_ALL and preloaded(models, UNIT_SUITE) == WITHOUT_TORCH
    both = write(tmp_path, "test_b.py", "from sglang.test import triton_testing, tiny_models")
    assert preloaded(both, "base-a-test-cpu") == WITH_TORCH


def test_nothing_run_is_a_failure(runner, tmp_path: Path, capsys):
    code, lines = run(runner, tmp_path, capsys)
    assert code == 1 and "no test ran" in lines[-2]


def test_an_unregistered_file_fails_the_run(runner, tmp_path: Path, capsys):
    (tmp_path / "test_x.py").write_text("def test(): pass\n")
    code, lines = run(runner, tmp_path, capsys)
    assert code == 1 and "no registration" in lines[0] and lines[-1] == "0 passed, 1 failed"


def test_a_timed_out_file_is_ended_with_its_children(runner, tmp_path: Path, capsys):
    body = f"""
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
    time.sleep(100)
    """
    write(tmp_path, "test_a.py", body)
    code, lines = run(runner, tmp_path, capsys, "--timeout-per-file", "3")
    assert code == 1 and any("timed out after 3 s" in line for line in lines)
    pid = (tmp_path / "pid").read_text()
    alive = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    assert alive[:1] in ("", "Z")


@pytest.mark.parametrize(
    "output,timed_out,expected",
    [
        ("E   AssertionError: accuracy 0.39 not greater than 0.41", False, True),
        ("E   AssertionError: latency 9", False, True),
        ("", True, True),
        ("E   AssertionError: 1 == 2", False, False),
        ("E   ImportError: accuracy", False, False),
        ("RuntimeError: CUDA\nE   AssertionError: score 0.1", False, False),
    ],
)
def test_what_is_worth_a_retry(runner, output: str, timed_out: bool, expected: bool):
    assert runner.should_retry(output, timed_out) == expected


def test_a_retry_can_save_a_file(runner, tmp_path: Path, capsys):
    mark = tmp_path / "mark"
    write(
        tmp_path,
        "test_a.py",
        f"""
    from pathlib import Path
    def test():
        first = not Path({str(mark)!r}).exists()
        Path({str(mark)!r}).touch()
        assert not first, "score 0.3 not greater than 0.4"
    """,
    )
    code, lines = run(runner, tmp_path, capsys, "--enable-retry", "--retry-wait-seconds", "0")
    assert code == 0 and lines[-1] == "1 passed, 0 failed" and any("after 2 attempts" in line for line in lines)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--hw", "cuda"],
        ["--hw", "tpu"],
        ["--hw", "cpu", "--auto-partition-id", "0"],
        ["--hw", "cpu", "--jobs", "0"],
        ["--hw", "cpu", "--max-attempts", "0"],
        ["--hw", "cpu", "--auto-partition-id", "2", "--auto-partition-size", "2"],
        ["--hw", "cpu", "--timeout-per-file", "0"],
    ],
)
def test_wrong_flags_exit_with_2(runner, flags: list[str]):
    with pytest.raises(SystemExit) as stop:
        runner.parse_flags(flags)
    assert stop.value.code == 2


def test_cuda_without_a_gpu_is_one_line(runner, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "has_gpu", lambda: False)
    write(tmp_path, "test_a.py", "def test(): pass\n")
    assert runner.main(["--hw", "cuda", "--suite", "base-b-test-1-gpu-large"], tmp_path) == 2
    out, err = capsys.readouterr()
    assert err == "error: --hw cuda: torch sees no GPU on this machine\n" and not out


def test_shards_cover_everything_once(runner, tmp_path: Path, capsys):
    for name in "abcd":
        write(tmp_path, f"test_{name}.py", "def test(): pass\n")
    counts = [
        run(runner, tmp_path, capsys, "--auto-partition-id", str(i), "--auto-partition-size", "2")[1][-1]
        for i in (0, 1)
    ]
    assert counts == ["2 passed, 0 failed"] * 2


def test_cpu_suites_run_in_stage_order():
    stages = ["unit-test-cpu", "base-a-test-cpu", "base-b-test-cpu", "base-c-test-cpu", "base-b-test-cpu-arm64"]
    assert KNOWN_SUITES["cpu"] == [*stages, "weekly-test-cpu"]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ("import torch", "a file of the unit suite imports torch"),
        ("def test_b():\n    from torch import nn", "import of torch halted"),
    ],
)
def test_files_of_the_unit_suite_cannot_import_torch(runner, tmp_path: Path, capsys, load: str, message: str):
    """Neither when they are read nor later."""
    body = f"def test_a(): pass\n{load}\n"
    write(tmp_path, "test_a.py", body, f'register_cpu_ci(est_time=1, suite="{UNIT_SUITE}")')
    code, lines = run(runner, tmp_path, capsys)
    assert code == 1 and "1 failed" in lines[-1] and any(message in line for line in lines)


def test_the_weekly_suite_runs_when_it_is_named(runner, tmp_path: Path, capsys):
    """And compiles for what every other suite leaves out."""
    calls = f'register_cpu_ci(est_time=1, suite="base-a-test-cpu")\nregister_cpu_ci(est_time=1, suite="{WEEKLY_SUITE}")'
    write(
        tmp_path,
        "test_a.py",
        """
    import pytest
    from sglang.test.triton_compile import asked
    @pytest.mark.parametrize("arch", asked(80, 90, 100))
    def test(arch): print("arch", arch)
    """.replace("    ", ""),
        calls,
    ).write_text((tmp_path / "test_a.py").read_text().replace('"-q"', '"-q", "-s"'))
    for flags, archs in (((), ["90"]), (("--suite", WEEKLY_SUITE), ["80", "100"])):
        code, lines = run(runner, tmp_path, capsys, *flags)
        told = [line.partition("arch ")[2] for line in lines if "arch " in line]
        assert code == 0 and told == archs and lines[-1] == f"{len(archs)} passed, 0 failed"


def test_times_are_summed_by_kind(runner, tmp_path: Path, capsys):
    """A kind follows from what a file imports, also by way of our helpers."""
    for kind, body in {
        "compiling": "import sglang.test.triton_compile",
        "Triton interpreter": "def test_later():\n    from sglang.test import triton_testing",
        "servers and child processes": "from sglang.test.gsm8k_mtp import DRAFT_TOKENS",
        "engine in process": "from sglang.test.steps import step_of",
        "torch": "import torch",
    }.items():
        path = write(tmp_path, f"test_{kind.replace(' ', '_')}.py", body)
        assert kind_of(path, "base-a-test-cpu") == kind
        assert kind_of(path, UNIT_SUITE) == NO_TORCH
    folder = tmp_path / "few"
    folder.mkdir()
    for name in "ab":
        write(folder, f"test_{name}.py", "import subprocess\ndef test(): pass\n")
    write(folder, "test_c.py", "def test(): pass\n", f'register_cpu_ci(est_time=1, suite="{UNIT_SUITE}")')
    code, lines = run(runner, folder, capsys)
    begin = lines.index("BY KIND (seconds, processor seconds, files)")
    shown = sorted(line.split(maxsplit=2)[2] for line in lines[begin + 1 : begin + 3])
    assert code == 0 and shown == ["[1] no torch", "[2] servers and child processes"]


def test_a_conftests_imports_count(tmp_path: Path):
    (tmp_path / "conftest.py").write_text("from sglang.test.server_process import ServerProcess\n")
    path = write(tmp_path, "test_a.py", "def test(start): pass\n")
    assert kind_of(path, "base-a-test-cpu") == "servers and child processes"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
