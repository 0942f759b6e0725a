"""Two parts of a layer that do not need each other, on two streams of a GPU.

A step of few tokens is bound by reading weights, yet there are kernels that read next to none: those that sort, apply
activations and add. What reads weights meanwhile is free. That holds where a CUDA graph is captured: launched one by
one, two streams would only cost the host more.

Exact: each part's kernels get the same inputs on either way.
"""

import functools
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Aside, Here = TypeVar("Aside"), TypeVar("Here")

DISABLED = os.environ.get("SGLANG_DISABLE_SIDE_STREAM") == "1"


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def can_use(x: Tensor) -> bool:
    return x.is_cuda and not DISABLED and torch.cuda.is_current_stream_capturing()


def side_by_side(aside: Callable[[], Aside], here: Callable[[], Here], x: Tensor) -> tuple[Aside, Here]:
    """(aside(), here()), at the same time where can_use(x); x is an input of both. What takes longer is `here`.

    Neither may change what the other reads. Tensors that `aside` makes may be used until the next call: its stream
    waits there for whoever reads them.
    """
    if not can_use(x):
        return aside(), here()
    current, side = torch.cuda.current_stream(x.device), _side_stream(x.device)
    start = current.record_event()
    second = here()  # first, so that its first kernel finds multiprocessors that aside's have not filled
    side.wait_event(start)
    with torch.cuda.stream(side):
        first = aside()
    current.wait_stream(side)
    return first, second
