"""MaskCopies: masks of tokens on their way to the device, beside the forward that they will be applied to."""

import numpy as np
import torch
from torch import Tensor

from sglang.srt.model_executor.step_io import TokenMasks

ALIGNED = 4  # words: kernels read 16 bytes at a time


class MaskCopies:
    """A stream that waits for no kernel: on the forward's own, a copy would begin when that has ended."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def put(self, masks: TokenMasks, rows: int) -> tuple[Tensor, Tensor]:
        """(mask_rows, bits) as mask_tokens() takes them for `rows` rows of logits, in one copy; what is enqueued on the
        current stream afterwards finds them there. `masks` may change once this has returned."""
        start = -(-rows // ALIGNED) * ALIGNED
        count, words = masks.bits.shape
        host = torch.empty(start + count * words, dtype=torch.int32, pin_memory=self._stream is not None)
        numbers = host.numpy()
        numbers[:start] = -1
        numbers[masks.places] = np.arange(count)
        numbers[start:].reshape(count, words)[:] = masks.bits
        packed = host
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            with torch.cuda.stream(self._stream):
                packed = host.to(self._device, non_blocking=True)
            current.wait_stream(self._stream)
            packed.record_stream(current)
        return packed[:rows], packed[start:].view(count, words)
