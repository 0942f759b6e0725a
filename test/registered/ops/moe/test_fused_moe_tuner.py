"""The tile tuner without a GPU: its search space, its choice under injected times, resuming, the files it writes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.ops.moe import fused_moe
from sglang.srt.ops.moe.config import TUNED_TOKENS, Tiles, default_tiles, get_config
from sglang.srt.utils.triton_runtime import INTERPRETED
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.triton_compile import compile_kernel

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmark/kernels/fused_moe_triton"))
import bench_fused_moe
import tuning_fused_moe_triton as tuning
from search_space import candidates, row_blocks, shared_bytes
from tuning_fused_moe_triton import Outcome, Progress, Rejected, markdown, run, spaces, tune, write_configs
from workload import Shape

register_cpu_ci(est_time=8, suite="base-a-test-cpu")

GEMMA = Shape(num_experts=128, intermediate=704, hidden=2816, topk=8, dtype=torch.bfloat16)
HOPPER = 227 << 10
SMALL, LARGE, WIDE = Tiles(16, 64, 64, 1), Tiles(64, 64, 64, 1), Tiles(64, 128, 64, 1)


def outcome(tokens: int, tiles: Tiles = SMALL) -> Outcome:
    return Outcome(tokens, (tiles, tiles), (10.0, 5.0), (20.0, 10.0), {"wrong result": 1})


@pytest.mark.parametrize(
    ("tokens", "rows"), [(1, (16,)), (128, (16,)), (129, (16, 32, 64)), (1024, (32, 64, 128)), (8192, (64, 128))]
)
def test_row_blocks_follow_an_experts_rows(tokens, rows):
    assert row_blocks(tokens, topk=8, num_experts=128) == rows


@pytest.mark.parametrize("tokens", TUNED_TOKENS)
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("fuse", [False, True])
def test_the_search_space_is_modest_fits_and_has_the_default(tokens, tp, fuse):
    shape = Shape(128, 704 // tp, 2816, 8, torch.bfloat16)
    for side, found in enumerate(spaces(shape, tokens, HOPPER, fuse)):
        outputs = 2 if fuse and side == 0 else 1
        assert 30 <= len(found) == len(set(found)) <= 165
        assert default_tiles(tokens, 128) in found
        assert all(shared_bytes(t, 2, outputs) <= HOPPER for t in found)
        assert all(t.block_m * t.block_n * outputs <= 128 * 32 * t.num_warps for t in found)


def test_tiles_that_would_mostly_pad_are_left_out():
    found = candidates(1, 8, 128, n=96, k=352, itemsize=2, shared_memory=HOPPER)
    assert {t.block_n for t in found} == {32} and {t.block_k for t in found} == {64, 128}


@pytest.mark.skipif(INTERPRETED, reason="this process interprets its kernels")
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
@pytest.mark.parametrize("tiles", [Tiles(16, 64, 128, 1, 4, 4), Tiles(64, 64, 64, 1, 4, 3)])
def test_the_estimate_of_shared_memory_is_the_compilers(tiles, activation):
    pointers = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), "*bf16") | dict.fromkeys(
        ("pairs_ptr", "experts_ptr", "used_ptr"), "*i32"
    )
    sizes = dict.fromkeys(("N", "K", "num_pairs", "pairs_per_row", "stride_a"), "i32")
    constexprs = fused_moe.kernel_options(2816, tiles, activation) | {"CUDA_MATH": True}
    options = {name: constexprs.pop(name) for name in ("num_warps", "num_stages")}
    compiled = compile_kernel(fused_moe._grouped_gemm_kernel, 90, pointers | sizes, constexprs, **options)
    assert compiled.metadata.shared == shared_bytes(tiles, 2, 2 if activation else 1)


def timer_of(table: dict, calls: list | None = None):
    """table: (down, tiles) -> microseconds or a reason; other tiles take 100."""

    def timer(tokens, down, tiles, replays):
        if calls is not None:
            calls.append((down, tiles, replays))
        time = table.get((down, tiles), 100.0)
        if isinstance(time, str):
            raise Rejected(time)
        return time

    return timer


def test_the_pair_with_the_least_sum_under_one_row_block_wins():
    """Up alone would take SMALL; together with the down product LARGE and WIDE are faster."""
    table = {(False, SMALL): 10, (False, LARGE): 12, (True, SMALL): 30, (True, WIDE): 20}
    got = tune(timer_of(table), 4, 128, [SMALL, LARGE, WIDE], [SMALL, LARGE, WIDE])
    assert got.tiles == (LARGE, WIDE) and got.us == (12, 20)
    assert got.default_us == (100, 100) and got.rejected == {}


def test_the_default_stays_where_nothing_is_faster():
    default = default_tiles(4, 128)
    table = {(side, default): 5 for side in (False, True)}
    assert tune(timer_of(table), 4, 128, [SMALL, default], [SMALL, default]).tiles == (default, default)


def test_rejected_candidates_are_counted_and_never_chosen():
    table = {(False, SMALL): "wrong result", (True, LARGE): "does not compile", (True, WIDE): "wrong result"}
    with pytest.raises(RuntimeError, match="4 tokens: no candidates left, rejected: .*wrong result': 2"):
        tune(timer_of(table), 4, 128, [SMALL, LARGE, WIDE], [SMALL, LARGE, WIDE])
    got = tune(timer_of(table | {(True, LARGE): 7}), 4, 128, [SMALL, LARGE, WIDE], [SMALL, LARGE, WIDE])
    assert got.tiles == (LARGE, LARGE) and got.rejected == {"wrong result": 2}


def test_few_candidates_are_timed_long():
    """A hundred get the short timing, of each row block 8 the next one and 3 the last."""
    calls = []
    space = [Tiles(rows, 64, 64, group) for rows in (16, 64) for group in range(1, 51)]
    table = {(side, tiles): 50 + tiles.group_m for side in (False, True) for tiles in space}
    got = tune(timer_of(table, calls), 4, 128, space, space[:1])
    assert got.tiles[0] == Tiles(16, 64, 64, 1)
    up = [replays for down, tiles, replays in calls if not down and tiles in space]
    short, middle, long = (up.count(replays) for replays, _ in tuning.ROUNDS)
    assert (short, middle, long) == (100, 16, 6 + 1)  # and the chosen one again, beside the default


def test_finished_token_counts_are_read_back(tmp_path):
    path = tmp_path / "tuning.jsonl"
    Progress(path, {"device": "A"}).add(outcome(1))
    Progress(path, {"device": "B"}).add(outcome(2))
    Progress(path, {"device": "A"}).add(outcome(4, LARGE))
    assert Progress(path, {"device": "A"}).outcomes == {1: outcome(1), 4: outcome(4, LARGE)}
    assert Progress(path, {"device": "B"}).outcomes == {2: outcome(2)}
    assert Progress(None, {"device": "A"}).outcomes == {}


def test_a_line_cut_off_in_writing_is_dropped_and_a_broken_one_named(tmp_path):
    path = tmp_path / "tuning.jsonl"
    Progress(path, {}).add(outcome(1))
    whole = path.read_text()
    path.write_text(whole + whole[:50])
    progress = Progress(path, {})
    assert progress.outcomes == {1: outcome(1)}
    progress.add(outcome(2))
    assert Progress(path, {}).outcomes == {1: outcome(1), 2: outcome(2)}
    path.write_text(whole[:50] + "\n" + whole)
    with pytest.raises(ValueError, match="tuning.jsonl:1: not JSON"):
        Progress(path, {})


def test_the_budget_ends_a_run_between_token_counts():
    progress = Progress(None, {})
    todo = {tokens: ([SMALL], [SMALL]) for tokens in (1, 2, 4, 8)}
    times = iter([0, 5, 11, 21])
    assert run(128, todo, timer_of({}), progress, budget_s=20, clock=lambda: next(times)) == [4, 8]
    assert list(progress.outcomes) == [1, 2]
    assert run(128, {t: todo[t] for t in (4, 8)}, timer_of({}), progress, budget_s=None) == []
    assert list(progress.outcomes) == [1, 2, 4, 8]


def test_written_files_are_what_a_server_looks_up(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "triton_3_6_0"
    other = Outcome(600, (WIDE, LARGE), (1.0, 1.0), (1.0, 1.0), {})
    up, down = write_configs(folder, GEMMA, "NVIDIA H200", {600: other, 1: outcome(1)})
    assert up.name == "E=128,N=704,device_name=NVIDIA_H200.json"
    assert down.name == "E=128,N=704,device_name=NVIDIA_H200_down.json"
    assert list(json.loads(up.read_text())) == ["1", "600"]
    assert json.loads(up.read_text())["600"] == {
        "BLOCK_SIZE_M": 64,
        "BLOCK_SIZE_N": 128,
        "BLOCK_SIZE_K": 64,
        "GROUP_SIZE_M": 1,
        "num_warps": 4,
        "num_stages": 3,
    }
    monkeypatch.setenv("SGLANG_MOE_CONFIG_DIR", str(tmp_path))
    found = [get_config(128, 704, "NVIDIA H200", torch.bfloat16, 500, side, "3.6.0") for side in (False, True)]
    assert found == [WIDE, LARGE]


def test_the_table_has_speed_up_and_share_of_the_floor():
    rows = markdown(GEMMA, {64: outcome(64), 1: outcome(1)}, bytes_per_s=4.3e12, flops_per_s=790e12).splitlines()
    assert rows[0].startswith("| tokens | default us | tuned us | speed-up | floor us | of floor |")
    assert rows[2] == "| 1 | 30.0 | 15.0 | 2.00 | 22.1 | 148% | 16/64/64/1/4/3 | 16/64/64/1/4/3 |"
    assert rows[3].startswith("| 64 | ")


def test_floor_counts_the_experts_hit_then_the_arithmetic():
    """Few tokens: 8 experts' three matrices. Many: all pairs' products at the tensor cores' rate."""
    one_expert = 3 * 704 * 2816
    assert GEMMA.experts_hit(1) == pytest.approx(8) and GEMMA.experts_hit(8192) == pytest.approx(128)
    assert GEMMA.experts_hit(26) == pytest.approx(128 * (1 - (15 / 16) ** 26))
    assert GEMMA.floor_us(1, 4.3e12, 790e12) == pytest.approx(8 * one_expert * 2 / 4.3e6, rel=0.01)
    assert GEMMA.floor_us(8192, 4.3e12, 790e12) == pytest.approx(8192 * 8 * 2 * one_expert / 790e6)


