"""The experts in Triton: the sort is exact, products hold against float64, a token's bits ignore its company.

Without a GPU kernels run in Triton's interpreter on small shapes. On one, also at the size of Gemma 4 26B-A4B.
"""

import itertools
import sys

from sglang.test.triton_testing import DEVICE

# isort: split
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sglang.srt.ops.invariance.mode import batch_invariant
from sglang.srt.ops.moe import fused_moe, moe_sum
from sglang.srt.ops.moe.align import align, align_reference, max_blocks
from sglang.srt.ops.moe.config import Tiles, default_tiles
from sglang.srt.ops.moe.fused_experts import fused_experts, fused_experts_reference
from sglang.srt.ops.moe.fused_moe import can_use, choose_tiles, fused_experts_triton
from sglang.srt.ops.moe.topk import topk_softmax
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci

register_cpu_ci(est_time=14, suite="base-a-test-cpu")
register_cuda_ci(est_time=60, stage="base-b", runner_config="1-gpu-large")

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy's, of large gates
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="takes minutes in the interpreter")
WIDE = (Tiles(64, 128, 64, 2), Tiles(64, 128, 64, 1))  # few programs: the interpreter's time is per program and step
NARROW = (Tiles(16, 32, 32, 1), Tiles(16, 64, 64, 3))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def uniform(tokens, experts, k):
    return torch.rand(tokens, experts).topk(k).indices


def same_for_all(tokens, experts, k):
    """The last k experts: every other one is unused."""
    return torch.arange(experts - k, experts).expand(tokens, k).contiguous()


def few_used(tokens, experts, k):
    """Only odd experts, and a token may choose one twice."""
    return torch.randint(0, experts // 2, (tokens, k)) * 2 + 1


ROUTINGS = [uniform, same_for_all, few_used]


def make_case(tokens, experts, k, hidden=64, intermediate=32, dtype=torch.bfloat16, routing=uniform):
    x = torch.randn(tokens, hidden, device=DEVICE)
    gate_up = torch.randn(experts, 2 * intermediate, hidden, device=DEVICE) / hidden**0.5
    down = torch.randn(experts, hidden, intermediate, device=DEVICE) / intermediate**0.5
    weights = torch.rand(tokens, k, device=DEVICE) + 0.1
    return x.to(dtype), gate_up.to(dtype), down.to(dtype), weights, routing(tokens, experts, k).to(DEVICE)


def in_float64(x, gate_up, down, weights, ids):
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for expert in ids.unique().tolist():
        token, expert_slot = (ids == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[token].double(), gate_up[expert].double()).chunk(2, -1)
        y = F.linear(F.gelu(gate, approximate="tanh") * up, down[expert].double())
        out.index_add_(0, token, y * weights[token, expert_slot, None].double())
    return out


def assert_close(got, case):
    """At most twice the reference's error, plus a rounding: with little to sum, the reference may have none."""
    exact, reference = in_float64(*case), fused_experts_reference(*case)
    assert got.dtype == case[0].dtype and got.shape == exact.shape
    error = (got.double() - exact).abs().max()
    assert error <= 2 * (reference.double() - exact).abs().max() + exact.abs().max() * torch.finfo(got.dtype).eps / 2


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(
    ("tokens", "experts", "k", "block_m"),
    [(1, 8, 1, 16), (7, 16, 4, 16), (64, 48, 8, 16), (300, 16, 8, 64), (129, 5, 1, 32), (1100, 6, 4, 128)],
)
def test_align_equals_the_plain_sort(tokens, experts, k, block_m, routing, monkeypatch):
    """The last case counts in two segments. Buffers hold garbage before."""
    ids = routing(tokens, experts, k).to(DEVICE)
    want = align_reference(ids, experts, block_m)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(-7))
    got = align(ids, experts, block_m)
    used = want.used.item()
    assert got.used.item() == used <= got.capacity == max_blocks(tokens * k, experts, block_m)
    assert torch.equal(got.experts[:used], want.experts)
    assert torch.equal(got.pairs[: used * block_m], want.pairs)
    assert (got.num_pairs, got.block_m) == (want.num_pairs, want.block_m)


@on_gpu
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("experts", [96, 128, 512])
@pytest.mark.parametrize("tokens", [16, 129, 513, 8192])
def test_align_equals_the_plain_sort_at_full_size(tokens, experts, routing):
    ids = routing(tokens, experts, 8).to(DEVICE)
    got, want = align(ids, experts, 64), align_reference(ids, experts, 64)
    used = want.used.item()
    assert got.used.item() == used
    assert torch.equal(got.experts[:used], want.experts) and torch.equal(got.pairs[: used * 64], want.pairs)


