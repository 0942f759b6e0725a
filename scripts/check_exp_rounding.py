"""Shows that float64's exp, rounded once to float32, is correctly rounded whatever library computes it.

    python scripts/check_exp_rounding.py [--hardest 8]

Takes every float32 y from -104, below which exp(y) rounds to 0, up to -2**-26, above which it rounds to 1, in extended
precision (numpy's longdouble, 64 bits), and prints how near exp(y) comes to a point halfway between two float32, in
units in the last place of a float64, and the arguments nearest to one. A float64 exp that errs by less than that cannot
round to the wrong side. About two minutes on one core; needs x86's longdouble.
"""

import argparse
import heapq
import sys

import numpy as np

FIRST, LAST = 0xB2800000, 0xC2D00000  # the bits of -2**-26 and of -104
CHUNK = 1 << 22


def distances(y: np.ndarray) -> np.ndarray:
    """How far exp(y) is from the nearest halfway point, in units of float64's last place at exp(y)."""
    value = np.exp(y.astype(np.longdouble))
    exponent = np.frexp(value)[1] - 1
    # bits of a float64 below float32's last: 29, more where the float32 is subnormal
    dropped = 29 + np.maximum(0, -126 - exponent)
    fraction = np.ldexp(value, 52 - exponent - dropped)  # in units of float32's last place
    fraction = np.abs(fraction - np.floor(fraction) - 0.5)
    return np.ldexp(fraction, dropped).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hardest", type=int, default=8, help="arguments to print (8)")
    args = parser.parse_args()
    if np.finfo(np.longdouble).nmant < 63:
        sys.exit("error: this machine's longdouble is no wider than a float64")
    hardest: list[tuple[float, float]] = []
    for start in range(FIRST, LAST + 1, CHUNK):
        y = np.arange(start, min(start + CHUNK, LAST + 1), dtype=np.uint32).view(np.float32)
        found = distances(y)
        nearest = np.argsort(found)[: args.hardest]
        hardest = heapq.nsmallest(args.hardest, [*hardest, *zip(found[nearest], y[nearest], strict=True)])
    print(f"{LAST - FIRST + 1:,} arguments; nearest to a halfway point, in units of float64's last place:")
    for distance, y in hardest:
        print(f"  {distance:.4f}  exp({float(y).hex()})")


if __name__ == "__main__":
    main()
