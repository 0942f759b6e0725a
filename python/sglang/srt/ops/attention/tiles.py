"""Tile shapes of the attention kernels: plain data by GPU architecture and head size.

It knows no kernel and asks no device. The extend table starts from upstream's numbers, which are measured there for
tiles of one head's tokens; ours hold the query heads of a KV head beside each other (see extend_attention.py).
"""

import os
from dataclasses import dataclass, replace

# Measures what Hopper's own row for head sizes 129 to 256 is worth: with "1" these take the tile of smaller heads.
DISABLE_HOPPER_TILES = "SGLANG_DISABLE_HOPPER_EXTEND_TILES"


@dataclass(frozen=True)
class ExtendTile:
    """One program holds `block_m` rows (a query token and head each) and walks over keys `block_n` at a time."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class DecodeTile:
    """One program holds the query heads of a KV head and walks over keys `block_n` at a time."""

    block_n: int
    num_warps: int
    num_stages: int
    few_rows_warps: int | None = None

    def for_rows(self, rows: int) -> "DecodeTile":
        """The tile for a batch of so many rows: programs of few have a multiprocessor each."""
        return self if self.few_rows_warps is None or rows > FEW_ROWS else replace(self, num_warps=self.few_rows_warps)


FEW_ROWS = 4
HEAD_SIZES = (64, 128, 256, 512)  # upper ends of the classes

EXTEND = {  # a tile for each class of head sizes
    "sm80": (
        ExtendTile(128, 128, 4, 1),
        ExtendTile(128, 128, 8, 1),
        ExtendTile(64, 64, 8, 1),
        ExtendTile(32, 64, 8, 1),
    ),
    "sm86": (ExtendTile(64, 128, 4, 1), ExtendTile(64, 128, 8, 1), ExtendTile(64, 64, 8, 1), ExtendTile(32, 32, 8, 1)),
    # Upstream's are (64, 64, 8, 1) for 129 to 256 and (32, 64, 8, 1) above: these take 0.5 and 0.75 of their time
    # (benchmark/kernels/attention/README.md, "Prefill").
    "sm90": (ExtendTile(128, 64, 4, 1), ExtendTile(128, 64, 8, 1), ExtendTile(128, 64, 8, 3), ExtendTile(64, 32, 8, 3)),
    "sm100": (ExtendTile(64, 64, 4, 1), ExtendTile(64, 64, 8, 1), ExtendTile(64, 64, 8, 1), ExtendTile(16, 64, 8, 1)),
    "sm120": (ExtendTile(64, 128, 4, 1), ExtendTile(64, 128, 8, 1), ExtendTile(64, 64, 8, 1), ExtendTile(32, 32, 8, 1)),
}
# A tile of K takes 16 KB. Five stages keep two of K and two of V on their way: a slot must have come before its K can
# be asked for, so that each takes two stages.
_DECODE = (DecodeTile(128, 4, 5), DecodeTile(64, 4, 5), DecodeTile(32, 4, 5), DecodeTile(16, 4, 5))
# 129 to 256 is measured (benchmark/kernels/attention/README.md, "Decode")
_DECODE_SM90 = (*_DECODE[:2], DecodeTile(64, 4, 3), _DECODE[3])
DECODE = {"sm80": _DECODE, "sm86": _DECODE, "sm90": _DECODE_SM90, "sm100": _DECODE, "sm120": _DECODE}
# float32 serves tests: small enough for every architecture and head size
FLOAT32_EXTEND = ExtendTile(16, 16, 4, 1)
FLOAT32_DECODE = DecodeTile(16, 4, 1)

# Batch-invariant mode (key_blocks.py): tiles of prefill and decode that give a row the same bits. They walk over as
# many keys at a time, and both multiply by mma.sync: wgmma, which Hopper takes from 64 rows and four warps on, and what
# Blackwell has in its place, need not add in the same order. HOPPER_KEY_BLOCKS is for Hoppers on which they do.
_KEY_BLOCKS = (
    (ExtendTile(32, 64, 4, 3), DecodeTile(64, 4, 3)),
    (ExtendTile(32, 64, 4, 3), DecodeTile(64, 4, 3)),
    (ExtendTile(32, 64, 8, 2), DecodeTile(64, 4, 2)),
    (ExtendTile(32, 32, 8, 2), DecodeTile(32, 8, 2)),
)
_KEY_BLOCKS_SMALL = (
    (ExtendTile(32, 64, 4, 2), DecodeTile(64, 4, 2)),
    (ExtendTile(32, 64, 4, 1), DecodeTile(64, 4, 2)),
    (ExtendTile(32, 32, 8, 1), DecodeTile(32, 4, 1)),
    (ExtendTile(32, 16, 8, 1), DecodeTile(16, 4, 1)),
)
HOPPER_KEY_BLOCKS = (
    (ExtendTile(64, 64, 4, 3), DecodeTile(64, 4, 3)),
    (ExtendTile(64, 64, 4, 3), DecodeTile(64, 4, 3)),
    (ExtendTile(128, 64, 8, 3), DecodeTile(64, 4, 3, few_rows_warps=8)),
    (ExtendTile(64, 32, 8, 3), DecodeTile(32, 4, 3)),
)
KEY_BLOCKS = {
    "sm80": _KEY_BLOCKS,
    "sm86": _KEY_BLOCKS_SMALL,
    "sm90": _KEY_BLOCKS,
    "sm100": _KEY_BLOCKS,
    "sm120": _KEY_BLOCKS_SMALL,
}


def key_block_tiles(
    capability: tuple[int, int], head_dim: int, itemsize: int = 2, hopper: bool = False
) -> tuple[ExtendTile, DecodeTile]:
    """The tiles of batch-invariant mode; arguments as in extend_tile. `hopper`: whether HOPPER_KEY_BLOCKS may be used,
    see products.matmul.instructions_agree."""
    if itemsize == 4:
        return FLOAT32_EXTEND, FLOAT32_DECODE
    return (HOPPER_KEY_BLOCKS if hopper else KEY_BLOCKS[architecture(capability)])[_class(head_dim)]


def extend_tile(capability: tuple[int, int], head_dim: int, itemsize: int = 2) -> ExtendTile:
    """The prefill tile on a GPU of `capability` (major, minor) for heads of `head_dim`, `itemsize` bytes an element."""
    arch = architecture(capability)
    if itemsize == 4:
        return FLOAT32_EXTEND
    if arch == "sm90" and 128 < head_dim <= 256 and os.environ.get(DISABLE_HOPPER_TILES) == "1":
        return EXTEND[arch][_class(128)]
    return EXTEND[arch][_class(head_dim)]


def decode_tile(capability: tuple[int, int], head_dim: int, itemsize: int = 2) -> DecodeTile:
    """The decode tile; arguments as in extend_tile."""
    arch = architecture(capability)
    return FLOAT32_DECODE if itemsize == 4 else DECODE[arch][_class(head_dim)]


def architecture(capability: tuple[int, int]) -> str:
    """The row of the tables for a GPU; ValueError for one older than 8.0, which the backend refuses."""
    major, minor = capability
    if major < 8:
        raise ValueError(f"no attention tiles for compute capability {major}.{minor}: 8.0 is the oldest served")
    if major == 8:
        return "sm86" if minor in (6, 9) else "sm80"
    return "sm90" if major == 9 else "sm120" if major == 12 else "sm100"


def _class(head_dim: int) -> int:
    for index, largest in enumerate(HEAD_SIZES):
        if head_dim <= largest:
            return index
    raise ValueError(f"no attention tiles for heads of {head_dim}: {HEAD_SIZES[-1]} is the largest served")
