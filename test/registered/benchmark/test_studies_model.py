"""The studies with real servers and benchmarks: the shipped model, a few prompts."""

import json
import sys
from pathlib import Path

import pytest

import sglang
from sglang.test.ci.ci_register import register_cpu_ci

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmark" / "gemma4"))
import seed_table
from serving_runs import Commands, RunFailed, Setting, run_one_batch
from study_tables import batch_figure
from workloads import OneBatch

register_cpu_ci(est_time=16, suite="base-a-test-cpu")

MODEL = Path(sglang.__file__).parent / "assets" / "gemma-4-mini-it"
SMALL = ["--model-path", str(MODEL), "--load-format", "auto", "--repeats", "1", "--num-prompts", "4"]
SMALL += ["--input-len", "16", "--output-len", "4", "--request-rate", "50", "--warmup-prompts", "0", "--no-chart"]


def test_seed_table_of_two_real_servers(tmp_path):
    sets = ["--a", "mixed: --enable-mixed-chunk", "--b", "apart: --disable-mixed-chunk"]
    assert seed_table.main([*SMALL, *sets, "--output-dir", str(tmp_path)]) == 0
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [record["set"]["name"] for record in records] == ["mixed", "apart"]
    for record in records:
        result = record["result"]
        assert (result["completed"], result["total_input_tokens"], result["total_output_tokens"]) == (4, 64, 16)
        assert result["server_info"]["device"] == "cpu" and result["ready_seconds"] > 0
        assert record["server_flags"][1] == "python/sglang/assets/gemma-4-mini-it"
    assert "–" not in [cell.strip() for cell in (tmp_path / "table.md").read_text().split("|")]


def test_real_static_batches():
    flags = ["--model-path", str(MODEL), "--skip-tokenizer-init"]
    result = run_one_batch(Setting("all on"), flags, OneBatch((1, 2), 16, 4), Commands().one_batch, timeout=300)
    assert batch_figure("", 2, "median_decode_latency", 1e3).read(result) > 0
    with pytest.raises(RunFailed, match="--no-such-flag"):
        run_one_batch(Setting("", {}, ("--no-such-flag",)), flags, OneBatch((1,), 16, 4), Commands().one_batch, 300)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
