"""Expert tiles are found as upstream's users expect, a bad file is refused by name, and lookups read no file twice."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch

from sglang.srt.ops.moe import config
from sglang.srt.ops.moe.config import Tiles, default_tiles, file_name, get_config, load_table, load_tables, nearest
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=4, suite="base-a-test-cpu")

NAME = "E=128,N=704,device_name=NVIDIA_H200"


def entry(block_m: int = 16, **more) -> dict:
    return {"BLOCK_SIZE_M": block_m, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1} | more


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty SGLANG_MOE_CONFIG_DIR."""
    monkeypatch.setenv("SGLANG_MOE_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("SGLANG_DISABLE_MOE_CONFIGS", raising=False)
    load_tables.cache_clear()
    config._from_files.cache_clear()
    return tmp_path


def write(root: Path, version: str, table: dict, suffix: str = "") -> Path:
    path = root / "configs" / f"triton_{version}" / f"{NAME}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def get(tokens: int, down: bool = False, version: str = "3.6.0", dtype: torch.dtype = torch.bfloat16) -> Tiles:
    return get_config(128, 704, "NVIDIA H200", dtype, tokens, down, version)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ((128, 704, "NVIDIA H200", torch.bfloat16, False), "E=128,N=704,device_name=NVIDIA_H200.json"),
        ((128, 352, "NVIDIA H200", torch.float16, True), "E=128,N=352,device_name=NVIDIA_H200_down.json"),
        (
            (16, 48, "NVIDIA H100 80GB HBM3", torch.float32, True),
            "E=16,N=48,device_name=NVIDIA_H100_80GB_HBM3,dtype=float32_down.json",
        ),
    ],
)
def test_file_name(args, name):
    assert file_name(*args) == name


@pytest.mark.parametrize(
    ("tokens", "key"), [(1, 1), (2, 1), (3, 4), (6, 4), (7, 8), (8, 8), (516, 8), (517, 1024), (9999, 1024)]
)
def test_the_nearest_key_wins_and_of_two_the_smaller(tokens, key):
    table = {k: Tiles(16, 32, 64, k) for k in (1024, 4, 8, 1)}
    assert nearest(table, tokens).group_m == key


def test_without_a_file_the_default_follows_the_token_count(root):
    assert get(128) == default_tiles(128, 128) == Tiles(16, 32, 64, 1, num_warps=4, num_stages=3)
    assert get(129, down=True) == default_tiles(129, 128) == Tiles(64, 64, 32, 8, num_warps=4, num_stages=3)


def test_up_and_down_have_their_own_tables(root):
    write(root, "3_6_0", {"1": entry(num_warps=8), "512": entry(64, num_stages=5)})
    write(root, "3_6_0", {"1": entry(BLOCK_SIZE_N=256), "512": entry(64)}, "_down")
    assert get(3) == Tiles(16, 64, 128, 1, 8, 3)
    assert get(3, down=True) == Tiles(16, 256, 128, 1, 4, 3)
    assert get(600) == Tiles(64, 64, 128, 1, 4, 5)
    assert get(3, dtype=torch.float32) == default_tiles(3, 128)  # another file


def test_without_a_down_file_the_up_table_serves_both(root):
    write(root, "3_6_0", {"1": entry()})
    assert get(1, down=True) == get(1) == Tiles(16, 64, 128, 1)


def test_the_log_names_the_file_in_use_once(root, caplog):
    path = write(root, "3_6_0", {"1": entry()})
    with caplog.at_level(logging.INFO):
        get(1), get(7)
    assert [record.message for record in caplog.records] == [f"experts run with the tiles of {path}"]


def test_the_own_version_comes_first_then_the_newest_by_number(root, caplog):
    write(root, "3_9_0", {"1": entry(GROUP_SIZE_M=9)})
    write(root, "3_10_0", {"1": entry(GROUP_SIZE_M=10)})
    write(root, "3_6_0", {"1": entry(GROUP_SIZE_M=6)})
    (root / "configs" / "triton_next").mkdir()
    with caplog.at_level(logging.WARNING):
        assert get(1, version="3.9.0").group_m == 9
        assert not caplog.records
        assert [get(tokens, version="3.7.1").group_m for tokens in (1, 2, 3)] == [10, 10, 10]
    (warning,) = caplog.records
    assert "triton_3_7_1" in warning.message and "triton_3_10_0" in warning.message


def test_a_folder_with_only_a_down_file_is_passed_over(root):
    write(root, "3_6_0", {"1": entry(GROUP_SIZE_M=6)}, "_down")
    write(root, "3_5_1", {"1": entry(GROUP_SIZE_M=5)})
    assert get(1).group_m == get(1, down=True).group_m == 5


