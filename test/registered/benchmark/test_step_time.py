"""benchmark/gemma4/step_time.py on a tiny model: its table and trace on a GPU, and what it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sglang.benchmark.static_bench import Bench, Case
from sglang.srt.server_args import ServerArgs
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.tiny_models import make_tiny_gemma4

register_cpu_ci(est_time=10, suite="base-a-test-cpu")
register_cuda_ci(est_time=30, stage="base-b", runner_config="1-gpu-large")

SCRIPT = Path(__file__).parents[3] / "benchmark/gemma4/step_time.py"


sys.path.append(str(SCRIPT.parent))


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    path = make_tiny_gemma4(folder, "moe_top2", tokenizer=True)
    sizes = ["--max-total-tokens", "600", "--max-running-requests", "4", "--input-len", "20"]
    command = [sys.executable, str(SCRIPT), "--model-path", str(path), *sizes, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_table_and_trace(tmp_path: Path):
    done = run(tmp_path, "--batch-size", "3", "1", "--prompt-len", "30", "--trace")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert [row[0].strip() for row in rows] == ["3", "1"]
    for row in rows:
        step, launched, mixed = map(float, row[1:])
        assert 0 < step < 100 and 0 < launched <= mixed < 1000
    kernels = re.findall(r"^ +([\d.]+) +([\d.]+) +[\d.]+ _grouped_gemm_kernel$", done.stdout, re.MULTILINE)
    assert len(kernels) >= 4 and all(float(begin) < float(end) for begin, end in kernels)


def test_mixed_steps(tmp_path: Path):
    """Everything but the clock is the same on a CPU."""
    from step_time import FIRST_MIXED, MIXED_STEPS, mixed_ms

    path = make_tiny_gemma4(tmp_path, "moe_top2", tokenizer=True)
    bench = Bench(ServerArgs(model_path=str(path), device="cpu", max_total_tokens=600, disable_radix_cache=True))
    with bench.batch(Case(3, 20, 2)) as batch:
        for step in batch.prefill_steps():
            bench.worker.submit(step).result()
        launched, done = mixed_ms(bench, batch, 30)
        assert 0 < launched <= done
        assert [req.computed for req in batch.reqs] == [20 + FIRST_MIXED + MIXED_STEPS] * 3
    bench.kv.check_idle()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_prompt_of_more_than_a_step(tmp_path: Path):
    done = run(tmp_path, "--chunked-prefill-size", "16", "--prompt-len", "17")
    assert done.returncode == 2 and "--prompt-len 17 is above --chunked-prefill-size 16" in done.stderr


def test_several_ranks(tmp_path: Path):
    done = run(tmp_path, "--device", "cpu", "--tp-size", "2")
    assert done.returncode == 2 and "--tp-size 2: this runs on one device" in done.stderr


def test_without_a_graph(tmp_path: Path):
    done = run(tmp_path, "--device", "cpu")
    assert done.returncode == 2 and "error: there is no graph to replay" in done.stderr
    assert "Traceback" not in done.stderr and "|" not in done.stdout


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
