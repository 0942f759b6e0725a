"""The comparison with transformers on a CPU: both answer the same prompts with the same tokens; a mistake is told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_models import make_tiny_gemma4

register_cpu_ci(est_time=25, suite="base-b-test-cpu")

TOOL = Path(__file__).resolve().parents[3] / "benchmark/gemma4/beside_transformers.py"


def run(*flags: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(TOOL), *flags], env=env, capture_output=True, text=True, timeout=200)


def test_both_make_the_same_tokens(tmp_path):
    folder = make_tiny_gemma4(tmp_path / "m", "moe_top2")
    flags = ["--dtype", "float32", "--batch-size", "1", "3", "--input-len", "9", "--output-len", "5", "--rounds", "2"]
    done = run("--model-path", str(folder), *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 threads of ours, ")
    line = r"batch +{}: ours +[\d.]+, transformers +[\d.]+, ratio [\d.]+ \([\d.]+ to [\d.]+\), equal 1.00\n"
    assert re.search(line.format(1) + line.format(3), done.stdout), done.stdout


def test_no_such_model_is_an_error():
    done = run("--model-path", "/no/such/model")
    assert done.returncode == 1
    assert "no such folder" in done.stderr and "Traceback" not in done.stderr


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
