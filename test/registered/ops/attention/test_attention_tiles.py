"""Tile tables of the attention kernels, the list of prefill tiles and the number of decode splits: host arithmetic that
needs neither a GPU nor Triton."""

import sys

import numpy as np
import pytest

from sglang.srt.ops.attention.decode_attention import (
    MAX_SPLITS,
    key_block_scratch_size,
    key_block_splits,
    num_splits,
    scratch_size,
)
from sglang.srt.ops.attention.extend_attention import make_work, tokens_per_tile
from sglang.srt.ops.attention.key_blocks import FIRST_BLOCK, LEVEL, MAX_LEVELS, key_blocks_for, max_key_blocks
from sglang.srt.ops.attention.tiles import (
    DISABLE_HOPPER_TILES,
    DecodeTile,
    ExtendTile,
    decode_tile,
    extend_tile,
    key_block_tiles,
)
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=4, suite="base-a-test-cpu")

HEAD_SIZES = [64, 128, 129, 192, 256, 257, 288, 512]
# (BLOCK_M, BLOCK_N) for each of HEAD_SIZES
SMALL, MIDDLE, LARGE = 2, 3, 3  # how many of HEAD_SIZES are up to 128, up to 256, above
SHAPES = {
    (8, 0): [(128, 128)] * SMALL + [(64, 64)] * MIDDLE + [(32, 64)] * LARGE,
    (8, 6): [(64, 128)] * SMALL + [(64, 64)] * MIDDLE + [(32, 32)] * LARGE,
    (8, 7): [(128, 128)] * SMALL + [(64, 64)] * MIDDLE + [(32, 64)] * LARGE,
    (8, 9): [(64, 128)] * SMALL + [(64, 64)] * MIDDLE + [(32, 32)] * LARGE,
    (9, 0): [(128, 64)] * SMALL + [(128, 64)] * MIDDLE + [(64, 32)] * LARGE,
    (10, 0): [(64, 64)] * SMALL + [(64, 64)] * MIDDLE + [(16, 64)] * LARGE,
    (10, 3): [(64, 64)] * SMALL + [(64, 64)] * MIDDLE + [(16, 64)] * LARGE,
    (12, 0): [(64, 128)] * SMALL + [(64, 64)] * MIDDLE + [(32, 32)] * LARGE,
}


def shapes(capability):
    tiles = [extend_tile(capability, dim) for dim in HEAD_SIZES]
    return [(tile.block_m, tile.block_n) for tile in tiles]


@pytest.mark.parametrize("capability", SHAPES)
def test_extend_tiles(capability):
    assert shapes(capability) == SHAPES[capability]
    for dim in HEAD_SIZES:
        tile = extend_tile(capability, dim)
        hoppers_own = capability == (9, 0) and dim > 128
        assert (tile.num_warps, tile.num_stages) == (4 if dim <= 64 else 8, 3 if hoppers_own else 1)
        assert extend_tile(capability, dim, itemsize=4) == ExtendTile(16, 16, 4, 1)


def test_hopper_row_can_be_switched_off(monkeypatch):
    """The flag changes Hopper's head sizes 129 to 256 and nothing else."""
    usual = {(capability, dim): extend_tile(capability, dim) for capability in SHAPES for dim in HEAD_SIZES}
    monkeypatch.setenv(DISABLE_HOPPER_TILES, "1")
    for (capability, dim), tile in usual.items():
        if capability == (9, 0) and 128 < dim <= 256:
            assert extend_tile(capability, dim) == usual[capability, 128] != tile
        else:
            assert extend_tile(capability, dim) == tile
    monkeypatch.setenv(DISABLE_HOPPER_TILES, "0")
    assert extend_tile((9, 0), 256) == usual[(9, 0), 256]


@pytest.mark.parametrize("capability", SHAPES)
def test_decode_tiles(capability):
    tiles = [decode_tile(capability, dim) for dim in (64, 128, 129, 256, 257, 512)]
    middle = DecodeTile(64, 4, 3) if capability == (9, 0) else DecodeTile(32, 4, 5)
    assert tiles == [DecodeTile(128, 4, 5), DecodeTile(64, 4, 5), middle, middle, *[DecodeTile(16, 4, 5)] * 2]
    assert decode_tile(capability, 512, itemsize=4) == DecodeTile(16, 4, 1)


@pytest.mark.parametrize("capability", SHAPES)
def test_tiles_are_valid_and_shrink_with_the_head(capability):
    def power_of_two_from_16(size):
        return size >= 16 and size & (size - 1) == 0  # tl.dot takes no less

    extends = [extend_tile(capability, dim) for dim in range(16, 513, 16)]
    decodes = [decode_tile(capability, dim) for dim in range(16, 513, 16)]
    for tile in extends:
        assert power_of_two_from_16(tile.block_m) and power_of_two_from_16(tile.block_n)
        assert tile.num_warps in (4, 8) and tile.num_stages >= 1
    for tile in decodes:
        assert power_of_two_from_16(tile.block_n) and tile.num_warps in (4, 8) and tile.num_stages >= 1
    for tiles in (extends, decodes):
        assert all(a.block_n >= b.block_n for a, b in zip(tiles, tiles[1:], strict=False))
    assert all(a.block_m >= b.block_m for a, b in zip(extends, extends[1:], strict=False))


