"""The attention contract: a layer says what it is (Attention), a backend does the work (AttentionBackend) over the
paged KV of a step's device tensors (ForwardBatch). It knows nothing of requests or scheduling."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sglang.srt.layers.attention.kv_pool import KVArena
from sglang.srt.ops.attention.kv_slots import KVSlots


@dataclass(frozen=True)
class DraftRows:
    """Decode rows that verify drafts: each request has `nodes` rows, one a node (see speculative/draft_tree.py).

    Before them `n` tokens of the request have KV; the slot of node i is the table's entry at position n + i, wherever
    in the tree the node is. A row sees the n tokens and its node's path: seq_lens = n + depth + 1.
    """

    nodes: int
    paths: Tensor | None  # [B, nodes, P] int64: nodes from the root to the row's own, which repeats; None: a line


@dataclass
class ForwardBatch:
    """One step over B requests and T new tokens, T = sum of `extend_seq_lens`.

    Rows come prefill chunks first, then decodes (one new token each): rows [0, num_extends) and [num_extends, B).
    A request's new tokens are contiguous: rows `extend_start_loc[b] : extend_start_loc[b] + extend_seq_lens[b]`.
    Slot tables give, for each request row and position, the slot of that token's K and V: `req_to_token` in the pool
    of full-attention layers, `req_to_token_swa` in that of sliding layers (0 where the slot was given back).
    """

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    req_pool_indices: Tensor  # [B] int64, rows of the slot tables
    seq_lens: Tensor  # [B] int64, cached and new tokens together
    extend_seq_lens: Tensor  # [B] int64, new tokens
    extend_prefix_lens: Tensor  # [B] int64, tokens cached before this step
    extend_start_loc: Tensor  # [B] int64
    out_cache_loc: Tensor  # [T] int64, full slots the step writes
    out_cache_loc_swa: Tensor  # [T] int64, sliding slots
    req_to_token: Tensor  # [rows, max_len] int32
    req_to_token_swa: Tensor  # [rows, max_len] int32
    num_extends: int
    seq_lens_cpu: list[int]
    extend_seq_lens_cpu: list[int]
    kv_pool: KVArena
    attn_backend: "AttentionBackend"
    drafts: DraftRows | None = None  # then seq_lens_cpu are upper bounds

    @property
    def batch_size(self) -> int:
        return len(self.seq_lens_cpu)

    def kv_slots(self, layer: int) -> KVSlots:
        """Where K and V that `layer` makes of the step's new tokens go; the layer owns KV."""
        sliding = self.kv_pool.is_sliding(layer)
        return KVSlots(*self.kv_pool.get_kv(layer), self.out_cache_loc_swa if sliding else self.out_cache_loc)

    @property
    def is_decode_only(self) -> bool:
        return self.num_extends == 0


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

    # Query tokens of a tile of prefill, for every head geometry. Empty: the backend plans prefills on the host, and
    # CUDA graphs can't hold them.
    tile_tokens: Sequence[int] = ()

    @abstractmethod
    def prepare(self, batch: ForwardBatch) -> None:
        """Compute what all layers of the step share. Called once a step, before the model runs."""

    def prepare_prompts(self, work: list[Tensor], tokens: int) -> None:
        """prepare() for a step of prompts with `tokens` new tokens whose tiles, `work` [n, 2] int32 (request, tile of
        its new tokens) for each of `tile_tokens`, are on the device already; a CUDA graph may hold what follows."""
        raise NotImplementedError(f"{type(self).__name__} has no tiles")

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor | None, v: Tensor | None, layer: Attention, batch: ForwardBatch) -> Tensor:
        """See Attention.forward."""
