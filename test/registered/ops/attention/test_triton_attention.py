"""The Triton attention kernels and backend against float64: on a GPU at the sizes served, without one in Triton's
interpreter at small sizes; every week at more places and types than on each run.

Every pool holds NaN but where a query may look, the padding slot too: what must not be seen must not be read.
"""

import random
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sglang.test.triton_testing import DEVICE, exact_products  # noqa: F401, a fixture

# isort: split
from sglang.srt.configs.kv_layers import KVLayerSpec
from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.layers.attention.forward_batch import Attention, ForwardBatch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeBackend
from sglang.srt.layers.attention.triton_backend import TritonBackend
from sglang.srt.ops.attention import key_blocks as key_blocks_module
from sglang.srt.ops.attention.decode_attention import decode_attention, decode_attention_reference
from sglang.srt.ops.attention.extend_attention import (
    Tree,
    can_use,
    extend_attention,
    extend_attention_reference,
    make_work,
    tokens_per_tile,
)
from sglang.srt.ops.attention.key_blocks import NO_KEY_BLOCKS, KeyBlocks, max_key_blocks
from sglang.srt.ops.attention.tiles import HEAD_SIZES, DecodeTile, ExtendTile, decode_tile, extend_tile, key_block_tiles
from sglang.srt.ops.invariance.mode import batch_invariant
from sglang.srt.ops.products.matmul import instructions_agree
from sglang.test.ci.ci_register import is_weekly, register_cpu_ci, register_cuda_ci
from sglang.test.paged_harness import PagedHarness
from sglang.test.separate_kv import SeparateKV

