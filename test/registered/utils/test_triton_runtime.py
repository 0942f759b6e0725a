"""What launchers compute with on the host is what kernels compute with on the device."""

import sys

import pytest

from sglang.srt.utils.triton_runtime import HAS_TRITON, cdiv, next_power_of_2, triton
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=3, suite="base-a-test-cpu")


@pytest.mark.skipif(not HAS_TRITON, reason="there is no Triton to compare with")
def test_sizes_are_tritons():
    for n in [*range(1, 300), 4095, 4096, 4097, 2**20 + 1, 2**31]:
        assert next_power_of_2(n) == triton.next_power_of_2(n)
        assert [cdiv(n, k) for k in (1, 2, 7, 64, 300)] == [triton.cdiv(n, k) for k in (1, 2, 7, 64, 300)]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
