"""Copies between host and device."""

import sys

import numpy as np
import pytest
import torch

from sglang.srt.utils.device_copies import to_device
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="base-a-test-cpu")


@pytest.mark.parametrize("values", [[1, 2, 3], np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3)[:, ::2]])
def test_the_copy_is_contiguous_whatever_numpy_s_layout(values):
    """Kernels walk over rows of such tensors; one of columns first made them read elsewhere."""
    made = to_device(values, torch.int64, torch.device("cpu"))
    assert made.is_contiguous() and made.tolist() == np.asarray(values).tolist()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
