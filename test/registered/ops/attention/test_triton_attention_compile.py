"""Every attention kernel compiles for Hopper and, in the weekly suite, for every other architecture served, with the
tiles of the tables, and fits its shared memory. No GPU is needed; the compiler's own errors are what this test is
for."""

import sys

import pytest

from sglang.srt.ops.attention import decode_attention, extend_attention
from sglang.srt.ops.attention.tiles import decode_tile, extend_tile, key_block_tiles
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.triton_compile import asked, compile_kernel

register_cpu_ci(est_time=60, suite="weekly-test-cpu")

CAPABILITIES = {80: (8, 0), 89: (8, 9), 90: (9, 0), 100: (10, 0)}
ARCHS = asked(*CAPABILITIES)
HEAD_SIZES = [64, 128, 256, 512]
ITEMSIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
POINTERS = {
    "table": "*i32",
    "work": "*i32",
    "req_rows": "*i64",
    "prefix_lens": "*i64",
    "new_lens": "*i64",
    "start_locs": "*i64",
    "seq_lens": "*i64",
    "path_slots": "*i32",
    "tree_positions": "*i64",
    "tree_visible": "*u8",
    "tree_starts": "*i64",
    "sums": "*fp32",
    "states": "*fp32",
    "lses": "*fp32",
}


def compile_with(kernel, arch, dtype, constexprs, num_warps=4, num_stages=3):
    def kind(name):
        if name in ("q", "k_cache", "v_cache", "out"):
            return f"*{dtype}"
        return POINTERS.get(name) or ("fp32" if name == "scale" else "i32")

    signature = {name: kind(name) for name in kernel.arg_names if name.islower() and name not in constexprs}
    return compile_kernel(kernel, arch, signature, constexprs, num_warps, num_stages)


def sizes(dim, v_dim=None):
    v_dim = v_dim or dim
    padded = {name: 1 << (size - 1).bit_length() for name, size in (("BLOCK_D", dim), ("BLOCK_DV", v_dim))}
    return {"D": dim, "DV": v_dim, **padded}


def compile_extend(
    arch, dtype, dim, group=2, windowed=True, tree=False, v_dim=None, key_block=0, growing=False, hopper=False
):
    tile = extend_tile(CAPABILITIES[arch], dim, ITEMSIZES[dtype])
    if key_block:
        tile, _ = key_block_tiles(CAPABILITIES[arch], dim, ITEMSIZES[dtype], hopper)
    no_tree = {} if tree else {"tree_positions": None, "tree_visible": None, "tree_starts": None}
    return compile_with(
        extend_attention._extend_kernel,
        arch,
        dtype,
        {
            **sizes(dim, v_dim),
            "BLOCK_D": extend_attention.padded_dim(dim),
            "BLOCK_DV": extend_attention.padded_dim(v_dim or dim),
            **no_tree,
            "GROUP": group,
            "HEADS": min(group, tile.block_m),
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "WINDOWED": windowed,
            "TREE": tree,
            "KEY_BLOCK": key_block,
            "GROWING": growing,
        },
        tile.num_warps,
        tile.num_stages,
    )


def compile_decode(
    arch, dtype, dim, group=2, one_split=False, v_dim=None, path=False, key_block=0, growing=False, hopper=False
):
    tile = decode_tile(CAPABILITIES[arch], dim, ITEMSIZES[dtype])
    if key_block:
        _, tile = key_block_tiles(CAPABILITIES[arch], dim, ITEMSIZES[dtype], hopper)
    return compile_with(
        decode_attention._decode_kernel,
        arch,
        dtype,
        {
            **sizes(dim, v_dim),
            "GROUP": group,
            "HEADS": group,
            "HEAD_BLOCKS": 1,
            "BLOCK_M": max(16, group),
            "BLOCK_N": tile.block_n,
            "ONE_SPLIT": one_split,
            "PATH": path,
            "KEY_BLOCK": key_block,
            "GROWING": growing,
        },
        tile.num_warps,
        tile.num_stages,
    )


