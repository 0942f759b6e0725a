"""KV memory on the device: one buffer pair a layer. It knows no owners of slots."""

import math
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

from sglang.srt.configs.kv_layers import KVLayerSpec


class KVPool:
    """K and V of `layers`, which share one head geometry and one set of slots.

    Buffers are [size + page_size, num_kv_heads, head_dim]; page 0 is padding and slots follow as in SlotAllocator.
    They start as zeros, since attention may read (and mask) slots that were never written, and 0 x NaN is NaN.
    """

    def __init__(
        self,
        size: int,
        layers: Iterable[int],
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        page_size: int = 1,
    ):
        self.size = size
        shape = (size + page_size, num_kv_heads, head_dim)
        self.buffers = {layer: (_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for layer in layers}
        self.bytes_per_token = len(self.buffers) * 2 * num_kv_heads * head_dim * dtype.itemsize

    def get_kv(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and V buffers of a layer, each [size + page_size, num_kv_heads, head_dim]."""
        return self.buffers[layer]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros. On a host they take memory only where somebody has written: a pool costs what has been used of it."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


class HybridKVPool:
    """The full-attention pool and the sliding pool behind one interface; a layer's slots are those of its own pool.

    `kv_layers` are the layers that own KV. A pool without layers is None and its size is not used.
    Raises ValueError when layers of one pool differ in head geometry.
    """

    def __init__(
        self,
        kv_layers: list[KVLayerSpec],
        full_size: int,
        swa_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        page_size: int = 1,
    ):
        self.full = _make_pool([s for s in kv_layers if not s.sliding], full_size, dtype, device, page_size)
        self.swa = _make_pool([s for s in kv_layers if s.sliding], swa_size, dtype, device, page_size)
        self._pool_of = {s.layer: self.swa if s.sliding else self.full for s in kv_layers}
        self._sliding = {s.layer: s.sliding for s in kv_layers}

    @property
    def full_bytes_per_token(self) -> int:
        return self.full.bytes_per_token if self.full else 0

    @property
    def swa_bytes_per_token(self) -> int:
        return self.swa.bytes_per_token if self.swa else 0

    def is_sliding(self, layer: int) -> bool:
        """Whether `layer` keeps its KV in the sliding pool."""
        return self._sliding[layer]

    def get_kv(self, layer: int) -> tuple[Tensor, Tensor]:
        """See KVPool.get_kv."""
        return self._pool_of[layer].get_kv(layer)


def _make_pool(
    specs: list[KVLayerSpec], size: int, dtype: torch.dtype, device: torch.device | str, page_size: int
) -> KVPool | None:
    if not specs:
        return None
    shapes = {(s.num_kv_heads, s.head_dim) for s in specs}
    if len(shapes) > 1:
        raise ValueError(f"layers that share a KV pool differ in (num_kv_heads, head_dim): {sorted(shapes)}")
    num_kv_heads, head_dim = shapes.pop()
    return KVPool(size, [s.layer for s in specs], num_kv_heads, head_dim, dtype, device, page_size)