register_cpu_ci(est_time=25, suite="base-a-test-cpu")
register_cpu_ci(est_time=50, suite="weekly-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

ON_GPU = DEVICE == "cuda"
WHOLE = ON_GPU or is_weekly()  # key blocks are many programs, slow in the interpreter
GROW = 16 if ON_GPU else 1  # lengths and windows are this much larger on a GPU
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The largest error allowed beside twice that of the same formula in torch, and in all: outputs are of order 1.
SLACK = {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}
BOUND = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def make_case(rows, heads, dtype, window=None, seed=0):
    """rows: (cached, new) tokens a request; heads: (Hq, Hk, D, DV). Caches, q and the tables the kernels take."""
    num_heads, kv_heads, dim, v_dim = heads
    torch.manual_seed(seed)
    rng = random.Random(seed)
    slots = sum(cached + new for cached, new in rows) + 50
    free = rng.sample(range(1, slots), slots - 1)
    table_rows = rng.sample(range(len(rows) + 3), len(rows))
    longest = max(cached + new for cached, new in rows)
    table = torch.randint(1, slots, (len(rows) + 3, longest + 5), dtype=torch.int32)  # stale beyond a request's length
    k_cache = torch.full((slots, kv_heads, dim), torch.nan)
    v_cache = torch.full((slots, kv_heads, v_dim), torch.nan)
    for row, (cached, new) in zip(table_rows, rows, strict=True):
        dead = 0 if window is None else max(0, cached - window + 1)
        live = [free.pop() for _ in range(cached + new - dead)]
        table[row, : cached + new] = torch.tensor([0] * dead + live)
        k_cache[live] = torch.randn(len(live), kv_heads, dim)
        v_cache[live] = torch.randn(len(live), kv_heads, v_dim)
    cached, new = (torch.tensor(x, device=DEVICE) for x in zip(*rows, strict=True))
    qkv = torch.randn(int(new.sum()), num_heads + 2, dim, device=DEVICE).to(dtype)
    qkv[:, :: num_heads + 1] = torch.nan
    return SimpleNamespace(
        q=qkv[:, 1:-1],  # a strided view, as it comes from the qkv product
        k_cache=k_cache.to(DEVICE, dtype),
        v_cache=v_cache.to(DEVICE, dtype),
        out=torch.full((len(qkv), num_heads, v_dim), torch.nan, dtype=dtype, device=DEVICE),
        table=table.to(DEVICE),
        req_rows=torch.tensor(table_rows, device=DEVICE),
        cached=cached,
        new=new,
        rows=rows,
        scale=dim**-0.5,
        window=window,
    )


def extend(case, tile=None, tree=None, key_blocks=NO_KEY_BLOCKS):
    tile = tile or (extend_tile((9, 0), case.q.shape[-1], case.q.itemsize) if ON_GPU else ExtendTile(32, 16, 4, 1))
    tokens = tokens_per_tile(case.q.shape[1] // case.k_cache.shape[1], tile)
    extend_attention(
        case.q,
        case.k_cache,
        case.v_cache,
        case.out,
        case.table,
        case.req_rows,
        case.cached,
        case.new,
        case.new.cumsum(0) - case.new,
        torch.from_numpy(make_work(*zip(*case.rows, strict=True), tokens)).to(DEVICE),
        tile,
        case.scale,
        case.window,
        tree,
        key_blocks,
    )
    return case.out


def extend_reference(case, dtype, tree=None):
    q, k_cache, v_cache = (x.to(dtype) for x in (case.q, case.k_cache, case.v_cache))
    return extend_attention_reference(
        q, k_cache, v_cache, case.table, case.req_rows, case.cached, case.new, case.scale, case.window, tree
    )


def decode(case, splits, tile=None, paths=None, key_blocks=NO_KEY_BLOCKS):
    by_table = ON_GPU and not key_blocks.length
    tile = tile or (decode_tile((9, 0), case.q.shape[-1], case.q.itemsize) if by_table else DecodeTile(16, 4, 1))
    scratch = torch.full((splits * case.out.numel() * 2,), torch.nan, device=DEVICE)
    decode_attention(
        case.q,
        case.k_cache,
        case.v_cache,
        case.out,
        case.table,
        case.req_rows,
        case.cached + case.new,
        scratch,
        splits,
        tile,
        case.scale,
        case.window,
        paths,
        key_blocks,
    )
    return case.out


def check(got, case, tree=None):
    """Flash attention's own rule: at most twice the error of the plain formula in the same dtype, and a bound."""
    assert got.dtype == case.q.dtype
    exact = extend_reference(case, torch.float64, tree)
    error = (got.double() - exact).abs().max().item()
    plain = (extend_reference(case, case.q.dtype, tree).double() - exact).abs().max().item()
    assert error <= min(2 * plain + SLACK[case.q.dtype], BOUND[case.q.dtype]), (error, plain)  # false for NaN


def grown(rows, window):
    """A request of 0 or 1 new tokens has one, at any size."""
    rows = [(cached * GROW, new * GROW if new > 1 else 1) for cached, new in rows]
    return rows, None if window is None else window * GROW


ROWS = {
    "whole_prompt": [(0, 45)],
    "one_token": [(0, 1), (33, 1)],
    "ragged_with_prefixes": [(3, 9), (40, 21), (7, 1), (16, 16)],
}


@pytest.mark.parametrize("window", [None, 5, 20], ids=["full", "window_below_a_tile", "window"])
@pytest.mark.parametrize("name", ROWS)
def test_extend(name, window):
    rows, window = grown(ROWS[name], window)
    case = make_case(rows, (4, 2, 32, 32), torch.float32, window)
    check(extend(case), case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20], ids=["full", "window"])
@pytest.mark.parametrize("name", ROWS if ON_GPU else ["ragged_with_prefixes"])
def test_extend_in_half_precision(name, window, dtype):
    rows, window = grown(ROWS[name], window)
    case = make_case(rows, (4, 2, 32, 32), dtype, window)
    check(extend(case), case)


HEADS = {
    "group_of_1": (2, 2, 32, 32),
    "group_of_3": (6, 2, 32, 32),
    "group_of_5": (5, 1, 16, 16),
    "gemma_sliding": (4, 2, 256, 256),
    "gemma_full": (8, 1, 512, 512),
    "odd_head_size": (2, 1, 48, 48),
    "values_smaller": (4, 2, 80, 32),
    "values_larger": (2, 1, 32, 112),
    "values_narrow": (4, 2, 64, 32),
    "values_narrowest": (4, 2, 128, 16),
    "usual_llama": (8, 2, 128, 128),
}


@pytest.mark.parametrize("name", HEADS)
def test_head_shapes(name):
    rows, window = grown([(20, 9), (2, 3)], 17)
    case = make_case(rows, HEADS[name], torch.bfloat16, window)
    check(extend(case), case)
    rows, window = grown([(40, 0), (3, 0)], 33)
    case = make_case(rows, HEADS[name], torch.bfloat16, window)
    check(decode(case, splits=2), case)


def test_group_beyond_a_program():
    """More query heads of a KV head than a tile has rows: further programs take them."""
    case = make_case([(30, 2)], (70, 1, 16, 16), torch.float32)
    check(extend(case, ExtendTile(32, 16, 4, 1)), case)
    case = make_case([(30, 1)], (70, 1, 16, 16), torch.float32)
    check(decode(case, splits=2), case)


@pytest.mark.parametrize("dtype", DTYPES if ON_GPU else [torch.float32])
@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 5, 40], ids=["full", "window_below_a_tile", "window"])
def test_decode(window, splits, dtype):
    """Eight splits are more than the shorter requests have tiles."""
    rows, window = grown([(0, 0), (15, 0), (16, 0), (90, 0)], window)
    case = make_case(rows, (4, 2, 32, 32), dtype, window)
    check(decode(case, splits), case)


