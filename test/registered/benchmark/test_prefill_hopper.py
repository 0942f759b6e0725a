"""The experimental Hopper prefill attention without a GPU: what the assembler makes of it, and which tiles it gets."""

import shutil
import sys
from pathlib import Path

import pytest

from sglang.test.ci.ci_register import register_cpu_ci

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmark/kernels/attention"))
from bench_prefill_hopper import BATCHES, LAYERS, compile_source, make_work

register_cpu_ci(est_time=20, suite="base-a-test-cpu")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs CUDA's compiler")
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_nothing_is_spilled_and_products_stay_asynchronous(layer, tmp_path):
    said = compile_source([f"HEAD={layer.head}"], tmp_path / "prefill.cubin", "-cubin")
    assert [line for line in said if "spill" in line] == [
        "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    ]
    assert not [line for line in said if "serializ" in line]
    # Five warpgroups start with 96 registers a thread, then move them to where the sums are.
    assert [line for line in said if "registers" in line] == ["Used 96 registers, used 1 barriers"]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tokens", [16, 64])
def test_every_token_and_head_has_one_tile(layer, batch, tokens):
    tiles = make_work(layer, batch, tokens).tolist()
    covered = [(row + i, head) for row, count, _, head, *_ in tiles for i in range(count)]
    assert sorted(covered) == [(t, h) for t in range(sum(new for _, new in batch)) for h in range(layer.kv_heads)]
    key_rows, first_keys = {}, 0
    for cached, new in batch:
        key_rows[first_keys] = cached + new
        first_keys += cached + new
    for _, count, position, _, k_row, keys, *_ in tiles:
        assert count <= tokens and key_rows[k_row] == keys and position + count <= keys


def test_tiles_with_the_most_keys_start_first():
    full = make_work(LAYERS["full"], [(0, 40), (100, 20)], 16).tolist()
    assert [tile[2] for tile in full[::2]] == [116, 100, 32, 16, 0]
    # Behind a window all tiles have as many keys and stay in order.
    sliding = make_work(LAYERS["sliding"], [(5000, 40)], 16).tolist()
    assert [tile[2] for tile in sliding[::8]] == [5000, 5016, 5032]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
