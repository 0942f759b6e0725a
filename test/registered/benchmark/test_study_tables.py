"""Tables of studies against numbers worked out by hand."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from sglang.srt.ops.attention.tiles import ExtendTile, extend_tile
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.kernel_timing import add_case, add_json_argument

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmark" / "gemma4"))
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmark" / "kernels" / "attention"))
import bench_extend
import run_metadata
from optimizations import OPTIMIZATIONS
from serving_runs import Setting
from study import Step, current, left_out_text
from study_tables import (
    ablation_tables,
    batch_figure,
    by_repeat,
    digits,
    paired_ratios,
    ratio_cell,
    seed_tables,
    serving_figure,
    spread,
)
from workloads import ColdStart, KernelBench, OneBatch, Serving, as_json

register_cpu_ci(est_time=6, suite="base-a-test-cpu")

LOAD = Serving(80, 1024, 256, 8.0, 64)
BATCHES = OneBatch((1, 8), 1024, 64)
TPOT = serving_figure("median TPOT ms", LOAD.name, "median_tpot_ms")


def record(name: str, repeat: int, workload=LOAD, build: str = "b1", **result) -> dict:
    return {
        "study": "seed_table",
        "set": {"name": name, "env": {}, "flags": []},
        "server_flags": [],
        "workload": as_json(workload),
        "repeat": repeat,
        "meta": {"hardware": "GPU", "build": build, "builds": [build]},
        "result": result,
        "error": None,
    }


def tpots(name: str, values: dict[int, float]) -> list[dict]:
    return [record(name, repeat, median_tpot_ms=value) for repeat, value in values.items()]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (9.9994, "9.999"), (14.005, "14.01"), (99.95, "99.95"), (345.67, "345.7"), (12345.6, "12346")],
)
def test_digits(value, text):
    assert digits(value) == text


def test_spread_is_median_and_range():
    assert str(spread([3.0, 1.0, 2.0, 10.0])) == "2.500 (1.000–10.00)"
    assert str(spread([7.0])) == "7.000"
    assert spread([]) is None


def test_ratios_are_of_the_same_repeat():
    """Over medians B / A would be 12 / 12 = 1; repeat by repeat it is 0.5, 1 and 2."""
    records = tpots("A", {0: 24.0, 1: 12.0, 2: 8.0}) + tpots("B", {2: 16.0, 1: 12.0, 0: 12.0})
    assert paired_ratios(records, "A", "B", TPOT) == [0.5, 1.0, 2.0]
    assert ratio_cell(paired_ratios(records, "A", "B", TPOT)) == "1.000 (0.500–2.000) ~"
    assert ratio_cell([0.8, 0.9]) == "0.850 (0.800–0.900)"
    assert ratio_cell([1.0]) == "1.000" and ratio_cell([]) == "–"


def test_a_repeat_that_one_side_lacks_is_left_out():
    records = tpots("A", {0: 10.0, 1: 20.0}) + tpots("B", {1: 10.0, 2: 1.0})
    assert paired_ratios(records, "A", "B", TPOT) == [0.5]
    assert by_repeat([record("A", 0, median_tpot_ms=None)], "A", TPOT) == {}  # bench_serving's null


def full(name: str, repeat: int, rate: float, time: float) -> dict:
    times = {
        f"{which}_{n}_ms": time for which in ("mean", "median", "p99") for n in ("ttft", "tpot", "itl", "e2e_latency")
    }
    return record(name, repeat, output_throughput=rate, total_throughput=5 * rate, **times)


def test_the_pull_requests_tables():
    records = [full("PR's three off", 0, 1600.0, 20.0), full("all on", 0, 1680.0, 16.0)]
    lines = seed_tables(records, "PR's three off", "all on")
    name = "rate 8, up to 64 at once"
    assert lines[:5] == [
        "| workload | setting | output tok/s | median TTFT ms | median TPOT ms | median E2E ms | result |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| {name} | PR's three off | 1600 | 20.00 | 20.00 | 20.00 | baseline |",
        f"| {name} | all on | 1680 | 16.00 | 16.00 | 16.00 | output +5.0%, median TTFT -20.0%, median TPOT -20.0%, "
        "median E2E -20.0% |",
        f"| {name} | PR #26588, patched, its own figures | 1671 | 74.04 | 16.62 | 4339 | output +3.3%, "
        "median TTFT -23.0%, median TPOT -18.0% |",
    ]
    assert "| output tok/s | 1600 | 1680 | 1.050 | 1.033 |" in lines
    assert "| total tok/s | 8000 | 8400 | 1.050 | – |" in lines
    assert sum(line.startswith("| ") for line in lines) == 5 + 2 + 2 + 12


def test_other_settings_are_not_held_against_the_pull_request():
    records = [full("A", 0, 1600.0, 20.0)]
    assert not any("26588" in line for line in seed_tables(records, "A", "B"))


def test_ablation_has_each_figure_beside_its_kernel():
    first, *_ = OPTIMIZATIONS
    cases = [{"kernel": first.kernel, "case": first.case, "us": 20.0, "off_us": 25.0, "floor_us": 10.0}]
    cases.append({"kernel": "rms_norm", "case": "1 token", "us": 4.0, "off_us": None, "floor_us": 0.01})
    batch = [{"batch_size": 8, "median_decode_latency": 0.008, "prefill_latency": 0.5}]
    records = [
        *tpots("all on", {0: 10.0, 1: 10.0}),
        *tpots(f"without {first.name}", {0: 11.0, 1: 12.0}),
        *tpots("all off", {0: 15.0}),
        record("all on", 0, BATCHES, batches=batch),
        record("all on", 0, ColdStart(), ready_seconds=44.0),
        record("all on", 0, KernelBench(first.bench), cases=cases),
    ]
    lines = ablation_tables(records)
    assert lines[0] == f"| figure | all on | without {first.name} | all off |"  # no others were measured
    assert f"| {LOAD.name}: median TPOT ms | 10.00 (10.00–10.00) | 1.150 (1.100–1.200) | 1.500 |" in lines
    assert "| static batches: decode of 8 ms | 8.000 | – | – |" in lines
    assert "| static batches: decode of 1 ms | – | – | – |" in lines
    assert "| cold start: ready after s | 44.00 | – | – |" in lines
    assert f"| its kernel alone: time | – | 1.250: 20.00 → 25.00 us, {first.case} | – |" in lines
    assert lines[-2:] == [
        f"| {first.kernel} | {first.case} | 20.00 | 25.00 | 1.250 | 10.00 |",
        "| rms_norm | 1 token | 4.000 | – | – | 0.010 |",
    ]


def test_a_batch_figure_is_scaled():
    result = {"batches": [{"batch_size": 8, "median_decode_latency": 0.0068}]}
    assert batch_figure("", 8, "median_decode_latency", 1e3).read(result) == pytest.approx(6.8)
    assert batch_figure("", 8, "prefill_latency", 1e3).read(result) is None


def test_current_records_are_of_the_last_conditions():
    old = [record("A", 0, build="b1"), record("B", 0, build="b1")]
    new = [record("A", 0, build="b2"), record("A", 1, Serving(9, 1024, 256, 8.0, 64), build="b2")]
    failed = record("B", 0, build="b3") | {"error": "the server is gone"}
    assert current(old + new + [failed]) == [new[1]]  # of the same name, but with other lengths
    assert current(old) == old and current([failed]) == []


def test_what_is_left_out_is_told_by_setting():
    steps = [Step(Setting("A"), LOAD, 1), Step(Setting("B"), LOAD, 0), Step(Setting("A"), LOAD, 2)]
    assert left_out_text(steps) == f"  A: {LOAD.name}, repeat 2, 3\n  B: {LOAD.name}, repeat 1"


def test_metadata_holds_no_absolute_path_of_the_repository():
    inside = run_metadata.REPOSITORY / "benchmark" / "x.py"
    assert run_metadata.command_text([str(inside), "--a", "n: X=1"]) == "python benchmark/x.py --a 'n: X=1'"
    assert run_metadata.relative("/elsewhere/x") == "/elsewhere/x"


def test_metadata_without_a_gpu_and_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.py").write_text("x = 1")
    meta = run_metadata.collect(["x.py"], tmp_path)
    assert meta["hardware"].endswith("cores") and meta["driver"] is None and meta["commit"] is None
    assert meta["torch"] and meta["date"].endswith("+00:00")
    (tmp_path / "a.py").write_text("x = 2")
    assert run_metadata.build_digest(tmp_path) != meta["build"]


def test_metadata_of_a_gpu_is_nvidia_smis(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1'\necho 'NVIDIA H200, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    meta = run_metadata.collect(["x.py"], tmp_path)
    assert (meta["hardware"], meta["gpu_count"], meta["driver"]) == ("NVIDIA H200", 2, "570.1")


def test_a_kernel_benchmark_writes_a_line_a_case(tmp_path):
    parser = argparse.ArgumentParser()
    add_json_argument(parser)
    path = parser.parse_args(["--json", str(tmp_path / "k.jsonl")]).json
    add_case(path, "fused experts", "8 tokens", 20.0, 25.0, 10.0)
    add_case(path, "fused experts", "9 tokens", 20.0, None, 10.0)
    add_case(parser.parse_args([]).json, "fused experts", "not asked for", 1.0, None, 1.0)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"kernel": "fused experts", "case": "8 tokens", "us": 20.0, "off_us": 25.0, "floor_us": 10.0}
    assert second["off_us"] is None


@pytest.mark.parametrize(("capability", "off"), [((9, 0), ExtendTile(128, 64, 8, 1)), ((8, 0), None)])
def test_the_prefill_benchmark_compares_what_the_switch_changes(monkeypatch, capability, off):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    sliding, full = (bench_extend.tiles_to_compare(bench_extend.LAYERS[name]) for name in ("sliding", "full"))
    assert sliding == (extend_tile(capability, 256), off)
    assert full == (extend_tile(capability, 512), None)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
