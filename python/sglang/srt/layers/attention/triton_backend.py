"""Attention on GPUs by our Triton kernels: extend for prefill chunks, decode for rows of one new token.

It chooses tiles and splits, which follow from the GPU, the head sizes and the batch size alone, and uploads the list of
prefill tiles once a step. A step of decodes makes nothing on the host and allocates outputs only, so a CUDA graph can
hold it. How attention is computed is the kernels' business.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.layers.attention.forward_batch import Attention, AttentionBackend, ForwardBatch
from sglang.srt.ops.attention.decode_attention import (
    decode_attention,
    key_block_scratch_size,
    key_block_splits,
    num_splits,
    scratch_size,
)
from sglang.srt.ops.attention.extend_attention import extend_attention, make_work, tokens_per_tile
from sglang.srt.ops.attention.key_blocks import NO_KEY_BLOCKS, key_blocks_for, max_key_blocks
from sglang.srt.ops.attention.tiles import DecodeTile, ExtendTile, decode_tile, extend_tile, key_block_tiles
from sglang.srt.ops.invariance.mode import enabled
from sglang.srt.ops.invariance.row_room import empty_rows
from sglang.srt.ops.products.matmul import instructions_agree
from sglang.srt.utils.device_copies import to_device
from sglang.srt.utils.triton_runtime import HAS_TRITON, INTERPRETED

# What the interpreter stands in for: Hopper's tiles, and few multiprocessors, hence few programs.
INTERPRETED_CAPABILITY, INTERPRETED_SM_COUNT = (9, 0), 4


@dataclass(frozen=True)
class _Geometry:
    """How layers of one head geometry run."""

    extend: ExtendTile
    tokens: int  # query tokens of an extend tile
    decode: DecodeTile


class TritonBackend(AttentionBackend):
    """Serves layers with the KV geometries of `kv_layers` and `num_heads` query heads (per rank), up to `max_batch`
    decode rows a step, which see up to `sliding_window` or `longest` keys. Its scratch is shared by all layers: they
    run one after the other on one stream."""

    def __init__(
        self,
        kv_layers: list[KVLayerSpec],
        num_heads: int,
        max_batch: int,
        sliding_window: int | None,
        longest: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        self.device = torch.device(device)
        capability, self.sm_count, hopper = INTERPRETED_CAPABILITY, INTERPRETED_SM_COUNT, False
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            capability, self.sm_count = (properties.major, properties.minor), properties.multi_processor_count
            hopper = enabled() and instructions_agree(torch.cuda.current_device())
        self._most_key_blocks = {  # of a row, by whether the layer slides
            sliding: max_key_blocks(key_blocks_for(window), window or longest)
            for sliding, window in ((False, None), (True, sliding_window))
        }
        self._geometries: dict[tuple[int, int], _Geometry] = {}
        scratch = 0
        for heads, dim, sliding in sorted({(spec.num_kv_heads, spec.head_dim, spec.sliding) for spec in kv_layers}):
            if enabled():
                extend, decode = key_block_tiles(capability, dim, dtype.itemsize, hopper)
                most = self._most_key_blocks[sliding]
                needed = key_block_scratch_size(max_batch, num_heads, heads, dim, self.sm_count, most)
            else:
                extend = extend_tile(capability, dim, dtype.itemsize)
                decode = decode_tile(capability, dim, dtype.itemsize)
                needed = scratch_size(max_batch, num_heads, heads, dim, self.sm_count)
            self._geometries[heads, dim] = _Geometry(extend, tokens_per_tile(num_heads // heads, extend), decode)
            scratch = max(scratch, needed)
        # Query tokens of a prefill tile, for every head geometry.
        self.tile_tokens = sorted({geometry.tokens for geometry in self._geometries.values()})
        self._scratch = torch.empty(scratch, dtype=torch.float32, device=self.device)
        self._work: dict[int, Tensor] = {}  # prefill tiles of the step that prepare() announced, by tokens a tile
        self._paths: dict[bool, tuple[Tensor, int]] = {}  # of that step's draft trees, by whether the layer slides
        self._extend_tokens = 0  # of that step; decode rows of q follow them

    @staticmethod
    def check(
        kv_layers: list[KVLayerSpec], num_heads: int, dtype: torch.dtype, capability: tuple[int, int] | None
    ) -> list[str]:
        """Every reason, a line each, why this backend can't serve such a model; empty if it can.

        `capability` is the GPU's (major, minor), None without a GPU.
        """
        reasons = []
        if not HAS_TRITON:
            reasons.append("the triton package is not installed")
        if capability is None and not INTERPRETED:
            reasons.append("there is no CUDA device")
        if capability is not None and capability < (8, 0):
            reasons.append(f"a GPU of compute capability {capability[0]}.{capability[1]} is older than 8.0")
        if dtype not in (torch.bfloat16, torch.float16, torch.float32):
            reasons.append(f"dtype {dtype} is none of bfloat16, float16 and float32")
        for dim in sorted({spec.head_dim for spec in kv_layers}):
            if dim % 16 or not 16 <= dim <= 512:
                reasons.append(f"head size {dim} is not a multiple of 16 from 16 to 512")
        for heads in sorted({spec.num_kv_heads for spec in kv_layers}):
            if num_heads % heads:
                reasons.append(f"{num_heads} query heads do not divide among {heads} KV heads")
        return reasons

    def prepare(self, batch: ForwardBatch) -> None:
        """Upload the prefill tiles of the step; a step of decodes has none."""
        self._work.clear()
        self._paths.clear()
        if batch.drafts is not None and batch.drafts.paths is not None:
            nodes = batch.drafts.nodes
            before = batch.seq_lens.view(-1, nodes)[:, :1, None] - 1
            places = (before + batch.drafts.paths).flatten(0, 1)
            for sliding, table in ((False, batch.req_to_token), (True, batch.req_to_token_swa)):
                self._paths[sliding] = table[batch.req_pool_indices[:, None], places], nodes
        new = batch.extend_seq_lens_cpu[: batch.num_extends]
        self._extend_tokens = sum(new)
        if batch.is_decode_only:
            return
        prefix = [total - count for total, count in zip(batch.seq_lens_cpu, new, strict=False)]
        works = [make_work(prefix, new, tokens) for tokens in self.tile_tokens]
        parts = to_device(np.concatenate(works), torch.int32, self.device).split([len(work) for work in works])
        self._work.update(zip(self.tile_tokens, parts, strict=True))

    def prepare_prompts(self, work: list[Tensor], tokens: int) -> None:
        """prepare() for a step of prompts with `tokens` new tokens, whose tiles of each of `tile_tokens` are on the
        device already."""
        self._work, self._paths, self._extend_tokens = dict(zip(self.tile_tokens, work, strict=True)), {}, tokens

    def forward(self, q: Tensor, k: Tensor | None, v: Tensor | None, layer: Attention, batch: ForwardBatch) -> Tensor:
        """See Attention.forward."""
        sliding, window = batch.kv_pool.is_sliding(layer.kv_layer), layer.sliding_window
        if k is not None:
            batch.kv_slots(layer.kv_layer).write(k, v)
        k_cache, v_cache = batch.kv_pool.get_kv(layer.kv_layer)
        table = batch.req_to_token_swa if sliding else batch.req_to_token
        geometry = self._geometries[layer.num_kv_heads, layer.head_dim]
        out = empty_rows(len(q), layer.num_heads, v_cache.shape[-1], like=q)
        extends, tokens = batch.num_extends, self._extend_tokens
        key_blocks = key_blocks_for(window) if enabled() else NO_KEY_BLOCKS
        if extends:
            extend_attention(
                q,
                k_cache,
                v_cache,
                out,
                table,
                batch.req_pool_indices,
                batch.extend_prefix_lens,
                batch.extend_seq_lens,
                batch.extend_start_loc,
                self._work[geometry.tokens],
                geometry.extend,
                layer.scale,
                window,
                key_blocks=key_blocks,
            )
        rows = q.shape[0] - tokens
        if rows:
            decode_attention(
                q[tokens:],
                k_cache,
                v_cache,
                out[tokens:],
                table,
                batch.req_pool_indices[extends:],
                batch.seq_lens[extends:],
                self._scratch,
                self._splits(rows, layer),
                geometry.decode.for_rows(rows),
                layer.scale,
                window,
                self._paths.get(sliding),
                key_blocks,
            )
        return out.flatten(1)

    def _splits(self, batch: int, layer: Attention) -> int:
        """Programs that share a decode row's keys."""
        if enabled():
            most = self._most_key_blocks[layer.sliding_window is not None]
            return key_block_splits(batch, layer.num_kv_heads, self.sm_count, most)
        return num_splits(batch, layer.num_kv_heads, self.sm_count)
