"""Tile sizes of the experts' GEMMs: the tuner's JSON files, how one is found, and the default without one.

A file `configs/triton_<version>/E=128,N=704,device_name=NVIDIA_H200.json` maps token counts to tiles; N is the experts'
intermediate size on this rank, and `..._down.json` has the tiles of the down product. The files, with a README, lie
where upstream's do: layers/moe/fused_moe_triton/configs. Environment: SGLANG_MOE_CONFIG_DIR is a folder to search
instead of fused_moe_triton; SGLANG_DISABLE_MOE_CONFIGS=1 makes every lookup take the default, so that the files' gain
can be measured. Needs no Triton and no GPU.
"""

import dataclasses
import functools
import itertools
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[2] / "layers/moe/fused_moe_triton"
# The tuner's keys.
TUNED_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192)
_DTYPE_PARTS = {torch.bfloat16: "", torch.float16: "", torch.float32: ",dtype=float32"}


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How one GEMM is cut: block_m rows by block_n columns a program, block_k of the depth a step."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int  # row blocks a group of programs visits before it takes the next columns
    num_warps: int = 4  # Triton's defaults
    num_stages: int = 3

    @classmethod
    def from_json(cls, entry: dict[str, int]) -> "Tiles":
        return cls(**{field: entry[key] for key, field in FIELDS.items() if key in entry})

    def to_json(self) -> dict[str, int]:
        return {key: getattr(self, field) for key, field in FIELDS.items()}


FIELDS = {
    "BLOCK_SIZE_M": "block_m",
    "BLOCK_SIZE_N": "block_n",
    "BLOCK_SIZE_K": "block_k",
    "GROUP_SIZE_M": "group_m",
    "num_warps": "num_warps",
    "num_stages": "num_stages",
}
_OPTIONAL = {"num_warps", "num_stages"}
_POWERS_OF_TWO = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 16, "BLOCK_SIZE_K": 16, "num_warps": 1}  # and their least value

Table = dict[int, Tiles]  # by token count


def file_name(num_experts: int, n: int, device_name: str, dtype: torch.dtype, down: bool) -> str:
    """n is the experts' intermediate size on this rank: the last dimension of the down weights."""
    device = device_name.replace(" ", "_")
    return f"E={num_experts},N={n},device_name={device}{_DTYPE_PARTS[dtype]}{'_down' if down else ''}.json"


def version_folder(triton_version: str) -> str:
    return f"triton_{triton_version.replace('.', '_')}"


def default_tiles(tokens: int, num_experts: int) -> Tiles:
    """Without a file: small row blocks as long as an expert gets about top-k rows."""
    return Tiles(16, 32, 64, 1) if tokens <= num_experts else Tiles(64, 64, 32, 8)


def invariant_tiles(tokens: int, num_experts: int) -> Tiles:
    """For batch-invariant mode where tuned tiles may not be used: both multiply by mma.sync, in the same steps of the
    depth (see ops/products/matmul.py), so a row's bits do not depend on the choice."""
    return Tiles(16, 64, 64, 1, 4, 4) if tokens <= num_experts else Tiles(64, 64, 64, 8, 2, 3)


def nearest(table: Table, tokens: int) -> Tiles:
    """The entry whose token count is nearest; of two equally near, the smaller."""
    return table[min(table, key=lambda key: (abs(key - tokens), key))]


def get_config(
    num_experts: int,
    n: int,
    device_name: str,
    dtype: torch.dtype,
    tokens: int,
    down: bool,
    triton_version: str,
) -> Tiles:
    """Tiles of the up (gate and up) or the down product for `tokens` tokens. Both have the same block_m.

    Files are read once. Raises ValueError for a file that cannot be used.
    """
    if os.environ.get("SGLANG_DISABLE_MOE_CONFIGS", "").lower() in ("1", "true"):
        return default_tiles(tokens, num_experts)
    root = os.environ.get("SGLANG_MOE_CONFIG_DIR") or str(PACKAGE)
    return _from_files(root, num_experts, n, device_name, dtype, tokens, down, triton_version)


