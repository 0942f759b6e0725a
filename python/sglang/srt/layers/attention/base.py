"""The attention contract: a layer says what it is, a backend does the work over the paged KV of a ForwardBatch."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class Attention(nn.Module):
    """One layer's attention over its paged KV cache; it holds no weights.

    `kv_layer` is the layer whose KV is read (and, with k and v given, written): the layer's own index, or its donor's
    where KV is shared. `sliding_window` is W keys including the query's own (None: all), `scale` multiplies q . k.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        kv_layer: int,
        sliding_window: int | None = None,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = scale
        self.kv_layer = kv_layer
        self.sliding_window = sliding_window

    def forward(self, q: Tensor, k: Tensor | None, v: Tensor | None, batch: ForwardBatch) -> Tensor:
        """q [T, num_heads, D], k and v [T, num_kv_heads, D] or both None; returns [T, num_heads * D].

        None: the pool has K and V of the step's tokens already. A layer wrote them to `batch.kv_slots` itself, or it
        shares the KV of one that did.
        """
        return batch.attn_backend.forward(q, k, v, self, batch)


class AttentionBackend(ABC):
    """Causal attention over a ragged batch. New tokens see themselves: k and v, if given, go into the pool first."""

    @abstractmethod
    def prepare(self, batch: ForwardBatch) -> None:
        """Compute what all layers of the step share. Called once a step, before the model runs."""

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor | None, v: Tensor | None, layer: Attention, batch: ForwardBatch) -> Tensor:
        """See Attention.forward."""
