"""Copies between host and device that never make the host wait: on a GPU they go through pinned memory."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(values: Sequence | np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous tensor of `values` on the device, enqueued on its current stream."""
    host = torch.as_tensor(values, dtype=dtype).contiguous()  # numpy may have laid out columns first
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def fill(static: Tensor, values: np.ndarray) -> None:
    """Enqueue a copy of `values`, of static's dtype and shape, into a device tensor that a CUDA graph reads."""
    host = torch.from_numpy(values)
    static.copy_(host.pin_memory() if static.is_cuda else host, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A host copy; on a GPU its values are there once the stream has passed this point (record an event after it)."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
