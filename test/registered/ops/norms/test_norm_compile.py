"""The norm and rotation kernels compile for every GPU generation served, and those of the residual stream round where
their references round. No GPU is needed."""

import re
import sys

import pytest

from sglang.srt.ops.norms.qkv_norm_rope import _qkv_norm_rope_kernel
from sglang.srt.ops.norms.qkv_rms_norm import _qkv_rms_norm_kernel
from sglang.srt.ops.norms.residual_norms import _add_norm_kernel, _add_norm_moe_kernel, options
from sglang.srt.ops.norms.rms_norm import _rms_norm_kernel, warps_for
from sglang.srt.ops.norms.rope import _rope_kernel
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.triton_compile import ARCHS, compile_kernel, float32_ops, half_roundings

register_cpu_ci(est_time=24, suite="base-a-test-cpu")
register_cpu_ci(est_time=40, suite="weekly-test-cpu")

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


def check_roundings(kernel, arch: int, dtype: str, width: int, rounded: int, rows: int = 1, **parts: bool) -> None:
    """The kernel rounds each number of a row `rounded` times to the dtype and does nothing else that is not exact."""
    signature = {name: f"*{dtype}" for name in kernel.arg_names if name.islower()} | {"eps": "fp32"}
    if "root" in signature:
        signature["root"] = "fp32"
    constants = options(rows, width) | parts
    launch = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    ptx = compile_kernel(kernel, arch, signature, constants, **launch).asm["ptx"]
    assert float32_ops(ptx) <= {"add.rn", "mul.rn", "div.rn", "sqrt.rn"}
    if dtype != "fp32":
        assert half_roundings(ptx) == rounded * 2 ** constants["LEVELS"] // (32 * launch["num_warps"])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [*DTYPES, "fp32"])
@pytest.mark.parametrize(
    ("experts", "scalar", "next_norm", "rounded"),
    [(True, True, True, 7), (False, True, True, 4), (False, False, True, 3), (False, False, False, 2)],
)
def test_add_norm(experts, scalar, next_norm, rounded, dtype, arch):
    parts = {"HAS_EXPERTS": experts, "HAS_SCALAR": scalar, "HAS_NEXT": next_norm}
    check_roundings(_add_norm_kernel, arch, dtype, 2816, rounded, **parts)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [*DTYPES, "fp32"])
@pytest.mark.parametrize(("router", "rounded"), [(True, 7), (False, 4)])
def test_add_norm_moe(router, rounded, dtype, arch):
    check_roundings(_add_norm_moe_kernel, arch, dtype, 2816, rounded, HAS_ROUTER=router)


@pytest.mark.parametrize("kernel", [_add_norm_kernel, _add_norm_moe_kernel])
@pytest.mark.parametrize(("rows", "width"), [(1, 256), (1, 5376), (8192, 2816)])
def test_residual_norms_of_other_sizes(rows, width, kernel):
    parts = {name: True for name in kernel.arg_names if name.startswith("HAS_")}
    check_roundings(kernel, 90, "bf16", width, 7, rows, **parts)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("dtype", [*DTYPES, "fp32"])
@pytest.mark.parametrize(("width", "kv_heads", "has_v"), [(256, 8, True), (512, 2, False), (512, 0, False)])
def test_qkv_norm_rope(width, kv_heads, has_v, dtype, per_head, arch):
    """It compiles, and to operations that round where the reference does: no fused product, no approximation."""
    parts = ("qkv", "q_weight", "k_weight", "cos", "sin", "q_out", "k_buffer", "v_buffer")
    numbers = {"slots": "*i64", "qkv_stride": "i32", "slot_stride": "i32", "eps": "fp32"}
    signature = dict.fromkeys(parts, f"*{dtype}") | numbers
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