def test_no_routing_takes_more_blocks_than_the_grid_has_and_one_takes_all():
    for num_pairs, experts, block_m in itertools.product(range(1, 9), range(1, 4), (1, 2, 4)):
        splits = (c for c in itertools.product(range(num_pairs + 1), repeat=experts) if sum(c) == num_pairs)
        worst = max(sum(-(-count // block_m) for count in split) for split in splits)
        assert max_blocks(num_pairs, experts, block_m) == worst


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "hidden", "intermediate", "tiles", "routing"),
    [
        (1, 8, 1, 64, 32, NARROW, uniform),
        (7, 16, 4, 80, 48, NARROW, uniform),  # neither size is a multiple of its block
        (7, 16, 4, 80, 48, NARROW, few_used),
        (3, 128, 8, 64, 32, (Tiles(16, 64, 64, 1),) * 2, uniform),
        (300, 16, 2, 96, 40, WIDE, uniform),
        (300, 16, 1, 64, 32, WIDE, same_for_all),
        (64, 16, 8, 64, 32, WIDE, few_used),
    ],
)
@pytest.mark.parametrize("fuse", [False, True])
def test_error_against_float64(tokens, experts, k, hidden, intermediate, tiles, routing, fuse, monkeypatch):
    """Buffers hold NaN before, so an element that was not written shows."""
    case = make_case(tokens, experts, k, hidden, intermediate, routing=routing)
    assert can_use(*case)
    empty = torch.Tensor.new_empty

    def poisoned(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    got = fused_experts_triton(*case, tiles=tiles, fuse_activation=fuse)
    monkeypatch.undo()
    assert_close(got, case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes(dtype):
    case = make_case(20, 8, 4, dtype=dtype)
    assert can_use(*case)
    assert_close(fused_experts_triton(*case, tiles=WIDE), case)


@pytest.mark.parametrize("tiles", [NARROW, WIDE])
def test_a_tokens_bits_do_not_depend_on_its_company(tiles):
    x, gate_up, down, weights, ids = make_case(20, 8, 4, hidden=80, intermediate=48)
    together = fused_experts_triton(x, gate_up, down, weights, ids, tiles)
    for token in (0, 7, 19):
        one = slice(token, token + 1)
        alone = fused_experts_triton(x[one], gate_up, down, weights[one], ids[one], tiles)
        assert torch.equal(together[one], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_batch_invariant_mode_gives_a_token_the_same_bits_by_all_tiles(dtype, monkeypatch):
    if DEVICE == "cpu":  # numpy's float32 products differ with a row's place in the matrix; float64 hides that
        product = np.matmul
        monkeypatch.setattr(np, "matmul", lambda a, b, dtype: product(a, b, dtype=np.float64).astype(dtype))
    x, gate_up, down, weights, ids = make_case(24, experts=8, k=2, hidden=128, intermediate=80, dtype=dtype)
    with batch_invariant():
        assert choose_tiles(x[:8], 8, 80) != choose_tiles(x, 8, 80)
        whole = fused_experts(x, gate_up, down, weights, ids)
        for rows in (slice(0, 1), slice(3, 11), slice(20, 24)):
            assert torch.equal(fused_experts(x[rows], gate_up, down, weights[rows], ids[rows]), whole[rows])


def test_fused_activation_gives_the_same_bits():
    """Values are small integers, whose sums are exact in any order; NumPy's depends on a product's shape."""
    x, gate_up, down, weights, ids = make_case(20, 8, 4, hidden=80, intermediate=48)
    case = (x.round(), (gate_up * 9).round(), (down * 9).round(), weights, ids)
    plain, fused = (fused_experts_triton(*case, tiles=NARROW, fuse_activation=fuse) for fuse in (False, True))
    assert torch.equal(plain, fused)


@on_gpu
@pytest.mark.parametrize("tokens", [1, 26, 64, 512, 2048])
def test_gemma_4_26b(tokens):
    """With the tiles a server would take, and with the activation in the product, where two accumulators must fit."""
    case = make_case(tokens, 128, 8, hidden=2816, intermediate=704)
    x, gate_up, down, weights, ids = case
    default = (default_tiles(tokens, 128),) * 2
    for fuse, tiles in ((False, choose_tiles(x, 128, 704)), (True, default)):
        got = fused_experts_triton(*case, tiles=tiles, fuse_activation=fuse)
        assert_close(got, case)
        alone = fused_experts_triton(x[-1:], gate_up, down, weights[-1:], ids[-1:], tiles, fuse_activation=fuse)
        assert torch.equal(got[-1:], alone)
    assert torch.equal(got, fused_experts_triton(*case, tiles=default, fuse_activation=False))


@on_gpu
def test_graph_replays_follow_their_inputs():
    """Captured with one routing, replayed with others: nothing of it was decided on the host."""
    first, *others = (make_case(33, 128, 8, hidden=256, intermediate=128, routing=r) for r in ROUTINGS)
    _, gate_up, down, _, _ = first
    x, weights, ids = first[0].clone(), first[3].clone(), first[4].clone()
    fused_experts(x, gate_up, down, weights, ids)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fused_experts(x, gate_up, down, weights, ids)
    for new_x, _, _, new_weights, new_ids in others:
        for static, new in ((x, new_x), (weights, new_weights), (ids, new_ids)):
            static.copy_(new)
        graph.replay()
        assert torch.equal(out, fused_experts(new_x, gate_up, down, new_weights, new_ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("tokens", "k", "hidden"), [(1, 1, 64), (7, 8, 1100), (20, 4, 80)])
def test_weighted_sum_equals_reference(dtype, tokens, k, hidden):
    y = torch.randn(tokens, k, hidden).to(dtype).to(DEVICE)
    weights = torch.rand(tokens, k).to(DEVICE)
    assert moe_sum.can_use(y, weights)
    got = moe_sum.moe_sum(y, weights)
    assert got.dtype == dtype and torch.equal(got, moe_sum.moe_sum_reference(y, weights))


def test_weighted_sum_in_float64_takes_the_reference():
    y, weights = torch.randn(3, 2, 8, dtype=torch.float64, device=DEVICE), torch.rand(3, 2, device=DEVICE)
    assert not moe_sum.can_use(y, weights)
    want = (y * weights.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(moe_sum.moe_sum(y, weights), want, rtol=0, atol=1e-5)


def test_the_op_takes_the_kernels_and_leaves_what_they_cannot_do_to_the_reference(monkeypatch):
    case = x, gate_up, down, weights, ids = make_case(4, 8, 2, dtype=torch.float32)
    if DEVICE == "cpu":
        assert choose_tiles(x, 8, 32) == (default_tiles(4, 8),) * 2
    assert can_use(*case)
    assert torch.equal(fused_experts(*case), fused_experts_triton(*case))
    others = [
        (x, gate_up, down, weights, ids.int()),
        (x, gate_up, down, weights.double(), ids),
        (x, gate_up.transpose(1, 2).contiguous().transpose(1, 2), down, weights, ids),
        (x.T.contiguous().T, gate_up, down, weights, ids),
        (x, gate_up, down.bfloat16(), weights, ids),
        (x.double(), gate_up.double(), down.double(), weights, ids),
    ]
    assert not any(can_use(*other) for other in others)
    monkeypatch.setattr(fused_moe, "fused_experts_triton", lambda *args: pytest.fail("kernels cannot do this"))
    for other in others[:2]:
        assert torch.equal(fused_experts(*other), fused_experts_reference(*other))


def test_rows_may_lie_apart():
    x, *rest = make_case(9, 8, 2)
    apart = torch.cat([x, torch.full_like(x, torch.nan)], dim=1)[:, : x.shape[1]]
    assert can_use(apart, *rest) and not apart.is_contiguous()
    assert torch.equal(fused_experts(apart, *rest), fused_experts(x, *rest))


def test_choices_may_lie_apart():
    """What the router gives, and slices of a wider table, take the kernels and not, unseen, the slow path."""
    x, gate_up, down, *_ = make_case(9, 8, 2)
    weights, ids = topk_softmax(torch.randn(9, 8, device=DEVICE).bfloat16(), 2, torch.ones(8, device=DEVICE))
    assert can_use(x, gate_up, down, weights, ids)
    apart = [torch.cat([t, t], dim=1)[:, :2] for t in (weights, ids)]
    assert can_use(x, gate_up, down, *apart) and not apart[1].is_contiguous()
    assert torch.equal(fused_experts(x, gate_up, down, *apart), fused_experts(x, gate_up, down, weights, ids))


def test_no_tokens():
    x, gate_up, down, weights, ids = make_case(1, 8, 2)
    assert fused_experts(x[:0], gate_up, down, weights[:0], ids[:0]).shape == (0, 64)


def test_wrong_shapes_fail_before_a_kernel_reads_them():
    x, gate_up, down, weights, ids = make_case(3, 8, 2)
    with pytest.raises(AssertionError, match="gate_up"):
        fused_experts(x, gate_up[:, :-1].contiguous(), down, weights, ids)
    with pytest.raises(AssertionError, match="x "):
        fused_experts(x[:2], gate_up, down, weights, ids)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
