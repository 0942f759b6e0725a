"""The experts' and the activations' kernels compile for Ampere, Hopper and Blackwell, within their shared memory.

Run as its own process: another file's interpreter would stand in for the compiler.
"""

import sys

import pytest

from sglang.srt.ops.moe import align, fused_moe, moe_sum
from sglang.srt.ops.moe.config import Tiles, default_tiles
from sglang.srt.ops.norms import activation
from sglang.srt.utils.triton_runtime import INTERPRETED
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.triton_compile import ARCHS, compile_kernel

register_cpu_ci(est_time=9, suite="base-a-test-cpu")
register_cpu_ci(est_time=13, suite="weekly-test-cpu")

pytestmark = pytest.mark.skipif(INTERPRETED, reason="this process interprets its kernels")

GEMM = dict(
    a_ptr="*bf16",
    b_ptr="*bf16",
    c_ptr="*bf16",
    pairs_ptr="*i32",
    experts_ptr="*i32",
    used_ptr="*i32",
    N="i32",
    K="i32",
    num_pairs="i32",
    pairs_per_row="i32",
    stride_a="i32",
)


def compile_gemm(arch: int, tiles: Tiles, k: int = 2816, activation: str | None = None, dtype: str = "bf16"):
    constexprs = fused_moe.kernel_options(k, tiles, activation)
    options = {name: constexprs.pop(name) for name in ("num_warps", "num_stages")}
    signature = GEMM | {name: f"*{dtype}" for name in ("a_ptr", "b_ptr", "c_ptr")}
    return compile_kernel(fused_moe._grouped_gemm_kernel, arch, signature, constexprs, **options)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
@pytest.mark.parametrize("tiles", [default_tiles(1, 128), default_tiles(8192, 128), Tiles(16, 64, 128, 1, 4, 4)])
def test_grouped_gemm(arch, activation, tiles):
    ptx = compile_gemm(arch, tiles, activation=activation).asm["ptx"]
    assert "cp.async" in ptx  # loads run ahead of products
    if arch == 90 and tiles.block_m >= 64:
        assert "wgmma.mma_async" in ptx


@pytest.mark.parametrize("arch", ARCHS)
def test_grouped_gemm_with_a_depth_that_needs_masks(arch):
    compile_gemm(arch, Tiles(16, 64, 128, 1), k=704)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_grouped_gemm_in_other_dtypes(dtype):
    """float32 must not become tf32."""
    assert "tf32" not in compile_gemm(90, default_tiles(1, 128), dtype=dtype).asm["ptx"]


def test_whole_depths_need_no_masks_on_weights():
    for k, masked in ((2816, False), (704, True)):
        ttir = compile_gemm(90, Tiles(16, 64, 128, 1), k=k).asm["ttir"]
        (load,) = (line for line in ttir.splitlines() if "tt.load" in line and "128x64x!tt.ptr" in line)
        assert (load.count("%") > 2) == masked  # result, pointers, and a mask and what stands in for it


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("bins", "segment", "rows"), [(128, 128, 1), (128, 1024, 1), (512, 4096, 1), (128, 4096, 32)])
def test_align(arch, bins, segment, rows):
    pointers = dict(ids_ptr="*i64", counts_ptr="*i32")
    outputs = dict(pairs_ptr="*i32", experts_ptr="*i32", used_ptr="*i32")
    sizes = dict(num_pairs="i32", num_segments="i32")
    constexprs = dict(BLOCK_M=16, BINS=bins, SEGMENT=segment, SEGMENT_ROWS=rows)
    compile_kernel(align._place_kernel, arch, pointers | outputs | sizes, constexprs)
    if rows > 1:
        signature = pointers | dict(num_pairs="i32")
        compile_kernel(align._count_kernel, arch, signature, dict(BINS=bins, SEGMENT=segment), num_warps=8)


@pytest.mark.parametrize("arch", ARCHS)
def test_weighted_sum(arch):
    signature = dict(y_ptr="*bf16", weights_ptr="*fp32", out_ptr="*bf16", hidden="i32")
    compiled = compile_kernel(moe_sum._sum_kernel, arch, signature, dict(K=8, BLOCK=moe_sum.BLOCK))
    assert "ld.global.v4" in compiled.asm["ptx"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", activation.EXACT_KERNELS)
def test_activations(arch, name):
    signature = dict(gate_up_ptr="*bf16", out_ptr="*bf16", elements="i32", width="i32")
    constexprs = dict(ACTIVATION=name, CUDA_MATH=True, BLOCK=activation.BLOCK)
    ptx = compile_kernel(activation._gated_kernel, arch, signature, constexprs).asm["ptx"]
    assert "ld.global.v4" in ptx
    assert "tanh.approx" not in ptx and "div.full" not in ptx  # torch's kernels use neither


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
