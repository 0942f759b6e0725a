"""The router's kernels compile for every GPU generation served, and what they compile to rounds where the references
round. No GPU is needed."""

import sys

import pytest

from sglang.srt.ops.moe.router_norm import _router_norm_kernel
from sglang.srt.ops.moe.topk import _topk_softmax_kernel
from sglang.srt.ops.norms.rms_norm import warps_for
from sglang.srt.utils.triton_runtime import INTERPRETED
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.triton_compile import SHARED_MEMORY, asked, compile_kernel, float32_ops, half_roundings

register_cpu_ci(est_time=10, suite="base-a-test-cpu")
register_cpu_ci(est_time=23, suite="weekly-test-cpu")

pytestmark = pytest.mark.skipif(INTERPRETED, reason="this process interprets its kernels")


def compile_topk(arch: int, experts: int, k: int, dtype: str) -> str:
    signature = {
        "logits": f"*{dtype}",
        "expert_scale": f"*{dtype}",
        "weights": "*fp32",
        "ids": "*i64",
        "logits_stride": "i32",
    }
    sizes = {"EXPERTS": experts, "LEVELS": (experts - 1).bit_length(), "K": k, "SLOT_LEVELS": (k - 1).bit_length()}
    compiled = compile_kernel(_topk_softmax_kernel, arch, signature, sizes, num_warps=1, enable_fp_fusion=False)
    return compiled.asm["ptx"]


@pytest.mark.parametrize("arch", asked(*SHARED_MEMORY))
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (16, 4), (128, 8), (1000, 16)])
def test_topk_softmax(experts, k, dtype, arch):
    ptx = compile_topk(arch, experts, k, dtype)
    assert float32_ops(ptx) <= {"add.rn", "sub.rn", "mul.rn", "div.rn"}  # no fused product, no approximation, no flush
    assert "fma.rn.f64" in ptx and "cvt.rn.f32.f64" in ptx  # exp is float64's, rounded once


@pytest.mark.parametrize("arch", asked(*SHARED_MEMORY))
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("width", [256, 2816])
def test_router_norm(width, dtype, arch):
    signature = {"h": f"*{dtype}", "scale": f"*{dtype}", "out": f"*{dtype}", "root": "fp32", "eps": "fp32"}
    sizes = {"WIDTH": width, "LEVELS": (width - 1).bit_length()}
    compiled = compile_kernel(
        _router_norm_kernel, arch, signature, sizes, num_warps=warps_for(width), enable_fp_fusion=False
    )
    ptx = compiled.asm["ptx"]
    assert float32_ops(ptx) <= {"add.rn", "mul.rn", "div.rn", "sqrt.rn"}
    if dtype != "fp32":  # three roundings a number; that of a product of two may be the product's own
        assert half_roundings(ptx) == 3 * 2 ** sizes["LEVELS"] // (32 * warps_for(width))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
