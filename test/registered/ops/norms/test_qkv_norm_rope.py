"""The kernel that norms and turns q, k and v and writes k and v to the pool gives the bits of the ops one by one, on
every input and by every launch, and writes nothing else. In the interpreter without a GPU."""

import sys

import sglang.test.triton_testing

# isort: split

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.loader import load_model
from sglang.srt.ops.attention.kv_slots import KVSlots
from sglang.srt.ops.norms import qkv_norm_rope as module
from sglang.srt.ops.norms.qkv_norm_rope import HEAD_SIZES, can_use, launch, qkv_norm_rope, qkv_norm_rope_reference
from sglang.test.ci.ci_register import register_cpu_ci, register_cuda_ci
from sglang.test.numerics import huge, normal, signed_zeros, subnormals, wide_range
from sglang.test.paged_harness import PagedHarness
from sglang.test.tiny_models import make_tiny_gemma4

register_cpu_ci(est_time=15, suite="base-a-test-cpu")
register_cuda_ci(est_time=40, stage="base-b", runner_config="1-gpu-large")

DEVICE = sglang.test.triton_testing.DEVICE
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
PARTS = ["qkv", "qk", "q"]  # rows of q k v, of q k (v is made of k), of q (another layer's KV)
EPS = 1e-6


def ties(shape, dtype):
    """Numbers of few bits, so that products and sums fall halfway between two numbers of the dtype often."""
    return torch.randint(-3, 4, shape, device=DEVICE).to(dtype)


def overflowing(shape, dtype):
    """Squares are inf in float32, or near float16's end."""
    return (normal(shape, torch.float32) * (1e4 if dtype == torch.float16 else 1e30)).to(dtype)


MAKERS = [normal, signed_zeros, ties, subnormals, huge, overflowing, wide_range]


