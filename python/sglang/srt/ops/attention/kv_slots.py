"""KVSlots: where a step's new K and V go."""

from typing import NamedTuple

from torch import Tensor


class KVSlots(NamedTuple):
    """Where K and V of a layer's T new tokens go: to rows `slots` of its two buffers. Slot 0 may come many times: it is
    padding, and holds some one of what is written there."""

    k_buffer: Tensor  # [size + page_size, num_kv_heads, head_dim]
    v_buffer: Tensor
    slots: Tensor  # [T] int64

    def write(self, k: Tensor, v: Tensor) -> None:
        """k and v [T, num_kv_heads, head_dim]."""
        self.k_buffer.index_copy_(0, self.slots, k)
        self.v_buffer.index_copy_(0, self.slots, v)
