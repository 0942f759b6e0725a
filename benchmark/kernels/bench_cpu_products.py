"""Times products of 16 bits on one core of this CPU: torch's own beside those in float32 (ops/products/widened.py).

    python benchmark/kernels/bench_cpu_products.py [--rows 1 2 3 4 8 32 128] [--shapes 6144x1024 ...] [--dtype float16]

Milliseconds of the core's own time, so what else the machine does matters little: the least of many calls. Weights take
turns, 64 MB of them, as a step's do. The last column is what a server here takes.
"""

import argparse
import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional as F

from sglang.srt.ops.products import widened

SHAPES = ["1536x256", "1024x3072", "6144x1024", "65536x1024"]  # columns, depth
WEIGHTS_BYTES = 64 << 20
SECONDS = 0.5


def least_ms(weights: list[Tensor], product: Callable[[Tensor], Tensor]) -> float:
    least = float("inf")
    end = time.process_time() + SECONDS
    for count, weight in enumerate(cycle(weights)):
        start = time.process_time()
        product(weight)
        now = time.process_time()
        least = min(least, now - start)
        if now > end and count > 2:
            return 1e3 * least


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 8, 32, 128])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="COLUMNSxDEPTH")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, args.dtype)
    print(f"instructions for products in {args.dtype}: {widened.has_instructions(dtype)}\n")
    print("| weight | rows | torch ms | widened ms | a server takes |\n|---|---|---|---|---|")
    for shape in args.shapes:
        columns, depth = map(int, shape.split("x"))
        copies = max(1, WEIGHTS_BYTES // (columns * depth * dtype.itemsize))
        weights = [torch.randn(columns, depth).to(dtype) for _ in range(copies)]
        for rows in args.rows:
            x = torch.randn(rows, depth).to(dtype)
            plain = least_ms(weights, lambda weight, x=x: F.linear(x, weight))
            wide = least_ms(weights, lambda weight, x=x: widened.linear(x, weight))
            taken = "widened" if widened.can_use(x) else "torch"
            print(f"| {shape} | {rows} | {plain:.3f} | {wide:.3f} | {taken} |", flush=True)


if __name__ == "__main__":
    main()
