"""The products of batch-invariant mode compile for Ampere, Hopper and Blackwell, and multiply by mma.sync; Hopper's own
tiles may take wgmma.

Run as its own process: another file's interpreter would stand in for the compiler.
"""

import sys

import pytest

from sglang.srt.ops.moe import fused_moe
from sglang.srt.ops.moe.config import invariant_tiles
from sglang.srt.ops.products import matmul
from sglang.srt.utils.triton_runtime import INTERPRETED
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.triton_compile import ARCHS, compile_kernel

register_cpu_ci(est_time=10, suite="base-a-test-cpu")
register_cpu_ci(est_time=9, suite="weekly-test-cpu")

pytestmark = pytest.mark.skipif(INTERPRETED, reason="this process interprets its kernels")


def compile_matmul(arch, tile, dtype="bf16", depth=2816, bias=False) -> str:
    constexprs = matmul.kernel_options(depth, tile)
    options = {name: constexprs.pop(name) for name in ("num_warps", "num_stages")}
    pointers = {f"{name}_ptr": f"*{dtype}" for name in ("x", "weight", "out", *(["bias"] if bias else []))}
    constexprs |= {} if bias else {"bias_ptr": None}
    sizes = dict(M="i32", N="i32", K="i32", stride_x="i32")
    return compile_kernel(matmul._matmul_kernel, arch, pointers | sizes, constexprs, **options).asm["ptx"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("key", matmul.TILES)
def test_matmul(arch, key):
    ptx = compile_matmul(arch, matmul.TILES[key], bias=key[0])
    assert "mma.sync" in ptx and "wgmma" not in ptx and "tcgen05.mma" not in ptx
    assert "cp.async" in ptx  # loads run ahead of products


@pytest.mark.parametrize("tile", set(matmul.HOPPER.values()), ids=str)
def test_hoppers_tiles(tile):
    """Those of 64 rows, of x or of the weight, take wgmma, which keeps the tensor cores busy."""
    ptx = compile_matmul(90, tile, depth=2112)
    tall = (tile.block_n if tile.weight_first else tile.block_m) >= 64
    assert ("wgmma" in ptx) == tall and ("mma.sync" in ptx) == (not tall)


def test_variants():
    assert "tf32" not in compile_matmul(90, matmul.FLOAT32, "fp32")
    compile_matmul(90, matmul.TILES[True, False], "fp16", depth=2112)  # with masks over the depth


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("tokens", [1, 8192])
@pytest.mark.parametrize("depth", [2816, 704])
def test_experts(arch, tokens, depth):
    tiles = invariant_tiles(tokens, 128)
    constexprs = fused_moe.kernel_options(depth, tiles, None)
    options = {name: constexprs.pop(name) for name in ("num_warps", "num_stages")}
    pointers = {f"{name}_ptr": "*bf16" for name in "abc"} | dict.fromkeys(
        ("pairs_ptr", "experts_ptr", "used_ptr"), "*i32"
    )
    sizes = dict.fromkeys(("N", "K", "num_pairs", "pairs_per_row", "stride_a"), "i32")
    ptx = compile_kernel(fused_moe._grouped_gemm_kernel, arch, pointers | sizes, constexprs, **options).asm["ptx"]
    assert "mma.sync" in ptx and "wgmma" not in ptx and "tcgen05.mma" not in ptx


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
