"""Statistics of evaluations: a share of right answers with its interval, and whether two paired runs differ.

Knows counts only, neither questions nor servers.
"""

import math
from dataclasses import dataclass

Z_95 = 1.959964  # the normal distribution's 0.975 quantile


def wilson_interval(hits: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a share, 95 % by default: the score interval of E. B. Wilson, "Probable inference, the law of
    succession, and statistical inference", JASA 22 (1927). Unlike the normal one it stays within [0, 1] and has a width
    at 0 and n hits. Raises ValueError for counts that can't be."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} hits of {n} are no share")
    share, z2 = hits / n, z * z
    centre = share + z2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # at 0 and n hits an end is the share but for rounding


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's test in its exact form: of the questions that just one of two runs got right, the share
    that was A's, against a fair coin (binomial). 1.0 when there are none. Q. McNemar, Psychometrika 12 (1947)."""
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True)
class Score:
    """A share of right answers. Its text always carries n and the 95 % interval."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.hits, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.3f} (n = {self.n}, 95 % interval {low:.3f} to {high:.3f})"