@pytest.mark.parametrize("splits", [1, 4])
def test_decode_row_without_keys(splits):
    """A padding row of a CUDA graph has length 0; it gives zeros and leaves the others alone."""
    case = make_case([(20, 1), (0, 1)], (4, 2, 32, 32), torch.float32)
    want = decode(case, splits).clone()
    case.cached[1] -= 1
    case.out.fill_(torch.nan)
    got = decode(case, splits)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], torch.zeros_like(got[1]))


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("window", [None, 3, 40])
def test_decode_rows_on_paths_of_a_tree(window, splits):
    """The same bits as rows of requests of their own that hold the path's slots."""
    parents = [0, 0, 0, 1, 1, 2, 3, 6] if WHOLE else [0, 0, 0, 1, 3]
    paths = [[0]]
    for node in range(1, len(parents)):
        paths.append([*paths[parents[node]], node])
    nodes, longest = len(parents), max(map(len, paths))
    rows, window = [(n * GROW, nodes) for n in ((30, 1, 17) if WHOLE else (30, 1))], window and window * GROW
    case = make_case(rows, (4, 2, 32, 32), torch.float32, window)
    flat = [(request, n, path) for request, (n, _) in enumerate(case.rows) for path in paths]
    table, own = case.table, torch.zeros(len(flat), case.table.shape[1], dtype=torch.int32, device=DEVICE)
    slots = torch.zeros(len(flat), longest, dtype=torch.int32, device=DEVICE)
    for row, (request, n, path) in enumerate(flat):
        of_request = table[case.req_rows[request]]
        own[row, :n] = of_request[:n]
        own[row, n : n + len(path)] = slots[row, : len(path)] = of_request[[n + node for node in path]]
    case.cached = torch.tensor([n + len(path) for _, n, path in flat], device=DEVICE)
    case.new = torch.zeros_like(case.cached)
    case.req_rows = case.req_rows.repeat_interleave(nodes)
    got = decode(case, splits, paths=(slots, nodes)).clone()
    case.table, case.req_rows = own, torch.arange(len(flat), device=DEVICE)
    assert torch.equal(got, decode(case, splits)) and got.isfinite().all()