def config_json(folder: Path, **more) -> Path:
    sizes = dict(num_experts=128, moe_intermediate_size=704, hidden_size=2816, top_k_experts=8)
    (folder / "config.json").write_text(json.dumps({"text_config": sizes | more}))
    return folder


@pytest.fixture
def on_a_gpu_with(monkeypatch):
    """Runs the tuner's main with arguments; a card that is not there, times from a table, no compilation."""
    calls = []

    class FakeTimer:
        def __init__(self, shape, fuse_activation):
            self.compiled = SimpleNamespace(close=lambda: None)
            self.timer = timer_of({}, calls)

        def plan(self, up, down):
            pass

        def __call__(self, *args):
            return self.timer(*args)

    monkeypatch.setattr(tuning, "GpuTimer", FakeTimer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    properties = SimpleNamespace(shared_memory_per_block_optin=HOPPER)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)

    def main(*args):
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["tuner", *map(str, args)])
        tuning.main()
        return len(calls)

    return main


def test_a_whole_run_writes_both_files_and_a_second_times_nothing(tmp_path, on_a_gpu_with, capsys):
    args = ["--model", config_json(tmp_path), "--tp-size", 2, "--batch-sizes", 64, 1]
    args += ["--output-dir", tmp_path / "out", "--resume-file", tmp_path / "tuning.jsonl"]
    assert on_a_gpu_with(*args) > 200
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["E=128,N=352,device_name=NVIDIA_H200.json", "E=128,N=352,device_name=NVIDIA_H200_down.json"]
    written = [path.read_text() for path in (tmp_path / "out").iterdir()]
    printed = capsys.readouterr().out
    assert "| 1 | 200.0 | 200.0 | 1.00 |" in printed and "rejected candidates: none" in printed
    assert on_a_gpu_with(*args) == 0
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == written
    assert on_a_gpu_with(*args, "--fuse-activation") > 200  # measured for something else


