"""The mask kernel compiles for GPUs that are not there."""

import sys

import pytest

from sglang.srt.ops.sampling.token_mask import BLOCK, _mask_kernel
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.triton_compile import ARCHS, compile_kernel

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

SIGNATURE = {"out_ptr": "*fp32", "mask_rows_ptr": "*i32", "bits_ptr": "*i32", "V": "i32", "words": "i32"}


@pytest.mark.parametrize("logits", ["*bf16", "*fp32"])
@pytest.mark.parametrize("arch", ARCHS)
def test_mask_kernel_compiles(arch, logits):
    ptx = compile_kernel(_mask_kernel, arch, SIGNATURE | {"logits_ptr": logits}, {"BLOCK": BLOCK}).asm["ptx"]
    assert "st.global" in ptx


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
