"""The MTP drafter against transformers' in float32: four chained steps over a target's paged KV, one ragged batch.

transformers' module is driven by hand: its own generate seeds a round from the prompt's first position and hands the
drafter rejected KV, which is not what a round should be. It gets exactly the newest W keys of the target's last sliding
layer, since its mask would let it see W + 1. Its keys and first state are ours, once they are seen to be transformers'
within the target's noise, which four steps would multiply.
"""

import sys
import threading

import pytest
import torch
from torch import Tensor

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.tensor_parallel import SINGLE, TensorParallel
from sglang.srt.model_loader.loader import load_drafter, load_model
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.paged_harness import PagedHarness
from sglang.test.tiny_models import VOCAB, load_oracle, make_tiny_assistant, make_tiny_gemma4, make_tiny_unified

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

FP32_BOUND = 1e-5  # largest error over the reference's largest value
CPU = torch.device("cpu")
STEPS = 4
TARGETS = ["moe_top2", "dense_k_eq_v", "ple_shared_double_wide", "small_window", "unified"]  # the third has no k_eq_v
PROMPTS = {0: 50, 1: 3, 2: 33, 5: 17, 6: 16, 7: 5}  # request row -> tokens; windows are 16 and 5


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Pair:
    """Folders of a target and its drafter, and transformers' models of them."""

    def __init__(self, root, variant: str, ordered: bool):
        if variant == "unified":
            self.target = str(make_tiny_unified(root / "target", torch.float32, wrapped=False))
        else:
            self.target = str(make_tiny_gemma4(root / "target", variant, torch.float32))
        self.drafter = str(make_tiny_assistant(root / "drafter", variant, ordered, torch.float32))
        self.target_oracle = load_oracle(self.target, torch.float32)
        self.drafter_oracle = load_oracle(self.drafter, torch.float32)

    def shared_kv(self, harness: PagedHarness, row: int) -> dict[str, tuple[Tensor, Tensor]]:
        """K and V [1, heads, keys, D] that a drafter reads after the prompt of `row`, gathered from the pool."""
        ids, window = prompts()[row], self.target_oracle.config.sliding_window
        out = self.target_oracle.model(torch.tensor([ids]), return_shared_kv_states=True)
        close(harness.last_hidden[row], out.last_hidden_state[0, -1])
        kv = {}
        for kind, want in out.shared_kv_states.items():
            sliding = kind == "sliding_attention"
            first = max(0, len(ids) - window) if sliding else 0
            slots = harness.tables[sliding][row, first : len(ids)].long()
            buffers = harness.pool.get_kv(harness.config.text.donors[kind].index)
            kv[kind] = tuple(buffer[slots].transpose(0, 1)[None] for buffer in buffers)
            for got, wanted in zip(kv[kind], want, strict=True):
                close(got, wanted[:, :, first:])
        return kv

    def rounds(self, harness: PagedHarness, shift: int) -> list[list[tuple[int, Tensor, Tensor]]]:
        """transformers' draft steps after each prompt of n tokens, at position n - shift: (token it is fed, logits [V],
        next prev [Hb])."""
        embed, head = self.target_oracle.get_input_embeddings(), self.target_oracle.lm_head
        rounds = []
        for row, n in PROMPTS.items():
            kv, prev = self.shared_kv(harness, row), harness.last_hidden[row][None, None]
            token, steps = head(prev).argmax()[None, None], []
            for _ in range(STEPS):
                got = self.drafter_oracle(
                    inputs_embeds=torch.cat((embed(token), prev), dim=-1),
                    position_ids=torch.tensor([[n - shift]]),
                    shared_kv_states=kv,
                )
                steps.append((int(token), got.logits[0, 0], got.last_hidden_state[0, 0]))
                token, prev = got.logits.argmax()[None, None], got.last_hidden_state
            rounds.append(steps)
        return rounds


def prompts() -> dict[int, list[int]]:
    generator = torch.Generator().manual_seed(7)
    return {row: torch.randint(6, VOCAB, (n,), generator=generator).tolist() for row, n in PROMPTS.items()}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}

    def pair(variant: str, ordered: bool) -> Pair:
        if (variant, ordered) not in made:
            made[variant, ordered] = Pair(tmp_path_factory.mktemp(variant), variant, ordered)
        return made[variant, ordered]

    return pair


def load(pair: Pair, tp: TensorParallel = SINGLE):
    """Our drafter, and a harness whose pool holds the prompts, written in chunks of 4 tokens over scattered slots."""
    config = ModelConfig.load(pair.target)
    target = load_model(config, "auto", CPU, tp)
    drafter = load_drafter(pair.drafter, config, target, "auto", torch.float32, CPU, tp)
    harness = PagedHarness(target, config, drafted=True)
    left = prompts()
    while left:
        harness.step({row: ids[:4] for row, ids in left.items()}, num_extends=len(left))
        left = {row: ids[4:] for row, ids in left.items() if len(ids) > 4}
    return drafter, harness


@torch.no_grad()
def draft(drafter, harness: PagedHarness, feeds: list[list[int]], shift: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Our draft steps, all prompts at once, fed `feeds` [steps][rows]: (logits [N, C], ids [N, C], next prev)."""
    rows = list(PROMPTS)
    batch = harness.drafter_batch(rows)
    prev = torch.stack([harness.last_hidden[row] for row in rows])
    positions = batch.seq_lens - shift
    steps = []
    for tokens in feeds:
        hidden, prev = drafter(torch.tensor(tokens), prev, positions, batch)
        logits, ids = drafter.candidates(hidden)
        steps.append((logits, ids, prev))
    return steps


def error(got: Tensor, want: Tensor) -> float:
    assert torch.isfinite(got).all()
    return ((got - want).abs().max() / want.abs().max()).item()


def close(got: Tensor, want: Tensor) -> None:
    """Within the target's noise."""
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)


