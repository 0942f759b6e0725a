"""benchmark/gemma4/speculation_steps.py on a tiny model: its table, its records, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sglang.srt.configs.model_config import DrafterConfig, ModelConfig
from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.model_loader.loader import build_drafter
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_models import make_tiny_assistant, make_tiny_gemma4

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmark" / "gemma4"))
import speculation_steps

register_cpu_ci(est_time=8, suite="base-a-test-cpu")

FOLDER = Path(speculation_steps.__file__).parent


def test_table_and_records(tmp_path: Path, capsys):
    target = make_tiny_gemma4(tmp_path / "target", "moe_top2", tokenizer=True)
    drafter = make_tiny_assistant(tmp_path / "drafter", "moe_top2")
    flags = ["--model-path", str(target), "--speculative-draft-model-path", str(drafter), "--max-total-tokens", "400"]
    flags += ["--speculative-algorithm", "NEXTN", "--max-running-requests", "4", "--input-len", "20", "--repeats", "2"]
    flags += ["--speculative-num-steps", "2", "--speculative-eagle-topk", "2", "--speculative-num-draft-tokens", "5"]
    flags += ["--batch-size", "1", "3", "--output-file", str(tmp_path / "out.jsonl")]
    assert speculation_steps.main(flags) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["batch", "---", "1", "3"]
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(r["batch_size"], r["steps"], r["topk"], r["nodes"], r["input_len"]) for r in records] == [
        (1, 2, 2, 5, 20),
        (3, 2, 2, 5, 20),
    ]
    for record in records:
        assert record["round"] == pytest.approx(record["draft"] + record["verify"])
        assert record["break_even"] == pytest.approx(record["round"] / record["plain"]) and record["draft"] > 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-total-tokens", "400"], "give --speculative-algorithm NEXTN"),
        (["--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--speculative-algorithm", "NEXTN", "--batch-size", "99"], "--batch-size 99 is above"),
    ],
)
def test_wrong_flags(flags: list[str], says: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        speculation_steps.main(flags)
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_the_full_size_drafter_fits_its_target():
    """26B-A4B's drafter has 0.42 billion parameters, at two ranks about half of them each."""
    target = ModelConfig.load(str(FOLDER / "configs" / "26b-a4b"))
    config = DrafterConfig.load(str(FOLDER / "configs" / "26b-a4b-assistant"))
    shares = []
    for size in (1, 2):
        model = build_drafter(config, target, torch.device("meta"), TensorParallel(0, size))
        shares.append(sum(p.numel() for p in model.parameters()))
    assert shares[0] * 2 == pytest.approx(839.4e6, rel=1e-3)  # bytes in bfloat16
    assert shares[1] < 0.52 * shares[0]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
