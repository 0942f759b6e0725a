"""Programmatic dependent launch: on Hopper and later a kernel's programs start while the kernel before it still runs.

A step of few tokens is a chain of some 500 kernels of a few microseconds each, between which a GPU drains, launches and
fills. A kernel that calls `wait_for_previous` lets the next one start as soon as all of its own programs have, and
waits itself until the one before it is complete. Every program calls it, before it reads what a step makes or writes
anything: then whatever is complete for one kernel is so for the next. What no step changes, weights, may be read
before.
"""

import functools
import os

import torch

from sglang.srt.utils.triton_runtime import tl, triton

# For measuring what it is worth; the bits are the same.
DISABLED = os.environ.get("SGLANG_DISABLE_DEPENDENT_LAUNCH") == "1"


@triton.jit
def wait_for_previous(DEPENDENT: tl.constexpr):
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@functools.cache
def launch_options(device: torch.device) -> dict[str, bool]:
    """What a kernel with a DEPENDENT parameter is launched with. Not to be changed."""
    if DISABLED or device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 9:
        return {"DEPENDENT": False}
    return {"DEPENDENT": True, "launch_pdl": True}
