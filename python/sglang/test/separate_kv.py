"""SeparateKV: KV memory in which each kind of slot has a buffer of its own, for tests that choose slots by hand."""

import torch
from torch import Tensor

from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.layers.attention.kv_pool import KVArena
from sglang.srt.mem_cache.arena import ArenaShape


class SeparateKV:
    """Reads as KVArena does. Slots 1 to `full_size` and 1 to `swa_size`, all of which may be used at once."""

    def __init__(
        self,
        kv_layers: list[KVLayerSpec],
        full_size: int,
        swa_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        self._arena_of = {}
        for sliding, size in ((False, full_size), (True, swa_size)):
            layers = [s for s in kv_layers if s.sliding == sliding]
            if layers:
                shape = ArenaShape(size, 0 if sliding else 1, 1 if sliding else 0, 0, 0)
                self._arena_of |= dict.fromkeys([s.layer for s in layers], KVArena(layers, shape, dtype, device))

    @property
    def layers(self) -> list[int]:
        return list(self._arena_of)

    def is_sliding(self, layer: int) -> bool:
        return self._arena_of[layer].is_sliding(layer)

    def get_kv(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._arena_of[layer].get_kv(layer)
