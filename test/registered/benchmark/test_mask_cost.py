"""benchmark/gemma4/mask_cost.py on a tiny model: a row for each batch and grammar, both libraries, drafts or none."""

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
    titles = ["batch", "grammar", "free ms", "ms", "same ms", "cost", "masks ms", "late"]
    assert [title.strip() for title in rows[0]] == titles
    kinds = [f"{library} {name}" for library in libraries for name in ("schema", "object")]
    rows = [[cell.strip() for cell in row] for row in rows[2:]]
    assert [row[:2] for row in rows] == [[batch, kind] for batch in ("1", "4") for kind in kinds]
    for *_, free, step, same, cost, masks, late in rows:
        assert (same == "-") == drafts and late.endswith("/6")
        without = float(free if drafts else same)
        assert 0 < float(masks) < float(step) and without > 0
        assert float(cost.strip(" %")) == pytest.approx(100 * (float(step) / without - 1), abs=2)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