@functools.lru_cache(1 << 16)  # a step asks for the same in every layer
def _from_files(
    root: str, num_experts: int, n: int, device_name: str, dtype: torch.dtype, tokens: int, down: bool, version: str
) -> Tiles:
    up_name, down_name = (file_name(num_experts, n, device_name, dtype, side) for side in (False, True))
    tables = load_tables(root, version_folder(version), up_name, down_name)
    return nearest(tables[down], tokens) if tables else default_tiles(tokens, num_experts)


@functools.cache
def load_tables(root: str, folder: str, up_name: str, down_name: str) -> tuple[Table, Table] | None:
    """The up and down tables of the first folder under root/configs that has the up file, or None.

    `folder` is tried first, then the other versions, newest first. Without a down file the up table serves both.
    """
    configs = Path(root) / "configs"
    for tried in [configs / folder, *_other_versions(configs, folder)]:
        up_path, down_path = tried / up_name, tried / down_name
        if not up_path.is_file():
            continue
        if tried.name != folder:
            logger.warning("no expert tiles in %s; using those of another version: %s", configs / folder, up_path)
        logger.info("experts run with the tiles of %s", up_path)
        up = load_table(up_path)
        if not down_path.is_file():
            return up, up
        down = load_table(down_path)
        _check_same_rows(up_path, up, down_path, down)
        return up, down
    logger.info("no %s under %s: experts run with default tiles", up_name, configs)
    return None


def _other_versions(configs: Path, folder: str) -> list[Path]:
    """Version folders beside `folder`, newest first by number."""
    if not configs.is_dir():
        return []
    found = [p for p in configs.iterdir() if re.fullmatch(r"triton(_\d+)+", p.name) and p.name != folder]
    return sorted(found, key=lambda p: [int(part) for part in p.name.split("_")[1:]], reverse=True)


def load_table(path: Path) -> Table:
    """Raises ValueError that names the file and what is wrong with it."""

    def wrong(reason: str) -> ValueError:
        return ValueError(f"{path}: {reason}")

    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise wrong(f"not JSON: {e}") from e
    if not isinstance(entries, dict) or not entries:
        raise wrong("must be an object with at least one token count")
    table = {}
    for key, entry in entries.items():
        if not re.fullmatch(r"[1-9][0-9]*", key):
            raise wrong(f"key {key!r} is no token count: a whole number from 1 on")
        if reason := _fault(entry):
            raise wrong(f"tokens {key}: {reason}")
        table[int(key)] = Tiles.from_json(entry)
    return table


def _fault(entry: Any) -> str | None:
    """What is wrong with one token count's tiles, as JSON has them."""
    if not isinstance(entry, dict):
        return f"{entry!r} is no object"
    if missing := FIELDS.keys() - _OPTIONAL - entry.keys():
        return f"{sorted(missing)} missing"
    if unknown := entry.keys() - FIELDS.keys() - {"USE_TMA"}:
        return f"{sorted(unknown)} unknown; known: {[*FIELDS, 'USE_TMA']}"
    if entry.get("USE_TMA", False) is not False:
        return f"USE_TMA is {entry['USE_TMA']!r}: there is no kernel that loads through TMA; remove it or tune again"
    for name in FIELDS.keys() & entry.keys():
        value, least = entry[name], _POWERS_OF_TWO.get(name, 1)
        if type(value) is not int or value < least:
            return f"{name} is {value!r}, must be a whole number from {least} on"
        if name in _POWERS_OF_TWO and value & (value - 1):
            return f"{name} is {value}, must be a power of two"
    return None


def _check_same_rows(up_path: Path, up: Table, down_path: Path, down: Table) -> None:
    """Both products share one alignment, so their block_m must agree wherever either table changes its choice."""
    borders = {(a + b) // 2 for table in (up, down) for a, b in itertools.pairwise(sorted(table))}
    for tokens in sorted(up.keys() | down.keys() | borders | {border + 1 for border in borders}):
        rows, rows_down = nearest(up, tokens).block_m, nearest(down, tokens).block_m
        if rows != rows_down:
            raise ValueError(f"at {tokens} tokens {up_path} has BLOCK_SIZE_M {rows} but {down_path} has {rows_down}")
