"""Intervals and paired tests against values computed by hand."""

import math
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.eval_stats import Score, mcnemar_p, wilson_interval

register_cpu_ci(est_time=1, suite="unit-test-cpu")


@pytest.mark.parametrize(
    "hits,n,low,high",
    [
        (8, 10, 0.490, 0.943),
        (0, 10, 0.0, 0.278),  # z2 / (n + z2) = 3.8415 / 13.8415
        (10, 10, 0.722, 1.0),
        (89, 200, 0.378, 0.514),  # 0.445, the score that #26588's accuracy test was calibrated to
        (1, 1, 0.207, 1.0),
    ],
)
def test_wilson_against_known_values(hits, n, low, high):
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_shares_that_the_score_test_accepts(counts):
    """Its ends are the shares p0 with |share - p0| = z sqrt(p0 (1 - p0) / n), which is how the interval is defined."""
    hits, n = counts
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1 and low < high
    for end in (low, high):
        assert abs(hits / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-7)


@pytest.mark.parametrize("hits,n", [(0, 0), (-1, 5), (6, 5)])
def test_counts_that_cannot_be_are_refused(hits, n):
    with pytest.raises(ValueError, match=f"{hits} hits of {n}"):
        wilson_interval(hits, n)


@pytest.mark.parametrize(
    "only_a,only_b,p",
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (1, 6, 2 * (1 + 7) / 128),
        (3, 3, 1.0),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (17, 0, 2 / 2**17),  # the drop that #26588's bisect saw, were all 17 questions lost and none won
    ],
)
def test_mcnemar_against_sums_by_hand(only_a, only_b, p):
    assert mcnemar_p(only_a, only_b) == pytest.approx(p, rel=1e-12)
    assert mcnemar_p(only_b, only_a) == mcnemar_p(only_a, only_b)


def test_mcnemar_of_many_questions_is_exact():
    n, k = 1319, 600
    tail = sum(Fraction(math.comb(n, i), 2**n) for i in range(k + 1))
    assert mcnemar_p(k, n - k) == pytest.approx(float(2 * tail), rel=1e-12)


def test_a_score_shows_n_and_interval():
    assert str(Score(8, 10)) == "0.800 (n = 10, 95 % interval 0.490 to 0.943)"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