class Case(NamedTuple):
    """Arguments of the op but for eps."""

    qkv: Tensor
    q_weight: Tensor
    k_weight: Tensor | None
    num_heads: int
    cos: Tensor
    sin: Tensor
    kv: KVSlots | None

    def alike(self) -> "Case":
        """The same in memory of its own, rows without gaps."""
        kv = None if self.kv is None else KVSlots(*(x.clone() for x in self.kv))
        return self._replace(qkv=self.qkv.contiguous().clone(), kv=kv)

    def run(self, op, *rest) -> Tensor:
        return op(*self[:-1], EPS, self.kv, *rest)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_case(tokens: int, width: int, parts: str, dtype, make=normal, heads: int = 3, kv_heads: int = 2) -> Case:
    """qkv is a view of wider rows; the buffers are tokens + 5 rows of NaN, of which the tokens have some, not row 0."""
    heads_in_row = heads + kv_heads * (len(parts) - 1)
    qkv = make((tokens, heads_in_row * width + 32), dtype)[:, : heads_in_row * width]
    angles = torch.rand(tokens, width // 2, device=DEVICE) * 7
    cos, sin = (torch.cat((f(angles), f(angles)), dim=-1).to(dtype) for f in (torch.cos, torch.sin))
    q_weight, k_weight = normal((width,), dtype), normal((width,), dtype)
    if parts == "q":
        return Case(qkv, q_weight, None, heads, cos, sin, None)
    buffers = torch.full((2, tokens + 5, kv_heads, width), torch.nan, dtype=dtype, device=DEVICE)
    slots = torch.randperm(tokens + 4, device=DEVICE)[:tokens] + 1
    return Case(qkv, q_weight, k_weight, heads, cos, sin, KVSlots(*buffers, slots))


def bits(x: Tensor) -> Tensor:
    """Tells +0 from -0, and NaN equals itself."""
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def check(case: Case, per_head: bool) -> None:
    """The kernel's q and the whole of its buffers, NaN where nothing is to be written, against the ops one by one."""
    assert can_use(case.qkv, case.q_weight, case.cos, case.sin, case.kv)
    theirs, before = case.alike(), case.qkv.clone()
    want = theirs.run(qkv_norm_rope_reference)
    got = case.run(launch, per_head)
    assert got.shape == want.shape and got.is_contiguous() and got.dtype == case.qkv.dtype
    assert torch.equal(bits(got), bits(want))
    assert torch.equal(bits(case.qkv.contiguous()), bits(before.contiguous()))
    if case.kv is not None:
        for mine, other in zip(case.kv[:2], theirs.kv[:2], strict=True):
            assert torch.equal(bits(mine), bits(other))
            assert mine.isnan().all(dim=(1, 2)).sum() == len(mine) - len(case.qkv)  # no token was left out


TOKENS = [0, 1, 2, 255, 256, 257, 4096] if DEVICE == "cuda" else [0, 1, 2, 5]


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("width", [256, 512])
@pytest.mark.parametrize("tokens", TOKENS)
def test_both_launches_equal_the_ops_one_by_one(tokens, width, parts, per_head):
    check(make_case(tokens, width, parts, torch.bfloat16, wide_range), per_head)


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", HEAD_SIZES)
def test_every_head_size(width, dtype, per_head):
    for parts in PARTS:
        check(make_case(2, width, parts, dtype, wide_range, heads=2, kv_heads=1), per_head)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", ["qkv", "qk"])
def test_nasty_inputs(parts, dtype, make):
    for per_head in (True, False):
        check(make_case(3, 64, parts, dtype, make), per_head)


@pytest.mark.skipif(DEVICE == "cpu", reason="minutes in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "heads", "kv_heads", "parts"), [(256, 16, 8, "qkv"), (512, 16, 2, "qk")])
def test_ten_million_random_numbers(width, heads, kv_heads, parts, dtype):
    for make in (normal, wide_range):
        case = make_case(1600, width, parts, dtype, make, heads, kv_heads)
        check(case, False)
        check(case._replace(kv=KVSlots(*(torch.full_like(x, torch.nan) for x in case.kv[:2]), case.kv.slots)), True)


@pytest.mark.parametrize("disabled", [True, False])
@pytest.mark.parametrize("parts", PARTS)
def test_the_op_and_its_switch(parts, disabled, monkeypatch):
    """Switched off, the same bits by a launch an op."""
    monkeypatch.setattr(module, "DISABLED", disabled)
    launched = []
    monkeypatch.setattr(module, "launch", lambda *args: launched.append(args[-1]) or launch(*args))
    case = make_case(4, 128, parts, torch.bfloat16, wide_range)
    theirs = case.alike()
    assert torch.equal(case.run(qkv_norm_rope), theirs.run(qkv_norm_rope_reference))
    assert launched == ([] if disabled else [True])
    if parts != "q":
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(case.kv[:2], theirs.kv[:2], strict=True))


def test_up_to_256_tokens_have_a_program_a_head(monkeypatch):
    chosen = []
    monkeypatch.setattr(module, "launch", lambda *args: chosen.append(args[-1]))
    for tokens in (0, 1, 256, 257, 4096):
        make_case(tokens, 16, "q", torch.bfloat16, heads=1).run(qkv_norm_rope)
    assert chosen == [True, True, True, False, False]
    monkeypatch.setattr("sglang.srt.ops.norms.qkv_rms_norm.PER_HEAD_DISABLED", True)
    make_case(1, 16, "q", torch.bfloat16, heads=1).run(qkv_norm_rope)
    assert chosen[-1] is False


@pytest.mark.parametrize("per_head", [True, False])
def test_many_tokens_may_be_padding(per_head):
    """Slot 0 holds some one of what is written there; the rest is as if the others were alone."""
    case = make_case(5, 32, "qkv", torch.bfloat16)
    case.kv.slots[:3] = 0
    theirs = case.alike()
    case.run(launch, per_head)
    theirs.run(qkv_norm_rope_reference)
    lone = case.alike()
    lone.kv.slots.copy_(torch.arange(1, 6))
    lone.run(qkv_norm_rope_reference)
    for mine, other, rows in zip(case.kv[:2], theirs.kv[:2], lone.kv[:2], strict=True):
        assert torch.equal(bits(mine[1:]), bits(other[1:]))
        assert (mine[0] == rows[1:4]).any(dim=0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("per_head", [True, False])
def test_a_bad_number_stays_in_its_own_head(per_head, bad):
    case = make_case(4, 64, "qkv", torch.bfloat16)
    for token, head in ((1, 0), (1, 4), (2, 6)):  # of 3 q heads, 2 k and 2 v
        case.qkv[token, head * 64 + 5] = bad
    theirs = case.alike()
    got, want = case.run(launch, per_head), theirs.run(qkv_norm_rope_reference)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.nan_to_num(), want.nan_to_num())
    assert got.isnan().any(-1).nonzero().tolist() == [[1, 0]]
    for mine, other, where in zip(case.kv[:2], theirs.kv[:2], ([1, 1], [2, 1]), strict=True):
        assert torch.equal(mine.isnan(), other.isnan()) and torch.equal(mine.nan_to_num(), other.nan_to_num())
        assert mine[case.kv.slots].isnan().any(-1).nonzero().tolist() == [where]


@pytest.mark.parametrize("per_head", [True, False])
def test_slots_beyond_32_bits(per_head):
    """Slot times row exceeds 2^31 numbers. Memory that is never touched is never taken on a CPU."""
    case = make_case(3, 64, "qkv", torch.float16)
    far, rows = (1 << 31) // case.kv.k_buffer[0].numel(), len(case.kv.k_buffer)
    buffers = [torch.empty(far + rows, 2, 64, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    for buffer in buffers:
        buffer[far:] = torch.nan
    case._replace(kv=KVSlots(*buffers, case.kv.slots + far)).run(launch, per_head)
    case.run(qkv_norm_rope_reference)
    for buffer, small in zip(buffers, case.kv[:2], strict=True):
        assert torch.equal(bits(buffer[far:]), bits(small))


def test_can_use_refuses_what_the_kernel_can_not_read():
    case = make_case(3, 64, "qkv", torch.bfloat16)
    qkv, weight, cos, sin, kv = case.qkv, case.q_weight, case.cos, case.sin, case.kv
    assert can_use(qkv, weight, cos, sin, kv) and can_use(qkv, weight, cos, sin, None)
    assert not can_use(qkv.t().contiguous().t(), weight, cos, sin, kv)
    assert not can_use(qkv, weight[:48], cos, sin, kv)
    assert not can_use(qkv, weight[:8], cos, sin, kv)
    assert not can_use(qkv, weight, cos.float(), sin.float(), kv)
    assert not can_use(qkv, weight, cos.t().contiguous().t(), sin, kv)
    assert not can_use(qkv, weight, cos, sin, kv._replace(v_buffer=kv.v_buffer.float()))
    assert not can_use(qkv, weight, cos, sin, kv._replace(slots=kv.slots.int()))
    assert not can_use(qkv, weight, cos, sin, kv._replace(k_buffer=kv.k_buffer[:, :1]))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("tokens", [7, 300])
def test_it_runs_in_a_graph_and_waits_for_nothing(tokens):
    case = make_case(tokens, 256, "qkv", torch.bfloat16)
    case.run(qkv_norm_rope)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run(qkv_norm_rope)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = case.run(qkv_norm_rope)
    case.qkv.normal_()
    case.kv.slots.copy_(case.kv.slots.flip(0))
    for buffer in case.kv[:2]:
        buffer.fill_(torch.nan)
    theirs = case.alike()
    graph.replay()
    assert torch.equal(got, theirs.run(qkv_norm_rope_reference))
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(case.kv[:2], theirs.kv[:2], strict=True))


def test_all_layers_of_a_model_take_it(tmp_path, monkeypatch):
    """A prompt and a decode in layers of every kind: logits and all that is cached are those without the kernel."""
    config = ModelConfig.load(str(make_tiny_gemma4(tmp_path, "ple_shared_double_wide")), None, None, "auto")
    model = load_model(config, "auto", torch.device(DEVICE))
    launched = []
    monkeypatch.setattr(module, "launch", lambda *args: launched.append(args[-2] is None) or launch(*args))
    results = []
    for disabled in (False, True):
        monkeypatch.setattr(module, "DISABLED", disabled)
        harness = PagedHarness(model, config, max_tokens=64, device=DEVICE)
        steps = [harness.step({0: [5, 6]}), harness.step({0: [7]})]
        pools = [x for layer in harness.pool.layers for x in harness.pool.get_kv(layer)]
        results.append([logits for step in steps for logits in step.values()] + pools)
    assert launched == 2 * [not layer.owns_kv for layer in config.text.layers]
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(*results, strict=True))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
