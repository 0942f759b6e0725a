"""Attention over fixed rectangles: a row's bits are the same as a decode, at any place of any chunk, in any company."""

import random
import sys

import pytest
import torch

from sglang.srt.configs.model_config import KVLayerSpec
from sglang.srt.layers.attention import torch_native_tiles
from sglang.srt.layers.attention.forward_batch import Attention, ForwardBatch
from sglang.srt.layers.attention.torch_native_tiles import TILE, TorchNativeTilesBackend, rectangle, row_sizes
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.separate_kv import SeparateKV

register_cpu_ci(est_time=25, suite="base-a-test-cpu")

torch.set_num_threads(1)
LENGTHS = [3, 40, 700, 260]  # tokens of the requests that keep each other company
# query heads, KV heads, head size, window
GEOMETRIES = {
    "mini_sliding": (4, 1, 256, 128),
    "mini_full": (4, 1, 512, None),
    "grouped": (6, 2, 64, 48),
    "one_head_each": (2, 2, 16, 33),
    "many_queries_a_key": (40, 1, 16, None),
}


class Cache:
    """Requests of random q, k and v, served through one pool and one table; slots are scattered."""

    def __init__(self, name: str, dtype: torch.dtype):
        heads, kv_heads, dim, window = GEOMETRIES[name]
        torch.manual_seed(0)
        total = sum(LENGTHS)
        self.layer = Attention(heads, kv_heads, dim, dim**-0.5, kv_layer=0, sliding_window=window)
        self.pool = SeparateKV([KVLayerSpec(0, False, kv_heads, dim)], total, total, dtype, "cpu")
        self.qkv = [[torch.randn(n, h, dim).to(dtype) for h in (heads, kv_heads, kv_heads)] for n in LENGTHS]
        slots = (torch.randperm(total) + 1).int().split(LENGTHS)
        self.table = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int32)
        for row, mine in zip(self.table, slots, strict=True):
            row[: len(mine)] = mine

    def attend(self, extends: list[tuple[int, int, int]], decodes: list[tuple[int, int]]) -> list[torch.Tensor]:
        """One step: (request, first position, end) of chunks and (request, position) of decodes -> a result for each,
        [tokens, heads * dim]. What lies before them must have been computed."""
        parts = [*extends, *((request, position, position + 1) for request, position in decodes)]
        spans = [slice(start, end) for _, start, end in parts]
        q, k, v = (
            torch.cat([self.qkv[part[0]][i][span] for part, span in zip(parts, spans, strict=True)]) for i in range(3)
        )
        slots = torch.cat([self.table[part[0], span] for part, span in zip(parts, spans, strict=True)]).long()
        new = [end - start for _, start, end in parts]
        backend = TorchNativeTilesBackend()
        batch = ForwardBatch(
            input_ids=torch.zeros(sum(new), dtype=torch.int64),
            positions=torch.cat([torch.arange(start, end) for _, start, end in parts]),
            req_pool_indices=torch.tensor([request for request, _, _ in parts]),
            seq_lens=torch.tensor([end for _, _, end in parts]),
            extend_seq_lens=torch.tensor(new),
            extend_prefix_lens=torch.tensor([start for _, start, _ in parts]),
            extend_start_loc=torch.tensor([sum(new[:i]) for i in range(len(new))]),
            out_cache_loc=slots,
            out_cache_loc_swa=slots,
            req_to_token=self.table,
            req_to_token_swa=self.table,
            num_extends=len(extends),
            seq_lens_cpu=[end for _, _, end in parts],
            extend_seq_lens_cpu=new,
            kv_pool=self.pool,
            attn_backend=backend,
        )
        backend.prepare(batch)
        return list(self.layer(q, k, v, batch).split(new))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_row_has_one_result(name: str, dtype: torch.dtype):
    cache = Cache(name, dtype)
    want = [cache.attend([(request, 0, n)], [])[0] for request, n in enumerate(LENGTHS)]
    rng = random.Random(name)
    done = [0] * len(LENGTHS)
    while done != LENGTHS:  # chunks of random sizes and decodes beside each other
        left = [request for request, n in enumerate(LENGTHS) if done[request] < n]
        chosen = rng.sample(left, rng.randint(1, len(left)))
        chunks, decodes = [], []
        for request in chosen:
            end = min(LENGTHS[request], done[request] + rng.choice([1, 2, 5, TILE - 1, TILE, TILE + 1, 90, 200]))
            if end - done[request] == 1:
                decodes.append((request, done[request]))
            else:
                chunks.append((request, done[request], end))
        for (request, start, end), got in zip(
            [*chunks, *((request, position, position + 1) for request, position in decodes)],
            cache.attend(chunks, decodes),
            strict=True,
        ):
            assert torch.equal(got, want[request][start:end]), (request, start, end)
            done[request] = end
    everywhere = [
        (request, position) for request, n in enumerate(LENGTHS) for position in rng.sample(range(n), min(n, 40))
    ]
    rng.shuffle(everywhere)
    for (request, position), got in zip(everywhere, cache.attend([], everywhere), strict=True):
        assert torch.equal(got[0], want[request][position]), (request, position)
    for request, position in everywhere[::7]:
        assert torch.equal(cache.attend([], [(request, position)])[0][0], want[request][position])


@pytest.mark.parametrize("window", [None, 1, 2, TILE, TILE + 1, 100, 128])
def test_rectangles_hold_what_rows_see(window: int | None):
    """And rows of a tile have the same one."""
    for position in range(5 * TILE):
        begin, end = rectangle(position, window)
        seen_from = 0 if window is None else max(0, position - window + 1)
        assert begin <= seen_from and position < end and begin % TILE == end % TILE == 0
        assert (begin, end) == rectangle(position // TILE * TILE, window)
        assert window is None or end - begin <= window + 2 * TILE


def test_a_machine_on_which_no_size_agrees_is_told(monkeypatch):
    monkeypatch.setattr(torch_native_tiles, "agreeing_sizes", lambda *_: ())
    with pytest.raises(ValueError, match="--enable-deterministic-inference"):
        row_sizes.__wrapped__(64, 64)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
