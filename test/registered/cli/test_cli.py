"""The command `sglang` and what it starts: help without torch, mistakes, the script that pyproject.toml declares."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sglang import __version__, cli
from sglang.check_env import gpus, output_of
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=6, suite="unit-test-cpu")

ROOT = Path(__file__).resolve().parents[3]


def call(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sglang", *words])
    try:
        return cli.main()
    except SystemExit as e:
        return e.code or 0


def test_the_script_is_this_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts["sglang"].split(":")
    assert getattr(importlib.import_module(module), name) is cli.main


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        ("--help", "serve  "),
        ("serve --help", "usage: sglang serve [MODEL] [flags]"),
        ("bench --help", "one-batch"),
        ("bench serving --help", "usage: sglang bench serving"),
        ("bench one-batch --help", "usage: sglang bench one-batch"),
        ("bench offline-throughput --help", "usage: sglang bench offline-throughput"),
        ("check-env --help", "usage: sglang check-env"),
        ("version", f"sglang version: {__version__}"),
        ("--version", f"sglang version: {__version__}"),
    ],
)
def test_help_needs_no_torch(words: str, shows: str):
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "sys.argv = ['sglang', *sys.argv[1:]]\nrunpy.run_module('sglang', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and shows in done.stdout


@pytest.mark.parametrize("name", ["serving", "one_batch", "offline_throughput"])
def test_upstreams_newer_module_names_run_the_same(name: str):
    shown = subprocess.run([sys.executable, "-m", f"sglang.benchmark.{name}", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and f"usage: python -m sglang.bench_{name}" in shown.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("serv", "error: sglang has no command 'serv'; did you mean serve?"),
        ("run", "error: sglang has no command 'run'; there are serve, bench, check-env, version"),
        ("bench serve", "error: sglang bench has no command 'serve'; did you mean serving?"),
        ("version 2", "error: sglang version takes nothing more, got '2'"),
        ("serve --prot 1", "error: unknown flag --prot; did you mean --port?"),
        ("bench offline-throughput --prompts 1", "error: unknown flag --prompts; --help lists all flags"),
        ("check-env now", "unrecognized arguments: now"),
    ],
)
def test_mistakes(words: str, says: str, monkeypatch, capsys):
    assert call(monkeypatch, *words.split()) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_can_not_be_had_ends_the_start():
    words = ["serve", "google/gemma-4-E2B-it", "--download-dir", "/nowhere", "--revision", "v1"]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "sglang", *words], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        2,
        "error: --model-path google/gemma-4-E2B-it is not a folder, and as a model of the hub it can't be had: "
        "HF_HUB_OFFLINE is set, and /nowhere does not hold all of it\n",
    )


def test_no_command_shows_the_commands(monkeypatch, capsys):
    assert call(monkeypatch) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_the_machine_is_described(monkeypatch, capsys):
    monkeypatch.setenv("SGLANG_API_KEY", "hunter2")
    monkeypatch.setenv("SGLANG_TEST_WEEKLY", "1")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert call(monkeypatch, "check-env") == 0
    shown = capsys.readouterr().out
    lines = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    assert lines["sglang"] == __version__ and lines["Python"].startswith(sys.version.split()[0])
    assert int(lines["CPU cores for this process"]) >= 1 and lines["Free memory"].endswith(" GiB")
    assert lines["SGLANG_TEST_WEEKLY"] == "1" and lines["SGLANG_API_KEY"] == "is set" and "hunter2" not in shown
    assert lines["transformers"][0].isdigit() and lines["GPUs"].startswith("unknown: torch can't be imported")


def test_tools_that_do_not_answer():
    assert output_of("no-such-program") == "not there"
    assert output_of(sys.executable, "-c", "raise SystemExit(3)") == "exit code 3"
    assert output_of(sys.executable, "-c", "print('x')") == "x"


def test_gpus_are_those_of_torch(monkeypatch):
    class Card:
        name, total_memory, major, minor = "NVIDIA H200", 141 * 2**30, 9, 0

    class Torch:
        class version:
            cuda = "13.0"

        class cuda:
            is_available = staticmethod(lambda: True)
            device_count = staticmethod(lambda: 1)
            get_device_properties = staticmethod(lambda i: Card)

    monkeypatch.setitem(sys.modules, "torch", Torch)
    assert list(gpus()) == [
        ("CUDA of torch", "13.0"), ("GPU 0", "NVIDIA H200, 141.0 GiB, compute capability 9.0"),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
