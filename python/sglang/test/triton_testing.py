"""Import this before anything that imports Triton: kernels then run on the GPU, or in Triton's interpreter without one.

The interpreter (3.6 to 3.9) keeps bfloat16 as its bit pattern: products and sums work on the patterns, and rounding to
it truncates. `_mend_bfloat16` makes both right, bit for bit as torch does; float16 and float32 need no help.
"""

import dataclasses
import math
import os
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError("Triton is loaded already, without its interpreter: run this file in a process of its own")
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402


def _is_bfloat16(handle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bit patterns, to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _mend_bfloat16() -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast, binary, unary, convert = (
        builder.create_dot,
        builder.cast_impl,
        builder.binary_op,
        builder.unary_op,
        builder.create_fp_to_fp,
    )

    def create_dot(self, a, b, *rest):
        a, b = (handle(_widen(x.data), tl.float32) if _is_bfloat16(x) else x for x in (a, b))
        return dot(self, a, b, *rest)

    def cast_impl(self, source, target):
        old, new = source.dtype.scalar, target.scalar
        if new == tl.bfloat16 and old != new:
            return handle(_round(source.data.astype(np.float32)), new)
        if old == tl.bfloat16 and new == tl.float32:
            return handle(_widen(source.data), new)  # its own loses denormals
        if old == tl.bfloat16 and new != old:
            return cast(self, handle(_widen(source.data), tl.float32), target)
        return cast(self, source, target)

    def create_fp_to_fp(self, source, target, mode):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return handle(_round(source.data), target.scalar)
        return convert(self, source, target, mode)

    def binary_op(self, left, right, op):
        if not (_is_bfloat16(left) or _is_bfloat16(right)):
            return binary(self, left, right, op)
        out = op(*(_widen(x.data) if _is_bfloat16(x) else x.data for x in (left, right)))
        return handle(out, tl.int1) if out.dtype == np.bool_ else handle(_round(out), tl.bfloat16)

    def unary_op(self, value, op):
        if not _is_bfloat16(value):
            return unary(self, value, op)
        return handle(_round(op(_widen(value.data))), tl.bfloat16)

    for function in (create_dot, cast_impl, create_fp_to_fp, binary_op, unary_op):
        setattr(builder, function.__name__, function)
    builder.create_fp_trunc = builder.create_fp_ext = lambda self, source, target: self.cast_impl(source, target)


def _leave_out_idle_work() -> None:
    """Two thirds of the interpreter's time: it replaces triton.language's functions anew at each call of a function by
    a kernel, computes integers a second time to assert on them, which it then does not, and makes its table of types
    at each look into it and constants of its sizes for each block."""
    interpreter.interpreter_builder.options = dataclasses.replace(
        interpreter.interpreter_builder.options, sanitize_overflow=False
    )
    replace_functions = cache(interpreter._patch_lang)  # of the language that a kernel's module sees

    def replaced_for_good(kernel):
        replace_functions(kernel)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = replaced_for_good
    numpy_type, by_name = interpreter._get_np_dtype, {}

    def numpy_type_of(dtype):
        name = dtype.scalar.name
        if name not in by_name:
            by_name[name] = numpy_type(dtype)
        return by_name[name]

    interpreter._get_np_dtype = numpy_type_of

    @cache
    def shape_and_size(shape):
        return tl.tuple([tl.constexpr(n) for n in shape]), tl.constexpr(math.prod(shape))

    def init(self, handle, type):
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_and_size(type.shape if type.is_block() else ())

    tl.tensor.__init__ = init


if DEVICE == "cpu":
    _mend_bfloat16()
    _leave_out_idle_work()


@pytest.fixture
def exact_products(monkeypatch):
    """A row's products are the same wherever it stands in a matrix: the interpreter's are numpy's, of which those in
    float32 are not, and those in float64, rounded, are."""
    if DEVICE == "cpu":
        matmul = np.matmul
        monkeypatch.setattr(np, "matmul", lambda a, b, dtype: matmul(a, b, dtype=np.float64).astype(dtype))