@pytest.mark.parametrize("window", [None, 2, 12])
def test_tree_of_drafts(window):
    """Request 0 is a tree over two tiles, request 1 a chain. Siblings must not see each other, and windows count
    positions: a token's place among the new ones is often higher."""
    parents = [[-1, 0, 0, 2, 3, 0, 2, 4, 7, 1, 8, 10], [-1, 0, 1]]
    rows = [(30, 12), (4, 3)]
    masks, positions = [], []
    for (cached, new), parent in zip(rows, parents, strict=True):
        mask = torch.eye(new, dtype=torch.bool)
        for child in range(1, new):
            mask[child] |= mask[parent[child]]
        masks.append(mask)
        positions.append(cached + mask.sum(1) - 1)
    visible = torch.cat([mask.flatten() for mask in masks]).to(DEVICE)
    tree = Tree(torch.cat(positions).to(DEVICE), visible, torch.tensor([0, 144], device=DEVICE))
    case = make_case(rows, (4, 2, 32, 32), torch.float32, window)
    check(extend(case, ExtendTile(16, 16, 4, 1), tree), case, tree)
    with_tree = case.out[-3:].clone()
    assert torch.equal(extend(case, ExtendTile(16, 16, 4, 1))[-3:], with_tree)  # a chain's mask is the causal one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.usefixtures("exact_products")
def test_bits_do_not_depend_on_chunks_or_batch(window, dtype):
    """A prompt at once beside another one, against two chunks of it: the first alone, the second beside the other."""
    rows, window = grown([(0, 40), (0, 9)], window)
    case = make_case(rows, (3, 1, 32, 32), dtype, window)
    whole, q, other, cut = extend(case).clone(), case.q, rows[1], 23 * GROW
    for start, end, chunk in [(0, cut, [(0, cut)]), (cut, len(q), [(cut, rows[0][1] - cut), other])]:
        case.rows, case.q, case.out = chunk, q[start:end], torch.full_like(whole[start:end], torch.nan)
        case.cached, case.new = (torch.tensor(x, device=DEVICE) for x in zip(*chunk, strict=True))
        assert torch.equal(extend(case), whole[start:end])


SHORT = KeyBlocks(32, False)  # for tests
GROWING = KeyBlocks(16, True)  # 8 of 16 keys, 8 of 32, ..
FEW, MANY = ExtendTile(16, 16, 4, 1), ExtendTile(64, 16, 4, 1)  # rows


BLOCK_CASES = [(None, SHORT), (None, GROWING), (5, SHORT), (40, SHORT)]
BLOCK_DTYPES = [
    (window, key_blocks, dtype)
    for window, key_blocks in BLOCK_CASES
    for dtype in (DTYPES if ON_GPU else [torch.float32, torch.bfloat16])
    if WHOLE or dtype == torch.float32 or (window, key_blocks) == (5, SHORT)
]


@pytest.mark.parametrize(("window", "key_blocks", "dtype"), BLOCK_DTYPES)
def test_key_blocks_against_float64(window, key_blocks, dtype):
    case = make_case([(3, 30), (170, 21), (31, 1)], (4, 2, 32, 32), dtype, window)
    check(extend(case, MANY, key_blocks=key_blocks), case)
    case = make_case([(0, 1), (31, 1), (32, 1), (128, 1), (200, 1)], (4, 2, 32, 32), dtype, window)
    check(decode(case, 1, key_blocks=key_blocks), case)
    check(decode(case, max_key_blocks(key_blocks, window or 201), key_blocks=key_blocks), case)


