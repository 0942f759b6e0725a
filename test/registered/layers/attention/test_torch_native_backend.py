"""Attention in plain torch, both backends, against a loop in float64: ragged batches, cached prefixes, windows, grouped
heads, shared KV, query blocks; and that it reads no slot a query must not see."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.configs.model_config import KVLayerSpec
from sglang.srt.layers.attention import torch_native_backend
from sglang.srt.layers.attention.forward_batch import Attention, DraftRows, ForwardBatch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeBackend
from sglang.srt.layers.attention.torch_native_tiles import TorchNativeTilesBackend
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.separate_kv import SeparateKV

register_cpu_ci(est_time=8, suite="base-a-test-cpu")

SLOTS = 400
BACKENDS = [TorchNativeBackend, TorchNativeTilesBackend]
SPECS = [KVLayerSpec(0, True, 2, 16), KVLayerSpec(1, False, 1, 32)]


def reference(q, k, v, position, window, scale):
    """q [Hq, D], k and v [keys, Hk, D] of positions 0.. -> [Hq * D] in float64."""
    first = 0 if window is None else max(0, position - window + 1)
    group = q.shape[0] // k.shape[1]
    k = k[first : position + 1].double().repeat_interleave(group, 1)
    v = v[first : position + 1].double().repeat_interleave(group, 1)
    scores = torch.einsum("hd,khd->hk", q.double(), k) * scale
    return torch.einsum("hk,khd->hd", scores.softmax(-1), v).flatten()


def make_step(
    rows: list[tuple[int, int]],
    num_extends: int,
    window: int,
    dtype: torch.dtype,
    seed: int = 0,
    backend: type = TorchNativeBackend,
):
    """rows: (cached, new) tokens of each request. Pools hold NaN but for what is visible and slot 0."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    pool = SeparateKV(SPECS, SLOTS, SLOTS, dtype, "cpu")
    for layer in pool.layers:
        for buffer in pool.get_kv(layer):
            buffer[1:] = torch.nan
    table_rows = rng.sample(range(8), len(rows))
    tables = {0: torch.randint(1, SLOTS, (8, 128), dtype=torch.int32), 1: None}
    tables[1] = tables[0].clone()  # what lies beyond a request's length is left over from others
    free = {layer: rng.sample(range(1, SLOTS + 1), SLOTS) for layer in (0, 1)}
    kv, new_slots = {0: [], 1: []}, {0: [], 1: []}
    for spec in SPECS:
        for table_row, (cached, new) in zip(table_rows, rows, strict=True):
            k, v = (torch.randn(cached + new, spec.num_kv_heads, spec.head_dim).to(dtype) for _ in "kv")
            slots = [free[spec.layer].pop() for _ in range(cached + new)]
            dead = max(0, cached - window + 1) if spec.sliding else 0
            tables[spec.layer][table_row, : cached + new] = torch.tensor([0] * dead + slots[dead:])
            buffers = pool.get_kv(spec.layer)
            buffers[0][slots[dead:cached]], buffers[1][slots[dead:cached]] = k[dead:cached], v[dead:cached]
            kv[spec.layer].append((k, v))
            new_slots[spec.layer] += slots[cached:]
    lengths, extends = [c + n for c, n in rows], [n for _, n in rows]
    batch = ForwardBatch(
        input_ids=torch.zeros(sum(extends), dtype=torch.int64),
        positions=torch.cat([torch.arange(c, c + n) for c, n in rows]),
        req_pool_indices=torch.tensor(table_rows),
        seq_lens=torch.tensor(lengths),
        extend_seq_lens=torch.tensor(extends),
        extend_prefix_lens=torch.tensor([c for c, _ in rows]),
        extend_start_loc=torch.tensor([sum(extends[:i]) for i in range(len(rows))]),
        out_cache_loc=torch.tensor(new_slots[1]),
        out_cache_loc_swa=torch.tensor(new_slots[0]),
        req_to_token=tables[1],
        req_to_token_swa=tables[0],
        num_extends=num_extends,
        seq_lens_cpu=lengths,
        extend_seq_lens_cpu=extends,
        kv_pool=pool,
        attn_backend=backend(),
    )
    return SimpleNamespace(batch=batch, kv=kv, rows=rows)


