"""Compiles Triton kernels for GPUs that are not there: type, shape and shared-memory errors show without one.

Do not import it beside triton_testing: the interpreter replaces what the compiler needs.
"""

import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from sglang.test.ci.ci_register import is_weekly


def asked(*archs: int) -> list[int]:
    """Which of a kernel's architectures this run compiles for: Hopper's or, in the weekly suite, the others."""
    return [arch for arch in archs if (arch != 90) == is_weekly()]


ARCHS = asked(80, 90, 100)
# bytes of shared memory one program may have, from CUDA's table of compute capabilities; 8.9 has less than 8.0
SHARED_MEMORY = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}


def compile_kernel(
    kernel,
    arch: int,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
    enable_fp_fusion: bool = True,
) -> Any:
    """Compile `kernel` for sm_`arch`. `signature` gives each run-time argument's type ("*bf16", "i32", "fp32").

    DEPENDENT (utils/dependent_launch.py) is off unless given. Pointers and i32 arguments are taken as divisible by 16,
    as in a usual launch. Raises the compiler's error, or AssertionError when arguments are left out or the program
    wants more shared memory than the GPU has.
    """
    if "DEPENDENT" in kernel.arg_names:
        constexprs = {"DEPENDENT": False} | constexprs
    missing = set(kernel.arg_names) - set(signature) - set(constexprs)
    assert not missing, f"no type or value for {sorted(missing)}"
    ordered = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(ordered.values())
        if kind.startswith("*") or kind == "i32"
    }
    source = triton.compiler.ASTSource(kernel, signature=ordered, constexprs=constexprs, attrs=aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": enable_fp_fusion}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert compiled.metadata.shared <= SHARED_MEMORY[arch], (
        f"{kernel.__name__} wants {compiled.metadata.shared} bytes of shared memory, sm_{arch} has "
        f"{SHARED_MEMORY[arch]}: {constexprs}"
    )
    return compiled


def float32_ops(ptx: str) -> set[str]:
    """The float32 arithmetic in it, as add.rn or div.full; libdevice's exp looks at a float64's upper half by abs."""
    return set(re.findall(r"\b((?:add|sub|mul|fma|mad|div|sqrt|rsqrt|rcp|ex2)\.[a-z.]*?)\.f32", ptx))


def half_roundings(ptx: str) -> int:
    """How many numbers a thread rounds to a 16-bit dtype. Arithmetic in that dtype is counted too: the compiler makes
    it of a float32 sum or product of two such numbers that is rounded at once."""
    rounding = re.findall(r"\b(?:cvt\.rn|add|add\.rn|mul|mul\.rn|fma\.rn)\.b?f16(x2)?\b", ptx)
    return sum(2 if pair else 1 for pair in rounding)