@pytest.mark.parametrize(("window", "key_blocks", "dtype"), BLOCK_DTYPES)
@pytest.mark.usefixtures("exact_products")
def test_a_row_over_key_blocks_has_one_result(window, key_blocks, dtype):
    """As part of a prompt, of a chunk, or a decode by one program or several; beside a request or alone."""
    total = 170 if key_blocks.growing else 100
    heads, rows = (3, 1, 48, 32), [(0, total), (0, 9)]
    case = make_case(rows, heads, dtype, window)
    case.k_cache.nan_to_num_(0.25), case.v_cache.nan_to_num_(0.25)  # of windows that chunks will look back to
    whole, q = extend(case, MANY, key_blocks=key_blocks).clone(), case.q
    assert torch.equal(extend(case, FEW, key_blocks=key_blocks), whole)

    def part(start: int, chunk: list[tuple[int, int]], requests: list[int]) -> None:
        count = sum(new for _, new in chunk)
        case.rows, case.q, case.out = chunk, q[start : start + count], torch.full_like(whole[:count], torch.nan)
        case.cached, case.new = (torch.tensor(x, device=DEVICE) for x in zip(*chunk, strict=True))
        case.req_rows = all_rows[requests]

    all_rows, rest = case.req_rows, (45, total - 45)
    for start, chunk, requests in [
        (0, [(0, 45)], [0]),
        (45, [rest, (0, 9)], [0, 1]),
        (total - 3, [(total - 3, 3)], [0]),
    ]:
        part(start, chunk, requests)
        assert torch.equal(extend(case, MANY, key_blocks=key_blocks), whole[start : start + len(case.q)])
    for position in (0, 1, 30, 31, 32, 33, 63, 64, total - 1) if WHOLE else (0, 31, 32, total - 1):
        part(position, [(position, 1)], [0])
        for splits in (1, max_key_blocks(key_blocks, window or total)):
            got = decode(case, splits, key_blocks=key_blocks)
            assert torch.equal(got, whole[position : position + 1]), (position, splits)
    part(95, [(95 + i, 1) for i in range(2)], [0] * 2)
    for splits in (1, max_key_blocks(key_blocks, window or 100)):
        assert torch.equal(decode(case, splits, key_blocks=key_blocks), whole[95:97])


def test_a_row_without_keys_over_key_blocks():
    case = make_case([(20, 1), (0, 1)], (4, 2, 32, 32), torch.float32)
    case.cached[1] -= 1
    for key_blocks in (SHORT, GROWING):
        for splits in (1, 4):
            assert torch.equal(decode(case, splits, key_blocks=key_blocks)[1], torch.zeros_like(case.out[1]))


@pytest.mark.skipif(not ON_GPU, reason="tensor cores have no interpreter")
@pytest.mark.parametrize("dim", HEAD_SIZES)
def test_served_tiles_over_key_blocks_agree(dim):
    """Prefill and decode by the tiles that this GPU is served with, at the sizes of Gemma 4."""
    window = 1024 if dim == 256 else None
    heads = (16, 8 if dim == 256 else 2, dim, dim)
    case = make_case([(0, 1500)], heads, torch.bfloat16, window)
    case.q.copy_(case.q / 16)  # probabilities spread over many keys
    extend_by, decode_by = key_block_tiles(torch.cuda.get_device_capability(), dim, 2, instructions_agree(0))
    key_blocks = key_blocks_module.key_blocks_for(window)
    whole = extend(case, extend_by, key_blocks=key_blocks).clone()
    small = ExtendTile(16, extend_by.block_n, 4, 1)
    assert torch.equal(extend(case, small, key_blocks=key_blocks), whole)
    case.q, case.out = case.q[-40:], torch.full_like(whole[:40], torch.nan)
    case.cached, case.new = torch.arange(1460, 1500, device=DEVICE), torch.ones(40, dtype=torch.int64, device=DEVICE)
    case.req_rows = case.req_rows.repeat(40)
    for splits in (1, max_key_blocks(key_blocks, window or 1500)):
        for tile in (decode_by, decode_by.for_rows(1)):
            assert torch.equal(decode(case, splits, tile, key_blocks=key_blocks), whole[-40:]), (splits, tile)


def test_slots_beyond_32_bits():
    """Slot times stride exceeds 2^31 elements. Memory that is never touched is never taken on a CPU."""
    case = make_case([(20, 12)], (2, 1, 64, 64), torch.float16)
    far = (1 << 31) // 64
    caches = {}
    for name in ("k_cache", "v_cache"):
        small = getattr(case, name)
        big = torch.empty(far + len(small), 1, 64, dtype=small.dtype, device=DEVICE)
        big[far:] = small
        caches[name] = big
    want = extend(case).clone()
    case.k_cache, case.v_cache, case.table = caches["k_cache"], caches["v_cache"], case.table + far
    assert torch.equal(extend(case), want)
    want = want[-1:].clone()
    case.q, case.out, case.cached, case.new = case.q[-1:], case.out[-1:], case.cached + 11, case.new - 11
    torch.testing.assert_close(decode(case, splits=2), want, rtol=0, atol=2e-3)


