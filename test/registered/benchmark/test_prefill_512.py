"""The experimental Hopper prefill attention without a GPU: what the assembler makes of it, and which tiles it gets."""

import shutil
import sys
from pathlib import Path

import pytest

from sglang.test.ci.ci_register import register_cpu_ci

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmark/kernels/attention"))
from bench_prefill_512 import BATCHES, compile_source, make_work

register_cpu_ci(est_time=12, suite="base-a-test-cpu")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs CUDA's compiler")
@pytest.mark.parametrize("cluster", [1, 2])
def test_nothing_is_spilled_and_products_stay_asynchronous(cluster, tmp_path):
    said = compile_source([f"CLUSTER={cluster}"], tmp_path / "prefill.cubin", "-cubin")
    assert [line for line in said if "spill" in line] == [
        "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    ]
    assert not [line for line in said if "serializ" in line]
    # Four warpgroups start with 128 registers a thread, then move them to where the sums are.
    assert [line for line in said if "registers" in line] == ["Used 128 registers, used 1 barriers"]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tokens", [8, 16])
def test_every_token_has_one_tile_and_its_own_keys(batch, tokens):
    tiles = make_work(batch, tokens).tolist()
    owners, first_key = [], 0  # of each row of q: its request's row of key 0, its position
    for cached, new in batch:
        owners += [(first_key, cached + i) for i in range(new)]
        first_key += cached + new
    found = {row + i: (k_row, position + i) for row, count, k_row, position in tiles for i in range(count)}
    assert [found[row] for row in range(len(owners))] == owners
    assert sum(count for _, count, *_ in tiles) == len(owners) and max(count for _, count, *_ in tiles) <= tokens


def test_tiles_with_the_most_keys_start_first():
    assert [tile[3] for tile in make_work([(0, 40), (100, 20)], 16).tolist()] == [116, 100, 32, 16, 0]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
