"""Which batch sizes have graphs, and how a smaller batch is padded."""

import sys

import numpy as np
import pytest

from sglang.srt.model_executor.cuda_graph_runner import capture_sizes, padded
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="base-a-test-cpu")


@pytest.mark.parametrize("limit", [1, 3, 8, 26, 48, 256, 300, 512])
def test_sizes_end_at_the_limit(limit: int):
    sizes = capture_sizes(limit)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == limit


def test_no_batch_is_padded_by_more_than_a_quarter():
    sizes = capture_sizes(256)
    for n in range(1, 257):
        assert next(size for size in sizes if size >= n) <= 1.25 * n


def test_padding_rows_are_one_token_of_no_request():
    inputs = np.array([[7, 9], [30, 40], [100, 101], [5, 6]])
    got = padded(inputs, 4, [0, 1, 0, 0])
    assert got.dtype == np.int64 and np.array_equal(got[:, :2], inputs)
    assert got[:, 2:].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