def fed(rounds) -> list[list[int]]:
    return [[steps[i][0] for steps in rounds] for i in range(STEPS)]


def largest_error(rounds, steps) -> float:
    """Over all steps, of logits and states."""
    errors = []
    for i, (logits, ids, prev) in enumerate(steps):
        want = torch.stack([round_[i][1] for round_ in rounds])
        errors.append(error(logits, want if ids is None else want.gather(1, ids)))
        errors.append(error(prev, torch.stack([round_[i][2] for round_ in rounds])))
    return max(errors)


@pytest.mark.parametrize("ordered", [False, True], ids=["dense", "centroids"])
@pytest.mark.parametrize("variant", TARGETS)
def test_four_chained_steps(variant, ordered, pairs):
    pair = pairs(variant, ordered)
    drafter, harness = load(pair)
    assert harness.config.sliding_window < max(PROMPTS.values())
    for shift in (0, 1):  # position n, or n - 1
        rounds = pair.rounds(harness, shift)
        steps = draft(drafter, harness, fed(rounds), shift)
        assert largest_error(rounds, steps) < FP32_BOUND
        for row, round_ in enumerate(rounds):
            for (_, want, _), (logits, ids, _) in zip(round_, steps, strict=True):
                best = logits[row].argmax()
                assert int(want.argmax()) == int(best if ids is None else ids[row, best])
                if ordered:  # what transformers leaves out it fills with the smallest logit less 1
                    assert sorted(ids[row].tolist()) == (want > want.min()).nonzero()[:, 0].tolist()
                    assert ids.shape == (len(PROMPTS), 64)
                else:
                    assert ids is None and logits.shape == (len(PROMPTS), VOCAB)
    assert len({token for tokens in fed(rounds) for token in tokens}) > len(PROMPTS)  # it does not repeat one token


def test_no_kv_is_written(pairs):
    drafter, harness = load(pairs("moe_top2", False))
    kept = [x for layer in harness.pool.layers for x in harness.pool.get_kv(layer)]
    before = [x.contiguous().view(torch.int32).clone() for x in kept]  # as bits: what was given back holds NaN
    draft(drafter, harness, [[9] * len(PROMPTS)] * STEPS, 0)
    assert all(torch.equal(a, b.contiguous().view(torch.int32)) for a, b in zip(before, kept, strict=True))


def prev_first(drafter, harness):
    drafter.pre_projection.weight.copy_(drafter.pre_projection.weight.roll(harness.config.hidden_size, dims=1))


def unscaled_embedding(drafter, harness):
    harness.model.model.embed_tokens.scale = 1.0


def wrong_donor(drafter, harness):
    for layer in drafter.model.layers[:3]:
        layer.self_attn.attn.kv_layer -= 1


def window_less_one(drafter, harness):
    for layer in drafter.model.layers[:3]:
        layer.self_attn.attn.sliding_window -= 1


def another_position(drafter, harness):
    drafter.register_forward_pre_hook(lambda module, args: (*args[:2], args[2] + 1, args[3]))


def no_layer_scalar(drafter, harness):
    for layer in drafter.model.layers:
        layer.layer_scalar.fill_(1)


@pytest.mark.parametrize(
    "breakage",
    [prev_first, unscaled_embedding, wrong_donor, window_less_one, another_position, no_layer_scalar],
    ids=lambda value: value.__name__,
)
def test_a_mistake_is_seen(breakage, pairs):
    """Each moves logits or states by a hundred times the bound at least."""
    pair = pairs("moe_top2", False)
    drafter, harness = load(pair)
    rounds = pair.rounds(harness, 0)
    breakage(drafter, harness)
    assert largest_error(rounds, draft(drafter, harness, fed(rounds), 0)) > 100 * FP32_BOUND


class ThreadedRank(TensorParallel):
    """A rank of two that are threads of this process."""

    barrier = threading.Barrier(2, timeout=30)
    given: list = [None, None]

    def _exchange(self, x):
        self.given[self.rank] = x
        self.barrier.wait()
        parts = [part.clone() for part in self.given]
        self.barrier.wait()
        return parts

    def all_reduce(self, x):
        return sum(self._exchange(x))

    def all_reduce_pair(self, x, y):
        return self.all_reduce(x), self.all_reduce(y)

    def all_gather(self, x):
        return torch.cat(self._exchange(x), dim=-1)


@pytest.mark.parametrize(("variant", "ordered"), [("dense_k_eq_v", False), ("ple_shared_double_wide", True)])
def test_two_ranks(variant, ordered, pairs):
    """Two ranks draft what one does. The second target has one KV head, which both ranks hold."""
    pair = pairs(variant, ordered)
    rounds = pair.rounds(load(pair)[1], 0)
    steps: list = [None, None]

    def run(rank: int) -> None:
        drafter, harness = load(pair, ThreadedRank(rank, 2))
        steps[rank] = draft(drafter, harness, fed(rounds), 0)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got in steps:
        assert largest_error(rounds, got) < FP32_BOUND
    for a, b in zip(*steps, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[2], b[2])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
