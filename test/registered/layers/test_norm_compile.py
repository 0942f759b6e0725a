"""The norm and rotation kernels compile for every GPU generation served; no GPU is needed."""

import re
import sys

import pytest

from sglang.srt.layers.layernorm import _rms_norm_kernel, warps_for
from sglang.srt.layers.qkv_norm_rope import _qkv_norm_rope_kernel
from sglang.srt.layers.qkv_rms_norm import _qkv_rms_norm_kernel
from sglang.srt.layers.rotary_embedding import _rope_kernel
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.triton_compile import ARCHS, compile_kernel, float32_ops

register_cpu_ci(est_time=25, suite="base-a-test-cpu")

DTYPES = ["bf16", "fp16"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [256, 2816, 5376])
def test_rms_norm(width, dtype, arch):
    signature = {"x": f"*{dtype}", "weight": f"*{dtype}", "out": f"*{dtype}", "eps": "fp32"}
    constants = {"WIDTH": width, "LEVELS": (width - 1).bit_length(), "HAS_WEIGHT": True}
    compile_kernel(_rms_norm_kernel, arch, signature, constants, num_warps=warps_for(width))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("width", [256, 512])
def test_qkv_rms_norm(width, per_head, arch):
    pointers = dict.fromkeys(("qkv", "v_out", "q_weight", "k_weight"), "*bf16")
    signature = pointers | {"qkv_stride": "i32", "v_stride": "i32", "eps": "fp32"}
    constants = {"NUM_HEADS": 16, "NUM_KV_HEADS": 2, "V_FROM_K": True, "HEADS": 18, "PER_HEAD": per_head}
    compile_kernel(
        _qkv_rms_norm_kernel, arch, signature, constants | {"LEVELS": (width - 1).bit_length()}, warps_for(width)
    )


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("dtype", [*DTYPES, "fp32"])
@pytest.mark.parametrize(("width", "kv_heads", "has_v"), [(256, 8, True), (512, 2, False), (512, 0, False)])
def test_qkv_norm_rope(width, kv_heads, has_v, dtype, per_head, arch):
    """It compiles, and to operations that round where the reference does: no fused product, no approximation."""
    parts = ("qkv", "q_weight", "k_weight", "cos", "sin", "q_out", "k_buffer", "v_buffer")
    signature = dict.fromkeys(parts, f"*{dtype}") | {"slots": "*i64", "qkv_stride": "i32", "eps": "fp32"}
    constants = {
        "NUM_HEADS": 16,
        "NUM_KV_HEADS": kv_heads,
        "V_FROM_K": kv_heads > 0 and not has_v,
        "LEVELS": (width - 1).bit_length() - 1,
        "HEADS": 16 + kv_heads * (1 + has_v),
        "PER_HEAD": per_head,
    }
    compiled = compile_kernel(
        _qkv_norm_rope_kernel, arch, signature, constants, warps_for(width), enable_fp_fusion=False
    )
    ptx = compiled.asm["ptx"]
    assert float32_ops(ptx) <= {"add.rn", "sub.rn", "mul.rn", "div.rn", "sqrt.rn"}
    if dtype != "fp32":  # a pair of dims turns by four products and two sums, all rounded to the dtype
        arithmetic = re.findall(r"\b(?:mul|add|sub|fma)(?:\.rn)?\.b?f16(x2)?\b", ptx)
        pairs_a_thread = width // 2 // (32 * warps_for(width)) * (2 if kv_heads else 1)  # q's code, and k's
        assert sum(2 if pair else 1 for pair in arithmetic) == 6 * pairs_a_thread


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope(dtype, arch):
    pointers = dict.fromkeys(("x", "cos", "sin", "out"), f"*{dtype}")
    signature = pointers | {"token_stride": "i32", "head_stride": "i32"}
    compile_kernel(_rope_kernel, arch, signature, {"HEADS": 16, "HALF": 256, "BLOCK": 256}, num_warps=1)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
