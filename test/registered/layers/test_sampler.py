"""The sampler against float64 numpy, one rule at a time and all together, and its draws against the distribution."""

import sys

import numpy as np
import pytest
import torch
from sglang.srt.layers.logprobs import token_logprobs
from sglang.srt.layers.sampler import SamplingFlags, SamplingState, argmax, combine, flag_bits, gumbel, mix32
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

VOCAB = 50


def logits_of(rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def state_of(params: list[SamplingParams], vocab: int = VOCAB, seeds=None, prompt_len=10, stop_ids=(), outputs=None):
    """Rows 1..n hold `params`; returns the state, the rows and the flags of all of them."""
    state = SamplingState(len(params) + 2, vocab, "cpu")
    rows = list(range(1, len(params) + 1))
    state.admit(
        rows,
        params,
        seeds or [7 * r for r in rows],
        [prompt_len] * len(rows),
        [list(stop_ids)] * len(rows),
        outputs or [[] for _ in rows],
    )
    return state, torch.tensor(rows), combine([flag_bits(p) for p in params])


def support(params: SamplingParams, logits: torch.Tensor, draws: int = 4000) -> set[int]:
    """Tokens that are drawn, over many positions."""
    state, rows, flags = state_of([params])
    positions = torch.arange(draws) + 10
    ids, _ = state.sample(logits.expand(draws, -1), rows.expand(draws), positions, flags)
    return set(ids.tolist())


def allowed(params: SamplingParams, logits: torch.Tensor) -> set[int]:
    """The same by definition, in float64."""
    x = logits[0].double().numpy() / params.temperature
    probs = np.exp(x - x.max())
    probs /= probs.sum()
    order = np.lexsort((np.arange(len(x)), -x))
    kept, total = set(), 0.0
    for rank, token in enumerate(order):
        in_k = params.top_k == -1 or rank < params.top_k
        if rank == 0 or (in_k and total <= params.top_p and probs[token] >= params.min_p * probs.max()):
            kept.add(int(token))
        total += probs[token]
    return kept


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 3},
        {"top_k": 500},
        {"top_p": 0.5},
        {"top_p": 1e-9},
        {"min_p": 0.3},
        {"top_k": 5, "top_p": 0.7, "min_p": 0.1},
        {"temperature": 0.5, "top_p": 0.6},
        {"temperature": 3.0, "top_k": 4},
    ],
)
def test_filters_keep_exactly_the_defined_tokens(fields: dict):
    params = SamplingParams(**fields)
    logits = logits_of(1)
    wanted = allowed(params, logits)
    state, rows, flags = state_of([params])
    assert flags & SamplingFlags.FILTER or fields == {"temperature": 1}
    scaled = state._adjust(logits, rows, torch.tensor([10]), flags)
    kept = set(torch.isfinite(state._filter(scaled, rows)[0]).nonzero().flatten().tolist())
    assert kept == wanted
    assert support(params, logits) <= wanted


def test_filters_rank_equal_logits_by_id():
    logits = torch.zeros(1, VOCAB)
    assert support(SamplingParams(top_k=3), logits) == {0, 1, 2}
    assert support(SamplingParams(top_p=0.05), logits) == {0, 1, 2}  # the sum before the fourth exceeds it


@pytest.mark.parametrize("make", ["random", "ties", "infinite"])
def test_greedy_is_the_lowest_argmax(make: str):
    logits = logits_of(64)
    if make == "ties":
        logits = torch.randint(0, 3, (64, VOCAB), generator=torch.Generator().manual_seed(1)).float()
    if make == "infinite":
        logits[:, ::2] = -torch.inf
    state, rows, flags = state_of([SamplingParams(top_k=1)] * 64)
    ids, scaled = state.sample(logits, rows, torch.full((64,), 10), flags)
    assert not flags & SamplingFlags.DRAW
    assert ids.tolist() == logits.double().numpy().argmax(1).tolist()  # numpy takes the first of equals
    assert torch.equal(scaled, logits)


def test_greedy_rows_of_a_mixed_batch_are_not_touched_by_noise():
    params = [SamplingParams(top_k=1), SamplingParams(temperature=5.0)] * 50
    logits = torch.randint(0, 4, (100, VOCAB), generator=torch.Generator().manual_seed(2)).float()
    state, rows, flags = state_of(params)
    ids, _ = state.sample(logits, rows, torch.full((100,), 10), flags)
    assert torch.equal(ids[::2], argmax(logits[::2]))
    assert not torch.equal(ids[1::2], argmax(logits[1::2]))


def test_draws_follow_the_softmax():
    """Chi-square over 8 tokens, 20000 draws, against both the 0.1 % and, for too good a fit, the 99.9 % point."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, 0.2]])
    n = 20000
    state, rows, flags = state_of([SamplingParams()], vocab=8)
    ids, _ = state.sample(logits.expand(n, -1), rows.expand(n), torch.arange(n), flags)
    expected = torch.softmax(logits[0].double(), 0) * n
    chi2 = ((torch.bincount(ids, minlength=8) - expected) ** 2 / expected).sum().item()
    assert 0.6 < chi2 < 24.3  # 7 degrees of freedom


def test_noise_is_uniform_below_the_logarithms():
    """The hash's upper bits over (seed, position, token): chi-square with 64 cells."""
    noise = gumbel(torch.arange(40) * 1_000_003 - 17, torch.arange(40), 2500).double()
    u = torch.exp(-torch.exp(-noise)).flatten()
    counts = torch.bincount((u * 64).long().clamp(max=63), minlength=64).double()
    chi2 = ((counts - len(u) / 64) ** 2 / (len(u) / 64)).sum().item()
    assert 32 < chi2 < 108  # 63 degrees of freedom, 0.05 % at either end
    assert torch.isfinite(noise).all()
    assert abs(torch.corrcoef(noise[:, :200].T).fill_diagonal_(0)).max() < 0.75  # tokens do not move together


