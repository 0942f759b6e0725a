"""KVLayerSpec: the KV cache one layer needs. Read by the memory pool, filled by the model configs."""

from dataclasses import dataclass, replace

from sglang.srt.distributed.tensor_parallel import TensorParallel


@dataclass(frozen=True)
class KVLayerSpec:
    """A layer that owns KV: each cached token takes 2 * num_kv_heads * head_dim elements (K and V)."""

    layer: int
    sliding: bool
    num_kv_heads: int
    head_dim: int

    def on_rank(self, tp: TensorParallel) -> "KVLayerSpec":
        """What the layer needs on one rank: its KV heads only."""
        return replace(self, num_kv_heads=tp.num_kv_heads(self.num_kv_heads))