def test_tables_name_what_they_do_not_hold():
    with pytest.raises(ValueError, match="compute capability 7.5"):
        extend_tile((7, 5), 128)
    with pytest.raises(ValueError, match="heads of 528"):
        decode_tile((9, 0), 528)


@pytest.mark.parametrize(
    ("group", "block_m", "tokens"), [(1, 64, 64), (2, 64, 32), (3, 64, 21), (5, 16, 3), (20, 16, 1)]
)
def test_tokens_per_tile(group, block_m, tokens):
    assert tokens_per_tile(group, ExtendTile(block_m, 64, 8, 1)) == tokens


def test_work_covers_each_token_once_longest_first():
    work = make_work([0, 100, 7], [9, 4, 1], tokens=4)
    assert work.dtype == np.int32
    assert work.tolist() == [[1, 0], [0, 8], [2, 0], [0, 4], [0, 0]]  # at positions 100, 8, 7, 4, 0
    assert make_work([0], [0], tokens=4).shape == (0, 2)


def test_num_splits():
    """Two programs a multiprocessor, rounded down to a power of two, between 1 and 64."""
    table = {(1, 8): 32, (1, 2): 64, (1, 1): 64, (2, 8): 16, (8, 2): 16, (26, 8): 1, (26, 2): 4, (64, 8): 1, (64, 2): 2}
    assert {key: num_splits(*key, sm_count=132) for key in table} == table
    assert num_splits(10_000, 16, 1) == 1 and MAX_SPLITS == 64


def test_scratch_holds_every_batch():
    size = scratch_size(max_batch=40, num_heads=16, kv_heads=2, v_dim=512, sm_count=132)
    needs = [batch * 16 * num_splits(batch, 2, 132) * 513 for batch in range(1, 41) if num_splits(batch, 2, 132) > 1]
    assert size == max(needs)
    assert scratch_size(max_batch=4, num_heads=64, kv_heads=64, v_dim=64, sm_count=16) == 0  # always one split


@pytest.mark.parametrize("capability", SHAPES)
def test_tiles_over_key_blocks_walk_alike(capability):
    """Prefill and decode of batch-invariant mode visit the same keys together, and take no larger instruction."""
    for dim in HEAD_SIZES:
        for itemsize in (2, 4):
            extend, decode = key_block_tiles(capability, dim, itemsize)
            assert extend.block_n == decode.block_n and FIRST_BLOCK % extend.block_n == 0
            assert extend.block_m < 64 or extend.num_warps < 4  # wgmma's and tcgen05's least


def test_hoppers_tiles_over_key_blocks_walk_alike():
    for dim in HEAD_SIZES:
        extend, decode = key_block_tiles((9, 0), dim, 2, hopper=True)
        assert extend.block_n == decode.block_n and FIRST_BLOCK % extend.block_n == 0


def test_few_rows_take_more_warps():
    _, decode = key_block_tiles((9, 0), 256, 2, hopper=True)
    assert [decode.for_rows(rows).num_warps for rows in (1, 4, 5, 64)] == [8, 8, 4, 4]
    assert decode_tile((9, 0), 256).for_rows(1) == decode_tile((9, 0), 256)


def test_key_blocks_under_a_window():
    key_blocks = key_blocks_for(1000)
    for window in (1, 2, 255, 256, 257, 1024, 8192):
        most = max_key_blocks(key_blocks, window)
        for first in range(0, 2 * key_blocks.length, 37):  # a window may begin inside a block
            assert (first + window - 1) // key_blocks.length - first // key_blocks.length < most


def test_growing_key_blocks():
    """Eight of a length, then eight of twice that: 65 hold Gemma 4's longest context."""
    key_blocks = key_blocks_for(None)
    table = {1: 1, 128: 1, 129: 2, 1024: 8, 1025: 9, 1280: 9, 1281: 10, 3072: 16, 3073: 17, 262_144: 65}
    assert {longest: max_key_blocks(key_blocks, longest) for longest in table} == table
    assert max_key_blocks(key_blocks, 16_000_000) == LEVEL * MAX_LEVELS


def test_scratch_of_key_blocks():
    for batch in (1, 16, 66, 67, 300):
        splits = key_block_splits(batch, 2, 132, 65)
        assert splits == (65 if batch <= 66 else 1)
        if splits > 1:
            assert batch * 16 * splits * (512 + 2) <= key_block_scratch_size(300, 16, 2, 512, 132, 65)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