def test_the_packages_own_folder_is_searched_without_the_variable(root, monkeypatch):
    write(root, "3_6_0", {"1": entry(GROUP_SIZE_M=7)})
    monkeypatch.setattr(config, "PACKAGE", root)
    monkeypatch.delenv("SGLANG_MOE_CONFIG_DIR")
    assert get(1).group_m == 7


@pytest.mark.parametrize(("value", "off"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_files_can_be_switched_off(root, monkeypatch, value, off):
    write(root, "3_6_0", {"1": entry()})
    monkeypatch.setenv("SGLANG_DISABLE_MOE_CONFIGS", value)
    assert get(1) == (default_tiles(1, 128) if off else Tiles(16, 64, 128, 1))


def test_files_are_read_once(root):
    path = write(root, "3_6_0", {"1": entry()})
    first = get(1)
    path.unlink()
    assert get(1) == first


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        ("{}", "at least one token count"),
        ('{"1": 3}', "tokens 1: 3 is no object"),
        (json.dumps({"many": entry()}), "key 'many' is no token count"),
        (json.dumps({"0": entry()}), "key '0' is no token count"),
        (json.dumps({"08": entry()}), "key '08' is no token count"),
        (json.dumps({"8": entry(BLOCK_M=16)}), "tokens 8: ['BLOCK_M'] unknown"),
        ('{"8": {"BLOCK_SIZE_M": 16}}', "['BLOCK_SIZE_K', 'BLOCK_SIZE_N', 'GROUP_SIZE_M'] missing"),
        (json.dumps({"8": entry(48)}), "BLOCK_SIZE_M is 48, must be a power of two"),
        (json.dumps({"8": entry(8)}), "BLOCK_SIZE_M is 8, must be a whole number from 16 on"),
        (json.dumps({"8": entry(num_warps=3)}), "num_warps is 3, must be a power of two"),
        (json.dumps({"8": entry(num_stages=0)}), "num_stages is 0, must be a whole number from 1 on"),
        (json.dumps({"8": entry(num_stages=True)}), "num_stages is True"),
        (json.dumps({"8": entry(GROUP_SIZE_M=1.5)}), "GROUP_SIZE_M is 1.5"),
        (json.dumps({"8": entry(USE_TMA=True)}), "there is no kernel that loads through TMA"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_reason(tmp_path, text, reason):
    path = tmp_path / "E=1.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_table(path)
    assert str(path) in str(caught.value) and reason in str(caught.value)


def test_tma_off_is_accepted(tmp_path):
    path = tmp_path / "E=1.json"
    path.write_text(json.dumps({"8": entry(USE_TMA=False)}))
    assert load_table(path) == {8: Tiles(16, 64, 128, 1)}


@pytest.mark.parametrize(
    ("up", "down", "tokens"),
    [
        ({"1": 16, "512": 64}, {"1": 16, "512": 32}, 257),
        ({"1": 16, "512": 64}, {"1": 16}, 257),
        ({"1": 16, "100": 64}, {"1": 16, "50": 16, "100": 64}, 51),  # agree at every key, not between
    ],
)
def test_both_products_must_cut_rows_alike(root, up, down, tokens):
    up_path = write(root, "3_6_0", {k: entry(rows) for k, rows in up.items()})
    down_path = write(root, "3_6_0", {k: entry(rows) for k, rows in down.items()}, "_down")
    with pytest.raises(ValueError) as caught:
        get(1)
    message = str(caught.value)
    assert message.startswith(f"at {tokens} tokens") and str(up_path) in message and str(down_path) in message


def test_tiles_survive_json(tmp_path):
    tiles = Tiles(64, 128, 32, 8, 8, 4)
    path = tmp_path / "E=1.json"
    path.write_text(json.dumps({"3": tiles.to_json()}))
    assert load_table(path) == {3: tiles}


@pytest.mark.parametrize("path", sorted((config.PACKAGE / "configs").glob("triton_*/*.json")), ids=lambda p: p.name)
def test_shipped_files_are_valid(path):
    """The pair of files is checked as at run time."""
    up_name = path.name.replace("_down.json", ".json")
    up, down = load_tables(str(config.PACKAGE), path.parent.name, up_name, up_name.replace(".json", "_down.json"))
    assert 1 in up and 1 in down


@pytest.mark.parametrize("intermediate", [704, 352])
@pytest.mark.parametrize("device_name", ["NVIDIA H200", "NVIDIA H100 80GB HBM3"])
def test_gemma_4_on_hopper_has_files_of_its_own(intermediate, device_name):
    """26B-A4B's experts on one GPU and on two: up to 8192 tokens, other tiles for the down product where they win."""
    names = [config.file_name(128, intermediate, device_name, torch.bfloat16, side) for side in (False, True)]
    up, down = load_tables(str(config.PACKAGE), "triton_3_6_0", *names)
    assert up.keys() == down.keys() and min(up) == 1 and max(up) == 8192
    assert up != down
    assert up[8192] != default_tiles(8192, 128)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
