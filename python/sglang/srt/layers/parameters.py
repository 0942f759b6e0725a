"""How a layer makes its parameters: uninitialised, in the default dtype and device the loader has set, no gradient."""

import torch
from torch import nn

from sglang.srt.distributed.tensor_parallel import Share

Extent = int | Share  # of a dimension: all of it, or this rank's part


def parameter(*shape: Extent) -> nn.Parameter:
    """The loader fills every element or fails; drawing initial values here would only cost start-up time.

    Its `extents` say which part of the checkpoint's tensor it is.
    """
    made = nn.Parameter(torch.empty([size_of(extent) for extent in shape]), requires_grad=False)
    made.extents = shape
    return made


def size_of(extent: Extent) -> int:
    """Elements this rank holds."""
    return extent.size if isinstance(extent, Share) else extent
