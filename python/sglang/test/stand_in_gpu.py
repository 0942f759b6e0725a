"""A GPU that does nothing, for tests of what would be compiled and when. Import it before anything that imports Triton.

Kernels are taken for tensors on the CPU, `compiled` gets the name of each kernel that Triton would compile for an H100,
and a launch writes nothing: what it should have written is whatever the memory held.
"""

from unittest import SkipTest

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from sglang.srt.utils import triton_runtime

if triton_runtime.INTERPRETED:  # of several test files in one process, an earlier one asked for it
    raise SkipTest("Triton's interpreter compiles nothing: run this file in a process of its own")

compiled: list[str] = []
_functions: set[jit.JITFunction] = set()


def forget() -> None:
    """As if nothing had been compiled yet."""
    for function in _functions:
        function.device_caches.clear()
    compiled.clear()


class _Driver:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


class _Kernel:
    function = packed_metadata = None

    def launch_metadata(self, *args):
        return None

    def run(self, *args):
        pass


def _do_compile(self, key, signature, device, *rest):
    compiled.append(self.fn.__name__)
    _functions.add(self)
    kernel = self.device_caches[device][0][key] = _Kernel()
    return kernel


def _runs_triton(x) -> bool:
    return True


triton_runtime.runs_triton = _runs_triton
jit.JITFunction._do_compile = _do_compile
driver.set_active(_Driver())
assert triton.runtime.driver.active.get_current_target().arch == 90