def test_mix32_is_a_bijection_of_32_bit_words():
    x = torch.arange(1 << 16) * 65537
    assert len(mix32(x).unique()) == len(x) and mix32(x).min() >= 0 and mix32(x).max() < 1 << 32
    assert mix32(torch.tensor([1])).item() == 0x514E28B7  # the finalizer's published value


def test_a_row_depends_on_itself_alone():
    params = [SamplingParams(temperature=0.7 + 0.1 * i, top_p=0.9) for i in range(6)]
    logits, positions = logits_of(6), torch.arange(6) + 10
    state, rows, flags = state_of(params)
    together, _ = state.sample(logits, rows, positions, flags)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled, _ = state.sample(logits[order], rows[order], positions[order], flags)
    assert torch.equal(shuffled, together[order])
    for i in range(6):
        own, _ = state.sample(logits[i : i + 1], rows[i : i + 1], positions[i : i + 1], combine([flag_bits(params[i])]))
        assert own.item() == together[i].item()
    other, _ = state.sample(logits, rows, positions + 1, flags)
    assert not torch.equal(other, together)


@pytest.mark.parametrize("seed", [0, -1, 2**62, -(2**63), 2**63 - 1])
def test_extreme_seeds_and_the_full_vocabulary(seed: int):
    state, rows, flags = state_of([SamplingParams(temperature=0.5)], vocab=262144, seeds=[seed])
    ids, _ = state.sample(logits_of(1, 262144), rows, torch.tensor([262143]), flags)
    assert 0 <= ids.item() < 262144


def test_penalties_follow_their_definition_over_steps_and_after_a_resume():
    params = SamplingParams(top_k=1, frequency_penalty=0.4, presence_penalty=0.3, repetition_penalty=1.2)
    state, rows, flags = state_of([params])
    made: list[int] = []
    for step in range(12):
        logits = logits_of(1, seed=step % 2)
        x = logits[0].double().numpy().copy()
        for token in set(made):
            x[token] -= 0.4 * made.count(token) + 0.3
            x[token] = x[token] / 1.2 if x[token] > 0 else x[token] * 1.2
        ids, scaled = state.sample(logits, rows, torch.tensor([10 + step]), flags)
        assert np.allclose(scaled[0].numpy(), x, atol=1e-5)
        resumed, rows2, _ = state_of([params], outputs=[made])
        assert resumed.sample(logits, rows2, torch.tensor([10 + step]), flags)[0].item() == ids.item()
        made.append(ids.item())
    assert len(set(made)) > 3


def test_a_row_is_clean_for_its_next_request():
    params = SamplingParams(top_k=1, frequency_penalty=2.0, logit_bias={"3": 100.0})
    state, rows, flags = state_of([params])
    logits = logits_of(1)
    assert state.sample(logits, rows, torch.tensor([10]), flags)[0].item() == 3
    plain = SamplingParams(top_k=1)
    state.admit([1], [plain], [0], [10], [[]], [[]])
    ids, scaled = state.sample(logits, rows, torch.tensor([10]), flags)  # others in the batch still have both
    assert torch.equal(scaled, logits) and ids.item() == argmax(logits).item()


def test_min_new_tokens_bars_every_stop_id_until_then():
    logits = torch.zeros(1, VOCAB)
    logits[0, [4, 9, 11]] = torch.tensor([9.0, 8.0, 7.0])
    params = SamplingParams(top_k=1, min_new_tokens=2)
    state, rows, flags = state_of([params], stop_ids=[4, 9])
    tokens = [state.sample(logits, rows, torch.tensor([10 + i]), flags)[0].item() for i in range(4)]
    assert tokens == [11, 11, 4, 4]
    none, rows, flags = state_of([params], stop_ids=[])
    assert none.sample(logits, rows, torch.tensor([10]), flags)[0].item() == 4


def test_flags_say_what_a_batch_needs():
    assert combine([]) == 0
    assert flag_bits(SamplingParams(top_k=1)) == 0
    assert flag_bits(SamplingParams()) == SamplingFlags.DRAW
    both = combine([flag_bits(SamplingParams(top_p=0.5)), flag_bits(SamplingParams(top_k=1, logit_bias={"1": 1.0}))])
    assert both == SamplingFlags.DRAW | SamplingFlags.FILTER | SamplingFlags.BIAS


def test_logprobs_best_and_selected():
    logits = logits_of(4)
    logits[2] = 0  # all equal: the best are the lowest ids
    ids = torch.tensor([3, 0, 49, 7])
    values, top, selected = token_logprobs(logits, ids, [0, 3, 2, 1], [None, [1, 2], None, [49]])
    exact = torch.log_softmax(logits.double(), -1)
    assert np.allclose(values, exact[range(4), ids], atol=1e-6)
    assert top[0] is None and len(top[1]) == 3 and [token for _, token in top[2]] == [0, 1]
    assert [token for _, token in top[1]] == exact[1].topk(3).indices.tolist()
    assert np.allclose([value for value, _ in top[1]], exact[1].topk(3).values, atol=1e-6)
    assert selected[0] is None and np.allclose(selected[1], exact[1, [1, 2]], atol=1e-6)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