def test_can_use_refuses_what_the_kernels_can_not_read():
    case = make_case([(3, 4)], (4, 2, 32, 32), torch.float32)
    q, k, v = case.q, case.k_cache, case.v_cache
    assert can_use(q, k, v)
    assert not can_use(q.double(), k.double(), v.double())
    assert not can_use(q.half(), k, v)
    assert not can_use(q[..., :24], k[..., :24], v)
    assert not can_use(q[:, :3], k, v)
    assert not can_use(q, k, v.transpose(1, 2).contiguous().transpose(1, 2))


def test_check_names_every_reason():
    specs = [KVLayerSpec(0, True, 2, 16), KVLayerSpec(1, False, 1, 512)]
    assert TritonBackend.check(specs, 4, torch.bfloat16, (9, 0)) == []
    for capability in [(8, 0), (9, 0)]:
        assert TritonBackend.check([KVLayerSpec(0, False, 2, 128)], 4, torch.bfloat16, capability) == []
    bad = [KVLayerSpec(0, True, 3, 24), KVLayerSpec(1, False, 1, 576)]
    reasons = TritonBackend.check(bad, 4, torch.float64, (7, 5))
    for part in ("7.5 is older", "float64", "head size 24", "head size 576", "4 query heads"):
        assert sum(part in reason for reason in reasons) == 1
    assert len(reasons) == 5


class AttentionOnly(nn.Module):
    """A model of attention layers alone, for the paged harness: sliding, full, and one that reads the first's KV."""

    SPECS = [KVLayerSpec(0, True, 2, 32), KVLayerSpec(1, False, 1, 64)]

    def __init__(self, window):
        super().__init__()
        self.tp = TensorParallel()
        self.table = torch.randn(100, 4 * 64, device=DEVICE)  # features of a token, from which q, k and v are cut
        self.layers = [
            Attention(4, 2, 32, 0.3, kv_layer=0, sliding_window=window),
            Attention(4, 1, 64, 0.2, kv_layer=1),
            Attention(4, 2, 32, 0.5, kv_layer=0, sliding_window=window),
        ]

    def forward(self, ids, positions, batch):
        features = self.table[ids]
        sliding, full = features[:, : 4 * 32].unflatten(1, (4, 32)), features.unflatten(1, (4, 64))
        return torch.cat(
            [
                self.layers[0](sliding, sliding[:, 1:3], sliding[:, :2], batch),
                self.layers[1](full, full[:, 1:2], full[:, 3:], batch),
                self.layers[2](sliding.flip(1), None, None, batch),
            ],
            dim=1,
        )

    def compute_logits(self, hidden):
        return hidden