def test_a_run_without_budget_says_what_is_left(tmp_path, on_a_gpu_with, capsys):
    args = ["--model", config_json(tmp_path), "--batch-sizes", 1, 2, "--output-dir", tmp_path / "out"]
    assert on_a_gpu_with(*args, "--time-budget-seconds", -1) == 0
    assert "left out, to be run with the same resume file: 1 2" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "args", "message"),
    [
        ({}, ["--tp-size", "3"], "704 is not 3 ranks times a multiple of 8"),
        ({"num_experts": None}, [], "has no num_experts: it has no experts"),
        ({"top_k_experts": 129}, [], "topk no more than the experts"),
        ({}, ["--batch-sizes", "0"], "sizes must be positive"),
        ({}, ["--model", "nowhere"], "nowhere/config.json"),
        (None, ["--num-experts", "8"], "give --model, or all of"),
        ({}, [], "there is no GPU to time on"),
    ],
)
@pytest.mark.parametrize("script", [tuning, bench_fused_moe])
def test_wrong_arguments_get_a_message(script, more, args, message, tmp_path, monkeypatch, capsys):
    model = [] if more is None else ["--model", str(config_json(tmp_path, **more))]
    monkeypatch.setattr(sys, "argv", ["script", *model, *args])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("script", [tuning, bench_fused_moe])
def test_help_needs_no_gpu(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 0 and "--batch-sizes" in capsys.readouterr().out


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
