"""ForwardBatch: everything one forward step needs, as device tensors. It knows nothing of requests or scheduling."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sglang.srt.ops.attention.kv_slots import KVSlots

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base import AttentionBackend
    from sglang.srt.mem_cache.memory_pool import HybridKVPool


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
    out_cache_loc: Tensor  # [T] int64, full-pool slots the step writes
    out_cache_loc_swa: Tensor  # [T] int64, sliding-pool slots
    req_to_token: Tensor  # [rows, max_len] int32
    req_to_token_swa: Tensor  # [rows, max_len] int32
    num_extends: int
    seq_lens_cpu: list[int]
    extend_seq_lens_cpu: list[int]
    kv_pool: "HybridKVPool"
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
