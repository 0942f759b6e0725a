"""Which tile is fastest for batch-invariant mode's products of so many rows? 26B-A4B's shapes. Needs a GPU.

    python benchmark/kernels/sweep_matmul.py [--rows 1 8] [--shapes 8192x2816 ...] [--best 6] [--jobs 14]

Every tile is first compiled and compared with the plain one, whose bits it must give; those that do not fit the GPU or
add in another order are left out and named. Times are medians over replays of a CUDA graph, weights take turns.
"""

import argparse
import itertools
import math
from functools import partial

import torch
from bench_matmul import SHAPES
from torch.nn import functional as F

from sglang.srt.ops.invariance.agreement import zero_sums
from sglang.srt.ops.products.matmul import TILES, MatmulTile, matmul
from sglang.test.kernel_timing import BANDWIDTH, buffers, rotating_us
from sglang.test.kernel_variants import usable

SHARED_MEMORY = 220 << 10  # bytes of a program; less than 30 KB leave the memory idle
LEAST_SHARED_MEMORY = 30 << 10


def candidates(rows: int) -> list[MatmulTile]:
    """Tiles for so many rows: as few blocks of rows as there can be, all else tried."""
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    sizes = itertools.product((16, 32, 64, 128), (64, 128, 256, 512), (2, 4, 8), (3, 4, 5, 6, 8), (False, True))
    tiles = [MatmulTile(block_m, *size) for size in sizes]
    return [
        tile
        for tile in tiles
        if LEAST_SHARED_MEMORY <= 2 * (tile.block_m + tile.block_n) * tile.block_k * tile.num_stages <= SHARED_MEMORY
        and (tile.num_warps < 8 or tile.block_n >= 64)
    ]


def check(tile: MatmulTile) -> float:
    """0 if the tile gives the plain one's bits. A depth of whole steps and one that is not: two compilations."""
    for depth in (1024, 1056):
        x, weight = zero_sums(tile.block_m, 256, depth, torch.bfloat16, "cuda")
        if not torch.equal(matmul(x, weight, tile=tile), matmul(x, weight, tile=TILES[True, False])):
            return math.inf
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="COLUMNSxDEPTH")
    parser.add_argument("--best", type=int, default=6, help="tiles shown of each case")
    parser.add_argument("--jobs", type=int, default=14)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a GPU")
    tiles = {rows: candidates(rows) for rows in args.rows}
    good = {tile for (tile,) in usable(check, [(tile,) for tile in dict.fromkeys(sum(tiles.values(), []))], args.jobs)}
    for shape, rows in itertools.product(args.shapes, args.rows):
        columns, depth = map(int, shape.split("x"))
        weights = buffers(columns, depth)
        x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
        time = partial(rotating_us, weights, calls=16)
        torch_us, now = time(partial(F.linear, x)), time(partial(matmul, x))
        floor = 2 * columns * depth / BANDWIDTH * 1e6
        print(f"\n{shape}, {rows} rows: floor {floor:.2f} us, torch {torch_us:.2f}, now {now:.2f}")
        times = [(time(partial(matmul, x, tile=tile)), tile) for tile in tiles[rows] if tile in good]
        for us, tile in sorted(times, key=lambda entry: entry[0])[: args.best]:
            print(f"{us:8.2f} {tile}", flush=True)


if __name__ == "__main__":
    main()
