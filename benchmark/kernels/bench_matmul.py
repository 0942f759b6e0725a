"""Times batch-invariant mode's products at 26B-A4B's shapes beside torch's and their floors (4.3 TB/s, 790 TFLOP/s).

    python benchmark/kernels/bench_matmul.py [--rows 1 8 26 64 128 256 1024 8192] [--shapes 8192x2816 ...]

`kernel` is matmul.py's with its tile for that many rows, `mode` what a server runs, which for many rows is torch in
blocks of sizes that agree. Weights take turns, so that none stays in the L2 cache. Needs a GPU.
"""

import argparse
from functools import partial

import torch
from torch.nn import functional as F

from sglang.srt.ops.invariance.mode import batch_invariant
from sglang.srt.ops.products.linear import linear, warm_products
from sglang.srt.ops.products.matmul import matmul
from sglang.test.kernel_timing import BANDWIDTH, add_case, add_json_argument, buffers, rotating_us

FLOPS = 790e12  # a second, measured on an H200
# qkv of sliding and full layers, o of both, MLP up and down, router, head: [columns, depth]
SHAPES = ["8192x2816", "9216x2816", "2816x4096", "2816x8192", "4224x2816", "2816x2112", "128x2816", "262144x2816"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 26, 64, 128, 256, 1024, 8192])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="COLUMNSxDEPTH")
    add_json_argument(parser)
    args = parser.parse_args()
    print("| weight | rows | floor us | torch us | kernel us | mode us |\n|---|---|---|---|---|---|")
    for shape in args.shapes:
        columns, depth = map(int, shape.split("x"))
        matrices = buffers(columns, depth)
        warm_products(matrices[:1])
        for rows in args.rows:
            x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
            moved, flops = 2 * (rows * depth + columns * depth + rows * columns), 2 * rows * columns * depth
            floor = max(moved / BANDWIDTH, flops / FLOPS) * 1e6
            theirs, kernel = (rotating_us(matrices, partial(product, x), calls=16) for product in (F.linear, matmul))
            with batch_invariant():
                mode = rotating_us(matrices, partial(linear, x), calls=16)
            print(f"| {shape} | {rows} | {floor:.1f} | {theirs:.1f} | {kernel:.1f} | {mode:.1f} |", flush=True)
            add_case(args.json, "matmul", f"{shape}, {rows} rows", mode, theirs, floor)


if __name__ == "__main__":
    main()
