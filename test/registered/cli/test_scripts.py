"""The shell scripts' own words: help without an installation, wrong flags, signs of life while pip is silent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=10, suite="base-a-test-cpu")

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "scripts"


def run(*words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", *words], cwd=ROOT, env={"PATH": os.environ["PATH"]} | env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "script,says",
    [("serve.sh", "--model-path"), ("test.sh", "--auto-partition-id"), ("make_wheelhouse.sh", "--platform")],
)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_installs_nothing(tmp_path, script, says, flag):
    """In a checkout where nothing is installed: it would make .venv beside scripts/."""
    for name in ("scripts", "python", "test"):
        (tmp_path / name).symlink_to(ROOT / name)
    copy = tmp_path / "scripts"
    copy.unlink()
    copy.mkdir()
    for file in SCRIPTS.glob("*.sh"):
        (copy / file.name).write_bytes(file.read_bytes())
    done = run(str(copy / script), flag, PYTHON=sys.executable)
    assert done.returncode == 0 and says in done.stdout, done.stderr
    assert not (tmp_path / ".venv").exists()


def test_no_python_is_one_line(tmp_path):
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    env = {"PATH": str(tmp_path), "PYTHON": "/no/such/python"}
    done = run("-c", f"source {SCRIPTS}/lib_venv.sh; find_python() {{ return 1; }}; uninstalled x", **env)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "set PYTHON=" in done.stderr


@pytest.mark.parametrize("words", [["--outputs", "x"], ["--python", "3.12"], ["--output"]])
def test_make_wheelhouse_refuses(words):
    done = run(str(SCRIPTS / "make_wheelhouse.sh"), *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not done.stdout


def test_a_long_silence_is_broken_and_the_exit_code_kept():
    script = f"set -eu; source {SCRIPTS}/lib_venv.sh; code=0; patiently quietly bash -c 'sleep 6; exit 3' || code=$?; "
    done = run("-c", script + 'echo "ended with $code"')
    assert done.stdout == "ended with 3\n" and done.stderr == "[setup] ... 5 s\n"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
