"""KV memory on the device: one buffer, seen as the slots of both kinds of layer. It knows no owners of slots."""

import contextlib
import mmap

import torch
from torch import Tensor

from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.mem_cache.arena import ArenaShape


class KVArena:
    """K and V of `kv_layers`, the layers that own KV, in the pages of `shape` and the padding page before them.

    A slot of either kind is a row over all layers of its kind: layer after layer, K then V. Full and sliding slots lie
    in the same buffer, one number after the other at equal distances, so each layer has its K and V as strided views
    of the whole; which slots belong to whom is the allocators' business (mem_cache/arena.py).
    The buffer starts as zeros, since attention may read (and mask) slots that were never written, and 0 x NaN is NaN;
    what one kind leaves to the other are finite numbers of the same dtype.
    `huge_pages`: where a host's are to be written through as a whole.
    Raises ValueError when layers of one kind differ in head geometry.
    """

    def __init__(
        self,
        kv_layers: list[KVLayerSpec],
        shape: ArenaShape,
        dtype: torch.dtype,
        device: torch.device | str,
        huge_pages: bool = False,
    ):
        full, swa = ([s for s in kv_layers if s.sliding == sliding] for sliding in (False, True))
        pages = {_slot_elements(full) * shape.full_per_page, _slot_elements(swa) * shape.swa_per_page} - {0}
        if len(pages) != 1:
            raise ValueError(f"{shape.full_per_page} full and {shape.swa_per_page} sliding slots fill no page alike")
        self.page_elements = pages.pop()
        self.buffer = _zeros((shape.num_pages + 1) * self.page_elements, dtype, device, huge_pages)
        # Full and sliding slots as rows, [slots, elements]; None without layers of the kind.
        self.rows = [self.buffer.view(-1, _slot_elements(kind)) if kind else None for kind in (full, swa)]
        self._views = _views(self.buffer, full) | _views(self.buffer, swa)
        self._sliding = {s.layer: s.sliding for s in kv_layers}
        self.layers = list(self._sliding)

    @property
    def nbytes(self) -> int:
        return self.buffer.numel() * self.buffer.element_size()

    @property
    def page_bytes(self) -> int:
        return self.page_elements * self.buffer.element_size()

    def is_sliding(self, layer: int) -> bool:
        """Whether `layer` keeps its KV in sliding slots."""
        return self._sliding[layer]

    def get_kv(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and V of a layer, each [slots of its kind, num_kv_heads, head_dim], slots at equal distances."""
        return self._views[layer]


def _slot_elements(layers: list[KVLayerSpec]) -> int:
    """Elements of one slot of these layers."""
    return sum(2 * s.num_kv_heads * s.head_dim for s in layers)


def _views(buffer: Tensor, layers: list[KVLayerSpec]) -> dict[int, tuple[Tensor, Tensor]]:
    shapes = {(s.num_kv_heads, s.head_dim) for s in layers}
    if len(shapes) > 1:
        raise ValueError(f"layers of one kind differ in (num_kv_heads, head_dim): {sorted(shapes)}")
    if not layers:
        return {}
    ((heads, dim),) = shapes
    rows = buffer.view(-1, len(layers), 2, heads, dim)
    return {s.layer: (rows[:, i, 0], rows[:, i, 1]) for i, s in enumerate(layers)}


def _zeros(elements: int, dtype: torch.dtype, device: torch.device | str, huge_pages: bool) -> Tensor:
    """Zeros. On a host they take memory only where somebody has written: an arena costs what has been used of it."""
    if torch.device(device).type != "cpu":
        return torch.zeros(elements, dtype=dtype, device=device)
    pages = mmap.mmap(-1, elements * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages:
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype)