@pytest.mark.parametrize(
    ("dtype", "dim"), [*(("bf16", dim) for dim in HEAD_SIZES), ("fp16", 256)]
)  # tiles are the same
@pytest.mark.parametrize("arch", ARCHS)
def test_compiles(arch, dtype, dim):
    extend = compile_extend(arch, dtype, dim, windowed=dim == 256)  # as Gemma 4's layers
    compile_decode(arch, dtype, dim)
    if arch == 90 and dim <= 256:
        assert "wgmma.mma_async" in extend.asm["ptx"]  # else the tensor cores run at half their speed


def multiplies_by(compiled) -> set[str]:
    ptx = compiled.asm["ptx"]
    return {name for name in ("mma.sync", "wgmma", "tcgen05.mma") if name in ptx}


@pytest.mark.parametrize("dim", HEAD_SIZES)
@pytest.mark.parametrize("arch", ARCHS)
def test_key_blocks_compile_to_one_kind_of_product(arch, dim):
    """Batch-invariant mode: prefill and decode must add in the same order, so neither may use larger instructions."""
    key_blocks = dict(key_block=256) if dim == 256 else dict(key_block=128, growing=True)
    assert multiplies_by(compile_decode(arch, "bf16", dim, one_split=dim == 256, **key_blocks)) == {"mma.sync"}
    assert multiplies_by(compile_extend(arch, "bf16", dim, group=8, windowed=dim == 256, **key_blocks)) == {"mma.sync"}


@pytest.mark.parametrize("dim", HEAD_SIZES)
def test_hoppers_key_blocks_take_its_own_product(dim):
    """Where wgmma adds as mma.sync does, prefill need not do without it."""
    key_blocks = dict(key_block=256) if dim == 256 else dict(key_block=128, growing=True)
    assert "wgmma" in multiplies_by(compile_extend(90, "bf16", dim, group=8, hopper=True, **key_blocks))
    assert multiplies_by(compile_decode(90, "bf16", dim, hopper=True, **key_blocks)) == {"mma.sync"}


def test_variants_over_key_blocks():
    compile_extend(90, "bf16", 192, group=5, tree=True, v_dim=128, key_block=256)
    compile_decode(90, "bf16", 192, group=5, v_dim=128, path=True, key_block=256)
    constexprs = {"DV": 512, "BLOCK_DV": 512, "KEY_BLOCK": 128, "GROWING": True}
    compile_with(decode_attention._merge_kernel, 90, "bf16", constexprs)


@pytest.mark.parametrize("arch", asked(89))  # weekly
@pytest.mark.parametrize("key_block", [0, 256])
def test_compiles_for_float32(arch, key_block):
    """One tile serves all: the largest heads must fit where shared memory is smallest, on sm_89."""
    compile_extend(arch, "fp32", 512, key_block=key_block)
    compile_decode(arch, "fp32", 512, key_block=key_block)


@pytest.mark.parametrize("one_split", [False, True])
def test_variants_of_decode(one_split):
    compile_decode(90, "bf16", 512, group=64, one_split=one_split)
    compile_decode(90, "bf16", 192, group=5, one_split=one_split, v_dim=128, path=True)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("tree", [False, True])
def test_variants_of_extend(windowed, tree):
    compile_extend(90, "bf16", 64, group=8, windowed=windowed, tree=tree)
    compile_extend(90, "bf16", 192, group=5, windowed=windowed, tree=tree, v_dim=128)


def test_interior_tiles_have_no_masks():
    """The loop over wholly visible keys loads without conditions; only head sizes that need padding pay for it."""
    plain = compile_extend(90, "bf16", 64, windowed=False).asm["ttir"]
    first_loop = plain[plain.index("scf.for") :].split("scf.yield")[0]
    loads = [line for line in first_loop.splitlines() if "tt.load" in line]
    assert len(loads) == 3 and all(line.count("%") == 2 for line in loads), loads  # result and pointer


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_combine_compiles(arch, dtype):
    for dim in HEAD_SIZES:
        block, most = decode_attention.COMBINED_COLUMNS, decode_attention.MAX_SPLITS
        constexprs = {"DV": dim, "BLOCK_DV": block, "BLOCK_N": 32, "MAX_SPLITS": most}
        compile_with(decode_attention._combine_kernel, arch, dtype, constexprs)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
