"""benchmark/gemma4/mask_cost.py on a tiny model: a row for each batch, with both libraries, with drafts and without."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.tiny_models import make_tiny_assistant, make_tiny_gemma4

register_cpu_ci(est_time=25, suite="base-a-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

SCRIPT = Path(__file__).parents[3] / "benchmark/gemma4/mask_cost.py"


@pytest.mark.parametrize("drafts", [False, True])
def test_table(tmp_path: Path, drafts: bool):
    path = make_tiny_gemma4(tmp_path / "target", "moe_top2", tokenizer=True)
    flags = ["--max-total-tokens", "2000", "--max-running-requests", "4", "--input-len", "20", "--steps", "6"]
    if drafts:
        drafter = make_tiny_assistant(tmp_path / "drafter", "moe_top2", False)
        flags += ["--speculative-algorithm", "NEXTN", "--speculative-draft-model-path", str(drafter)]
    libraries = ["xgrammar"] if drafts else ["xgrammar", "llguidance"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = [sys.executable, str(SCRIPT), "--model-path", str(path), "--device", device, *flags]
    command += ["--batch-size", "1", "4", "--library", *libraries]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) == 2 + 6 * len(libraries)
    assert [row[0].strip() for row in rows[2:]] == ["1", "4"]
    for row in rows[2:]:
        free, numbers = float(row[1]), row[2:]
        assert free > 0
        for step, cost, masks in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
            assert 0 < float(masks) < float(step)
            assert float(cost.strip(" %")) == pytest.approx(100 * (float(step) / free - 1), abs=2)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