def check(step, layer: Attention, tolerance: float, dtype: torch.dtype) -> None:
    new = sum(n for _, n in step.rows)
    q = torch.randn(new, layer.num_heads, layer.head_dim).to(dtype)
    k, v = (
        torch.cat([pair[which][cached:] for pair, (cached, _) in zip(step.kv[layer.kv_layer], step.rows, strict=True)])
        for which in (0, 1)
    )
    got = layer(q, k, v, step.batch)
    assert got.shape == (new, layer.num_heads * layer.head_dim) and got.dtype == dtype
    again = layer(q, None, None, step.batch)  # a layer that shares this one's KV finds it in the pool
    assert torch.equal(got, again)
    token = 0
    for (keys, values), (cached, count) in zip(step.kv[layer.kv_layer], step.rows, strict=True):
        for position in range(cached, cached + count):
            want = reference(q[token], keys, values, position, layer.sliding_window, layer.scale)
            torch.testing.assert_close(got[token].double(), want, rtol=tolerance, atol=tolerance)
            token += 1


WINDOW = 8
BATCHES = {
    "one_prefill": ([(0, 20)], 1),
    "one_token_prompt": ([(0, 1)], 1),
    "prefix_shorter_and_longer_than_window": ([(3, 9), (30, 5), (7, 1), (8, 8)], 4),
    "decodes": ([(0, 1), (6, 1), (7, 1), (8, 1), (60, 1)], 0),
    "mixed": ([(0, 11), (20, 1), (25, 17), (4, 1), (50, 1)], 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_float64(backend, name, dtype):
    rows, num_extends = BATCHES[name]
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    step = make_step(rows, num_extends, WINDOW, dtype, backend=backend)
    step.batch.attn_backend.prepare(step.batch)
    check(step, Attention(4, 2, 16, 0.3, kv_layer=0, sliding_window=WINDOW), tolerance, dtype)
    check(step, Attention(4, 1, 32, 0.2, kv_layer=1), tolerance, dtype)


TREE_PARENTS = [0, 0, 0, 1, 1, 2, 3, 6]  # of nodes 0 to 7


def path_of(node: int, parents: list[int]) -> list[int]:
    return [0] if node == 0 else [*path_of(parents[node], parents), node]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["line", "tree"])
@pytest.mark.parametrize("cached", [[1], [3, 30, 7, 8, 60]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_see_their_own_path(backend: type, cached: list[int], shape: str, dtype: torch.dtype):
    """Every node sees the tokens before the draft and its ancestors, at the positions of their depths."""
    nodes = len(TREE_PARENTS)
    parents = TREE_PARENTS if shape == "tree" else [0, *range(nodes - 1)]
    paths = [path_of(node, parents) for node in range(nodes)]
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    step = make_step([(n, nodes) for n in cached], 0, WINDOW, dtype, backend=backend)
    batch = step.batch
    batch.req_pool_indices = batch.req_pool_indices.repeat_interleave(nodes)
    batch.seq_lens = torch.tensor([n + len(path) for n in cached for path in paths])
    batch.seq_lens_cpu = [n + nodes for n in cached for _ in paths]
    padded = torch.tensor([path + path[-1:] * (nodes - len(path)) for path in paths])
    batch.drafts = DraftRows(nodes, padded.expand(len(cached), -1, -1) if shape == "tree" else None)
    for layer in (Attention(4, 2, 16, 0.3, kv_layer=0, sliding_window=WINDOW), Attention(4, 1, 32, 0.2, kv_layer=1)):
        q = torch.randn(len(cached) * nodes, 4, layer.head_dim).to(dtype)
        pairs = step.kv[layer.kv_layer]
        new = [torch.cat([pair[i][n:] for pair, n in zip(pairs, cached, strict=True)]) for i in (0, 1)]
        got = layer(q, *new, batch)
        for request, (n, (keys, values)) in enumerate(zip(cached, pairs, strict=True)):
            for node, path in enumerate(paths):
                seen = [*range(n), *(n + i for i in path)]
                row = request * nodes + node
                want = reference(q[row], keys[seen], values[seen], len(seen) - 1, layer.sliding_window, layer.scale)
                torch.testing.assert_close(got[row].double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("block", [1, 5, 8, 16])
def test_query_blocks(block, monkeypatch):
    monkeypatch.setattr(torch_native_backend, "QUERY_BLOCK", block)
    step = make_step([(0, 16), (13, 21), (5, 1)], 2, WINDOW, torch.float32)
    step.batch.attn_backend.prepare(step.batch)
    check(step, Attention(4, 2, 16, 0.3, kv_layer=0, sliding_window=WINDOW), 1e-5, torch.float32)
    check(step, Attention(4, 1, 32, 0.2, kv_layer=1), 1e-5, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_prepare_forgets_the_last_step(backend: type):
    """One backend, two steps of the same shape but other slots."""
    backend = backend()
    for seed in (1, 2):
        step = make_step([(9, 4), (12, 1)], 1, WINDOW, torch.float32, seed)
        step.batch.attn_backend = backend
        backend.prepare(step.batch)
        check(step, Attention(4, 1, 32, 0.2, kv_layer=1), 1e-5, torch.float32)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
