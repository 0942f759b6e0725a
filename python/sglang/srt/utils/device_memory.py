"""How much memory a device has left."""

import torch

from sglang.srt.utils import host


def free_memory(device: torch.device) -> int:
    """Bytes free on the device. What torch's allocator keeps without using it is given back, and so counts as free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return host.free_memory()
