"""Triton where it is installed, and a stand-in that lets kernel files be imported where it is not.

Kernel files take `triton` and `tl` from here. `runs_triton(x)` is the part of every kernel's `can_use` that asks for a
device; the rest of the condition (dtypes, strides, sizes) stands beside the kernel.
"""

import os
from typing import Any

from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run in Python, on CPU tensors: for tests

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # a CPU installation has no use for it

    class _Missing:
        """Answers what a kernel file asks for at import: decorators that change nothing, types for annotations."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self

    triton = tl = _Missing()
    HAS_TRITON = False


def runs_triton(x: Tensor) -> bool:
    """Whether kernels can work on x: it is on a GPU, or the interpreter stands in for one."""
    return HAS_TRITON and (x.is_cuda or (INTERPRETED and x.device.type == "cpu"))


def cdiv(a: int, b: int) -> int:
    """a / b rounded up, for launchers: Triton's own cdiv and next_power_of_2 are device functions too, and each call on
    the host takes several microseconds."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


def libdevice():
    """Triton's bindings of CUDA's own math functions, which give the bits torch's CUDA kernels give."""
    from triton.language.extra import libdevice as functions

    return functions
