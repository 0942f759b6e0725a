"""Which tiles are worth timing for one product of one token count: about a hundred, by an expert's rows and by fit."""

import dataclasses

from sglang.srt.ops.moe.config import Tiles, default_tiles

MAX_WASTE = 0.25  # of columns or depth that only fill a tile up
MAX_ACCUMULATORS = 128  # float32 registers a thread


@dataclasses.dataclass(frozen=True)
class Cuts:
    columns: tuple[tuple[int, int], ...]  # (block_n, num_warps)
    depths: tuple[int, ...]  # block_k
    stages: tuple[int, ...]
    groups: tuple[int, ...] = (1, 16)  # group_m


# From 64 rows on Hopper's own matrix instruction (wgmma) is used. With fewer rows a product waits for weights, and
# deep tiles with many stages keep more of them on their way.
CUTS = {
    16: Cuts(((32, 2), (32, 4), (64, 4), (64, 8), (128, 4), (128, 8)), (64, 128, 256), (3, 4, 5)),
    32: Cuts(((64, 4), (128, 4), (128, 8)), (64, 128), (3, 4)),
    64: Cuts(((64, 4), (128, 4), (128, 8), (256, 4), (256, 8)), (64, 128), (3, 4)),
    128: Cuts(((64, 4), (128, 4), (128, 8), (256, 8)), (32, 64, 128), (3, 4)),
}


def row_blocks(tokens: int, topk: int, num_experts: int) -> tuple[int, ...]:
    """block_m worth trying for the mean number of rows of an expert."""
    rows = tokens * topk / num_experts
    if rows <= 8:
        return (16,)
    if rows <= 32:
        return (16, 32, 64)
    return (32, 64, 128) if rows <= 64 else (64, 128)


def shared_bytes(tiles: Tiles, itemsize: int, outputs: int) -> int:
    """What Triton takes on Hopper: one buffer a stage, or one fewer where wgmma is not used (below 64 rows)."""
    buffers = tiles.num_stages if tiles.block_m >= 64 else max(1, tiles.num_stages - 1)
    return buffers * (tiles.block_m + outputs * tiles.block_n) * tiles.block_k * itemsize


def candidates(
    tokens: int,
    topk: int,
    num_experts: int,
    n: int,
    k: int,
    itemsize: int,
    shared_memory: int,
    outputs: int = 1,
) -> list[Tiles]:
    """Tiles for a product of n columns over depth k; `outputs` is 2 where a tile of gates and one of ups are made.

    `shared_memory` in bytes a program. The default is always among them.
    """
    found = {
        Tiles(block_m, block_n, block_k, group, warps, stages): None
        for block_m in row_blocks(tokens, topk, num_experts)
        for cuts in [CUTS[block_m]]
        for block_n, warps in cuts.columns
        for block_k in cuts.depths
        for group in cuts.groups
        for stages in cuts.stages
        if _fills(n, block_n) and _fills(k, block_k)
        if block_m * block_n * outputs <= MAX_ACCUMULATORS * 32 * warps
    }
    found[default_tiles(tokens, num_experts)] = None
    return [tiles for tiles in found if shared_bytes(tiles, itemsize, outputs) <= shared_memory]


def _fills(size: int, block: int) -> bool:
    return -size % block <= MAX_WASTE * size