@pytest.mark.parametrize("window", [5, 16])
def test_backend_equals_torch_native(window):
    """Over prefills, a mixed step with a chunk and decodes; slots behind the window are given back."""
    config = SimpleNamespace(
        kv_layers=AttentionOnly.SPECS, torch_dtype=torch.float32, sliding_window=window, context_len=96
    )
    rng = random.Random(0)
    steps = [{0: 19, 1: 4}, {1: 13, 2: 11, 0: 1}, {2: 1, 0: 1, 1: 1}]
    steps = [{row: rng.choices(range(100), k=new) for row, new in step.items()} for step in steps]
    torch.manual_seed(0)
    model, results = AttentionOnly(window), []
    for backend in (TorchNativeBackend(), TritonBackend(config.kv_layers, 4, 8, window, 96, torch.float32, DEVICE)):
        harness = PagedHarness(model, config, device=DEVICE)
        harness.backend = backend
        results.append([harness.step(step) for step in steps])
    for want, got in zip(*results, strict=True):
        for row in want:
            torch.testing.assert_close(got[row], want[row], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("exact_products")
def test_backend_in_batch_invariant_mode(monkeypatch):
    """A request in one step, in chunks and token by token, alone and in company."""
    window = 40
    monkeypatch.setattr(key_blocks_module, "WINDOW_BLOCK", 32)
    monkeypatch.setattr(key_blocks_module, "FIRST_BLOCK", 16)
    config = SimpleNamespace(
        kv_layers=AttentionOnly.SPECS, torch_dtype=torch.float32, sliding_window=window, context_len=96
    )
    torch.manual_seed(0)
    model, ids = AttentionOnly(window), random.Random(0).choices(range(100), k=75)
    with batch_invariant():

        def serve(steps: list[dict[int, int]]) -> torch.Tensor:
            """steps: new tokens by request. Results of request 0."""
            harness = PagedHarness(model, config, device=DEVICE)
            harness.backend = TritonBackend(config.kv_layers, 4, 8, window, 96, torch.float32, DEVICE)
            done, results = dict.fromkeys(range(5), 0), []
            for step in steps:
                given = {row: ids[done[row] : done[row] + new] for row, new in step.items()}
                results.append(harness.step(given)[0])
                for row, new in step.items():
                    done[row] += new
            return torch.cat(results)

        want = serve([{0: 75}])
        torch.testing.assert_close(want, serve_natively(model, config, ids), rtol=1e-5, atol=1e-5)
        assert torch.equal(serve([{0: 33}, {1: 20, 0: 40}, {1: 1, 0: 1}, {2: 5, 0: 1}]), want)
        crowd = {0: 1, 1: 1, 2: 1}
        assert torch.equal(serve([{0: 72, 1: 9, 2: 20}, *[crowd] * 2, {0: 1}]), want)


def serve_natively(model, config, ids):
    return PagedHarness(model, config, device=DEVICE).step({0: ids})[0]


@pytest.mark.skipif(not ON_GPU, reason="needs CUDA graphs")
def test_decode_step_in_a_cuda_graph_and_no_waits():
    """prepare and forward never wait for the device; a captured decode step follows lengths and slots that change."""
    spec, batch_size, dtype = KVLayerSpec(0, False, 2, 64), 3, torch.bfloat16
    pool = SeparateKV([spec], 400, 400, dtype, DEVICE)
    for buffer in pool.get_kv(0):
        buffer.normal_()
    backend = TritonBackend([spec], 8, batch_size, None, 128, dtype, DEVICE)
    layer = Attention(8, 2, 64, 0.125, kv_layer=0)
    table = torch.randint(1, 400, (4, 128), dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([5, 60, 100], device=DEVICE)
    ones = torch.ones_like(lengths)

    def step(num_extends):
        slots = torch.arange(1, 4, device=DEVICE)
        return ForwardBatch(
            input_ids=ones,
            positions=lengths - 1,
            req_pool_indices=torch.arange(3, device=DEVICE),
            seq_lens=lengths,
            extend_seq_lens=ones,
            extend_prefix_lens=lengths - 1,
            extend_start_loc=torch.arange(3, device=DEVICE),
            out_cache_loc=slots,
            out_cache_loc_swa=slots,
            req_to_token=table,
            req_to_token_swa=table,
            num_extends=num_extends,
            seq_lens_cpu=[5, 60, 100],
            extend_seq_lens_cpu=[1, 1, 1],
            kv_pool=pool,
            attn_backend=backend,
        )

    q = torch.randn(batch_size, 8, 64, dtype=dtype, device=DEVICE)
    k, v = torch.randn(2, batch_size, 2, 64, dtype=dtype, device=DEVICE)
    batch, mixed = step(0), step(1)
    for one in (mixed, batch):
        backend.prepare(one)
        layer(q, k, v, one)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        backend.prepare(mixed)
        layer(q, k, v, mixed)
        backend.prepare(batch)
        layer(q, k, v, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(q, k, v, batch)
    lengths.copy_(torch.tensor([128, 1, 17]))
    q.normal_()
    graph.replay()
    args = (table, batch.req_pool_indices, lengths, 0.125)
    want = decode_attention_reference(q.double(), *(x.double() for x in pool.get_kv(0)), *args)
    torch.testing.assert_close(out.double(), want.flatten(1), rtol=0, atol=BOUND[dtype])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
