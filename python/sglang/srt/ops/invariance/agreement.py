"""Which numbers of rows a matrix product may take at a time, found by trying them on this machine.

A CPU library picks its routine, and with it the order in which a row is summed, by the number of rows: one row may be a
matrix-vector product, a few rows a small-matrix routine, and threads may cut many rows into few. Nobody documents where
the borders lie; they differ with the library, the processor, the number of threads and the other two sizes. So the mode
lets only a few block sizes through, and only those in which every row, at every place, came out as it did in the
largest block. The trial's rows are made to show the order: the exact result is zero, so what comes out is nothing but
the rounding errors of the sum.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LARGEST = SIZES[-1]

Product = Callable[[Tensor], Tensor]  # [rows, K] -> [rows, N], row by row in exact arithmetic


def agreeing_sizes(product: Product, rows: Tensor, sizes: tuple[int, ...] = SIZES) -> tuple[int, ...]:
    """Those of `sizes` in which `product` gives each of `rows` [at least sizes[-1], K] the bits that it has in a block
    of sizes[-1], ascending. Empty if its bits depend on its place even there."""
    rows = rows[: sizes[-1]]
    want = product(rows)
    if not torch.equal(product(rows.flip(0)).flip(0), want):
        return ()

    def agrees(size: int) -> bool:
        last = len(rows) - size
        # every place of a block, in two blocks or in more where they are small
        return all(
            torch.equal(product(rows[start : start + size]), want[start : start + size])
            for start in range(0, min(last, max(size, 32)) + 1, size)
        )

    return tuple(size for size in sizes if agrees(size))


def zero_sums(
    rows: int, columns: int, depth: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """x [rows, depth] and w [columns, depth] whose product is exactly zero, but not in any order of adding:
    each term comes once with either sign, at places drawn at random. An odd depth leaves one term over."""
    made = {"generator": torch.Generator(device).manual_seed(depth), "device": device}
    half = (depth + 1) // 2
    x = torch.randn(rows, half, **made)
    x *= torch.exp2(torch.randint(-3, 4, x.shape, **made).float())
    w = torch.randn(columns, half, **made)
    order = torch.randperm(2 * half, **made)[:depth]
    return torch.cat((x, x), 1)[:, order].to(dtype), torch.cat((w, -w), 1)[:, order].to(dtype)


def next_size(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest of `sizes` (ascending) that holds `count` rows; the last one if none does."""
    return next((size for size in sizes if size >= count), sizes[-1])
