"""The sampler against float64 numpy, one rule at a time and all together, and its draws against the distribution."""

import itertools
import sys

import numpy as np
import pytest
import torch

from sglang.srt.layers import logprobs as logprobs_module
from sglang.srt.layers import sampler as sampler_module
from sglang.srt.layers.logprobs import token_logprobs
from sglang.srt.layers.sampler import SamplingState, gumbel, kept_tokens, mix32
from sglang.srt.sampling.sampling_flags import combine, flag_bits
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=20, suite="base-a-test-cpu")

VOCAB = 300  # above SMALL_TOP_K, so that both ways of finding the cut are taken
PROMPT = 10


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def few_values(rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    """Logits of five values: every cut falls among equals."""
    return torch.randint(-2, 3, (rows, vocab), generator=torch.Generator().manual_seed(seed)).float()


def state_of(params: list[SamplingParams], vocab: int = VOCAB, seeds=None, stop_ids=(), outputs=None):
    """Rows 1..n hold `params`; returns the state, the rows and the flags of all of them."""
    state = SamplingState(len(params) + 2, vocab, "cpu")
    rows = list(range(1, len(params) + 1))
    state.admit(
        rows,
        params,
        seeds or [7 * r for r in rows],
        [PROMPT] * len(rows),
        [list(stop_ids)] * len(rows),
        outputs or [[] for _ in rows],
    )
    return state, torch.tensor(rows), combine([flag_bits(p) for p in params])


def at(step: int, rows: int = 1) -> torch.Tensor:
    """Positions of the `step`-th output token, counted from 0."""
    return torch.full((rows,), PROMPT + step)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return ((counts.double() - expected) ** 2 / expected).sum().item()


# ---- cutting ---------------------------------------------------------------------------------------------------


def kept_reference(x: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """By definition, for one row in float64."""
    probs = np.exp(x - x.max())
    probs /= probs.sum()
    kept = np.zeros(len(x), dtype=bool)
    total = 0.0
    for rank, token in enumerate(np.lexsort((np.arange(len(x)), -x))):
        if rank == 0 or ((top_k == -1 or rank < top_k) and (top_p == 1 or total < top_p)):
            kept[token] = probs[token] >= min_p * probs.max()
        total += probs[token]
    return kept


def kept_by_sampler(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    state, rows, flags = state_of(params, logits.shape[1])
    ints, floats = state.ints[rows], state.floats[rows]
    return kept_tokens(logits / floats[:, :1], ints[:, 3], floats[:, 1], floats[:, 2], flags)


CUTS = list(itertools.product([-1, 2, 5, 128, 129, 299, 300, 10**6], [1.0, 0.97, 0.51, 1e-9], [0.0, 0.013, 0.71, 1.0]))


@pytest.mark.parametrize("make", [normal, few_values])
@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_cuts_keep_exactly_the_defined_tokens(make, temperature: float):
    """Each combination alone and all in one batch, where most rows need less than the flags of the batch."""
    params = [SamplingParams(temperature=temperature, top_k=k, top_p=p, min_p=m) for k, p, m in CUTS]
    logits = make(len(params))
    together = kept_by_sampler(logits, params)
    for i, p in enumerate(params):
        scaled = (logits[i] / torch.tensor(temperature)).double().numpy()
        assert together[i].tolist() == kept_reference(scaled, p.top_k, p.top_p, p.min_p).tolist(), p
        assert torch.equal(kept_by_sampler(logits[i : i + 1], [p])[0], together[i]), p


def test_all_cuts_together_are_one_after_the_other():
    logits = torch.cat([normal(20), few_values(20)])
    parts = [{"top_k": 40}, {"top_p": 0.8}, {"min_p": 0.05}]
    one_by_one = [kept_by_sampler(logits, [SamplingParams(**part)] * 40) for part in parts]
    together = kept_by_sampler(logits, [SamplingParams(**(parts[0] | parts[1] | parts[2]))] * 40)
    assert torch.equal(together, one_by_one[0] & one_by_one[1] & one_by_one[2])


def test_top_p_is_the_smallest_set_that_reaches_it():
    """Sums are exact, so half of eight equal tokens is four of them; one more comes in just above."""
    equal = torch.zeros(1, 8)
    assert kept_by_sampler(equal, [SamplingParams(top_p=0.5)])[0].tolist() == [True] * 4 + [False] * 4
    assert kept_by_sampler(equal, [SamplingParams(top_p=0.5001)])[0].sum() == 5


def test_a_cut_among_nearly_equal_logits_far_below_the_best_takes_the_larger():
    logits = torch.full((1, 8), -5.0)
    logits[0, 3] = 100.0
    logits[0, 6] = -4.9999995  # 100 below the best the two are the same fp32 number
    assert kept_by_sampler(logits, [SamplingParams(top_k=2)])[0].nonzero().flatten().tolist() == [3, 6]


# ---- greedy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", ["normal", "ties", "infinite", "zeros"])
def test_greedy_is_the_lowest_argmax(make: str, dtype: torch.dtype):
    logits = few_values(64) if make == "ties" else normal(64)
    if make == "infinite":
        logits[:, ::2] = -torch.inf
    if make == "zeros":
        logits = torch.where(normal(64) > 0, 0.0, -0.0)
    logits = logits.to(dtype)
    before = logits.clone()
    state, rows, flags = state_of([SamplingParams(top_k=1)] * 64)
    ids, scaled = state.sample(logits, rows, at(0, 64), flags)
    assert ids.dtype == torch.int64 and scaled.dtype == torch.float32
    assert ids.tolist() == logits.double().numpy().argmax(1).tolist()  # numpy takes the first of equals
    assert torch.equal(scaled, logits.float()) and torch.equal(logits, before)


def test_greedy_rows_of_a_mixed_batch_are_not_touched_by_noise_or_temperature():
    """Neighbours below 2, divided by 1.9, become the same number: the argmax must be taken before the division."""
    logits = few_values(100)
    logits[0] = 0
    logits[0, 2], logits[0, 5] = 2 - 2**-22, 2 - 2**-23
    assert (logits[0] / 1.9)[2] == (logits[0] / 1.9)[5]
    params = [SamplingParams(top_k=1, temperature=1.9), SamplingParams(temperature=5.0)] * 50
    state, rows, flags = state_of(params)
    ids, _ = state.sample(logits, rows, at(0, 100), flags)
    assert torch.equal(ids[::2], logits[::2].argmax(-1))
    assert ids[0] == 5
    assert not torch.equal(ids[1::2], logits[1::2].argmax(-1))


@pytest.mark.parametrize("fields", [{"top_k": 1}, {}, {"top_p": 0.5}, {"top_k": 5, "top_p": 0.5, "min_p": 0.1}])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_hopeless_logits_still_give_a_token(fields: dict, value: float):
    """An id outside the vocabulary would fault in the next step's embedding and take every request with it."""
    state, rows, flags = state_of([SamplingParams(**fields)])
    ids, _ = state.sample(torch.full((1, VOCAB), value), rows, at(0), flags)
    assert 0 <= ids.item() < VOCAB


# ---- the draw --------------------------------------------------------------------------------------------------


def words(vocab: int) -> torch.Tensor:
    return mix32(torch.arange(vocab))


def hash_reference(seed: int, position: int, token: int) -> int:
    """The documented hash in Python's own integers."""
    mask, golden = 2**32 - 1, 0x9E3779B1

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x21F0AAAD & mask
        x ^= x >> 15
        x = x * 0x735A2D97 & mask
        return x ^ x >> 15

    low, high = seed & mask, seed >> 32 & mask
    key = mix(mix(low) ^ position)
    second = mix(mix(high ^ golden) ^ mix(position ^ golden))
    x = mix(token) ^ key
    x = (x ^ x >> 16) * 0x21F0AAAD & mask
    x ^= second
    x = (x ^ x >> 15) * 0x735A2D97 & mask
    return x ^ x >> 15


@pytest.mark.parametrize("seed", [0, 1, -1, 42, 2**62 + 3, -(2**63), 2**63 - 1])
def test_noise_is_the_documented_hash(seed: int):
    positions = [0, 1, 262143, 2**31, 2**32 - 1]
    tokens = [0, 1, 2, 4095, 262143]
    noise = gumbel(words(262144), torch.full((5,), seed), torch.tensor(positions))[:, tokens]
    v = np.array([[(hash_reference(seed, p, t) + 0.5) / 2**32 for t in tokens] for p in positions])
    assert noise.dtype == torch.float32
    assert np.allclose(noise.numpy(), -np.log(-np.log1p(-v)), rtol=1e-6)


def test_noise_is_finite_at_both_ends_of_the_hash():
    """Token words that hash to 0 and to 2**32 - 1 under a row's keys: the noise's largest and smallest value."""

    def unmultiply(x: int, factor: int) -> int:
        return x * pow(factor, -1, 2**32) % 2**32

    def unshift(x: int, by: int) -> int:  # of y = x ^ x >> by with by >= 11
        return x ^ x >> by ^ x >> 2 * by

    row = torch.tensor([0])
    key = mix32(mix32(row) ^ row)
    second = mix32(mix32(row ^ 0x9E3779B1) ^ mix32(row ^ 0x9E3779B1))
    words_at_ends = []
    for end in (0, 2**32 - 1):
        x = unmultiply(unshift(end, 15), 0x735A2D97)
        x = unmultiply(unshift(x, 15) ^ second.item(), 0x21F0AAAD)
        words_at_ends.append(unshift(x, 16) ^ key.item())
    noise = gumbel(torch.tensor(words_at_ends), row, row)[0]
    assert noise.tolist() == pytest.approx([33 * np.log(2), -np.log(33 * np.log(2))], rel=1e-6)


def test_mix32_is_a_bijection_of_32_bit_words():
    x = torch.arange(1 << 16) * 65537
    assert len(mix32(x).unique()) == len(x) and mix32(x).min() >= 0 and mix32(x).max() < 1 << 32


def uniform(seeds: torch.Tensor, positions: torch.Tensor, vocab: int) -> torch.Tensor:
    """The noise made uniform again, [S, V]."""
    return torch.exp(-torch.exp(-gumbel(words(vocab), seeds, positions).double()))


@pytest.mark.parametrize("vary", ["seed", "position", "token", "high half of the seed"])
def test_noise_is_uniform_and_independent_along_every_axis(vary: str):
    """Chi-square with 256 cells, and of pairs of neighbours along the axis with 16 x 16: counters are what seeds and
    positions are in practice."""
    n = 1 << 16
    counter, fixed = torch.arange(n), torch.full((n,), 5)
    if vary == "token":
        u = uniform(torch.tensor([3]), torch.tensor([4]), n)[0]
    elif vary == "seed":
        u = uniform(counter, fixed, 1)[:, 0]
    elif vary == "position":
        u = uniform(fixed, counter, 1)[:, 0]
    else:
        u = uniform(counter << 32, fixed, 1)[:, 0]
    one = chi_square(torch.bincount((u * 256).long(), minlength=256), torch.full((256,), n / 256))
    assert 180 < one < 343  # 255 degrees of freedom, about 0.02 % at either end
    cells = (u * 16).long()
    pairs = chi_square(torch.bincount(cells[:-1] * 16 + cells[1:], minlength=256), torch.full((256,), (n - 1) / 256))
    assert 180 < pairs < 343


def test_rows_that_differ_in_one_bit_have_unrelated_noise():
    base = uniform(torch.tensor([12345]), torch.tensor([77]), 4096)[0] - 0.5
    for bit in range(64):
        seed = 12345 ^ (1 << bit) if bit < 63 else 12345 - 2**63
        other = uniform(torch.tensor([seed]), torch.tensor([77]), 4096)[0] - 0.5
        assert abs((base * other).mean() * 12) < 5 / 64, f"seed bit {bit}"  # five standard errors of a correlation
    for bit in range(20):
        other = uniform(torch.tensor([12345]), torch.tensor([77 ^ (1 << bit)]), 4096)[0] - 0.5
        assert abs((base * other).mean() * 12) < 5 / 64, f"position bit {bit}"


@pytest.mark.parametrize("vary", ["seeds", "positions"])
@pytest.mark.parametrize("fields", [{}, {"temperature": 2.0}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}])
def test_draws_follow_the_distribution_that_is_left(fields: dict, vary: str):
    """Chi-square over 8 tokens and 20000 draws, one request over many positions or many requests at one."""
    n, params = 20000, SamplingParams(**fields)
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, 0.2]])
    if vary == "positions":
        state, rows, flags = state_of([params], vocab=8)
        ids, _ = state.sample(logits.expand(n, -1), rows.expand(n), torch.arange(n), flags)
    else:
        state, rows, flags = state_of([params] * n, vocab=8, seeds=list(range(n)))
        ids, _ = state.sample(logits.expand(n, -1), rows, at(0, n), flags)
    scaled = logits[0].double() / params.temperature
    kept = torch.from_numpy(kept_reference(scaled.numpy(), params.top_k, params.top_p, params.min_p))
    counts = torch.bincount(ids, minlength=8)
    assert counts[~kept].sum() == 0
    expected = torch.softmax(scaled[kept], 0) * n
    low, high = {8: (0.6, 24.3), 4: (0.02, 16.3), 5: (0.09, 18.5), 6: (0.2, 20.5)}[len(expected)]  # 0.1 % either end
    assert low < chi_square(counts[kept], expected) < high


def test_draws_over_the_full_vocabulary_are_uniform_where_logits_are():
    """Of 262144 equal tokens the largest noise wins, which the hash's rarest values decide."""
    draws, vocab = 100, 262144
    state, rows, flags = state_of([SamplingParams()], vocab=vocab)
    ids = torch.cat([state.sample(torch.zeros(1, vocab), rows, at(i), flags)[0] for i in range(draws)])
    assert len(ids.unique()) > 95
    assert chi_square(torch.bincount(ids * 4 // vocab, minlength=4), torch.full((4,), draws / 4)) < 16.3
    best = gumbel(state.token_words, torch.arange(64), torch.arange(64)).amax(-1)
    assert len(best.unique()) == 64


@pytest.mark.parametrize("seed", [0, -1, 2**62, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("fields", [{}, {"top_k": 64, "top_p": 0.95}, {"top_p": 0.9, "min_p": 0.01}])
def test_extreme_seeds_and_the_full_vocabulary(seed: int, fields: dict):
    state, rows, flags = state_of([SamplingParams(temperature=0.5, **fields)], vocab=262144, seeds=[seed])
    ids, _ = state.sample(normal(1, 262144), rows, torch.tensor([262143]), flags)
    assert 0 <= ids.item() < 262144


def mixed_params() -> list[SamplingParams]:
    return [
        SamplingParams(),
        SamplingParams(top_k=1),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(top_k=20, min_p=0.02),
        SamplingParams(top_k=200, temperature=1.3),
        SamplingParams(frequency_penalty=1.0, presence_penalty=0.5),
        SamplingParams(repetition_penalty=1.5, top_k=1),
        SamplingParams(logit_bias={"0": 3.0, "7": -100.0}),
        SamplingParams(min_new_tokens=30, top_k=64, top_p=0.95),
    ]


def test_a_row_depends_on_itself_alone(monkeypatch):
    """Over several steps: together, in another order, alone with its own flags, and in blocks of one row."""
    params = mixed_params()
    n = len(params)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    together, trows, tflags = state_of(params, stop_ids=[1, 2])
    shuffled, srows, _ = state_of(params, stop_ids=[1, 2])
    blocks, brows, _ = state_of(params, stop_ids=[1, 2])
    alone = [state_of([p], seeds=[7 * (i + 1)], stop_ids=[1, 2]) for i, p in enumerate(params)]
    for step in range(12):
        logits, positions = normal(n, seed=step % 3), at(step, n)
        ids, scaled = together.sample(logits, trows, positions, tflags)
        ids2, scaled2 = shuffled.sample(logits[order], srows[order], positions[order], tflags)
        assert torch.equal(ids2, ids[order]) and torch.equal(scaled2, scaled[order])
        with monkeypatch.context() as patch:
            patch.setattr(sampler_module, "BLOCK_ELEMENTS", 1)
            assert torch.equal(blocks.sample(logits, brows, positions, tflags)[0], ids)
        for i, (state, rows, flags) in enumerate(alone):
            own, own_scaled = state.sample(logits[i : i + 1], rows, positions[i : i + 1], flags)
            assert own.item() == ids[i].item(), (step, params[i])
            assert torch.equal(own_scaled[0], scaled[i])
    again, _ = together.sample(logits, trows, positions + 1, tflags)
    assert not torch.equal(again, ids)


# ---- penalties, bias, barred tokens ----------------------------------------------------------------------------


PENALTIES = [
    {"frequency_penalty": 0.9},
    {"frequency_penalty": -0.3},
    {"presence_penalty": 1.1},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.6},
    {"frequency_penalty": 0.4, "presence_penalty": 0.3, "repetition_penalty": 1.2, "logit_bias": {"4": 1.5}},
]


@pytest.mark.parametrize("fields", PENALTIES)
def test_penalties_follow_their_definition_over_steps_and_after_a_resume(fields: dict):
    params = SamplingParams(top_k=1, **fields)
    frequency, presence, repetition = params.frequency_penalty, params.presence_penalty, params.repetition_penalty
    state, rows, flags = state_of([params], vocab=12)
    made: list[int] = []
    for step in range(12):
        logits = normal(1, 12, seed=step % 2)
        x = logits[0].double().numpy().copy()
        for token in set(made):
            x[token] -= frequency * made.count(token) + presence
            x[token] = x[token] * repetition if x[token] < 0 else x[token] / repetition
        for token, value in (params.logit_bias or {}).items():
            x[int(token)] += value
        ids, scaled = state.sample(logits, rows, at(step), flags)
        assert np.allclose(scaled[0].numpy(), x, atol=1e-5)
        assert ids.item() == x.argmax()
        resumed, rows2, _ = state_of([params], vocab=12, outputs=[made])
        assert torch.allclose(resumed.sample(logits, rows2, at(step), flags)[1], scaled, atol=1e-6)
        made.append(ids.item())
    assert len(set(made)) < len(made)  # some token came twice


def test_a_resume_replaces_the_counts_of_the_row():
    params = SamplingParams(top_k=1, frequency_penalty=1.0)
    state, rows, flags = state_of([params], vocab=4)
    logits = torch.zeros(1, 4)
    for step in range(3):
        state.sample(logits, rows, at(step), flags)
    state.admit([1], [params], [0], [PROMPT], [[]], [[3, 3]])
    assert state.sample(logits, rows, at(2), flags)[1].tolist() == [[0, 0, 0, -2]]


def test_a_row_is_clean_for_its_next_request():
    params = SamplingParams(top_k=1, frequency_penalty=2.0, logit_bias={"3": 100.0}, min_new_tokens=5, temperature=0.5)
    state, rows, flags = state_of([params], stop_ids=[8])
    logits = normal(1)
    logits[0, 8] = 50.0
    assert state.sample(logits, rows, at(0), flags)[0].item() == 3
    state.admit([1], [SamplingParams(top_k=1)], [0], [PROMPT], [[8]], [[]])
    ids, scaled = state.sample(logits, rows, at(0), flags)  # as if others in the batch still had all of it
    assert torch.equal(scaled, logits) and ids.item() == 8


def test_min_new_tokens_bars_every_stop_id_until_then():
    logits = torch.zeros(1, VOCAB)
    logits[0, [4, 9, 11]] = torch.tensor([9.0, 8.0, 7.0])
    params = SamplingParams(top_k=1, min_new_tokens=2)
    state, rows, flags = state_of([params], stop_ids=[4, 9, VOCAB + 7])  # an eos the vocabulary does not have
    tokens = [state.sample(logits, rows, at(step), flags)[0].item() for step in range(4)]
    assert tokens == [11, 11, 4, 4]
    none, rows, flags = state_of([params], stop_ids=[])
    assert none.sample(logits, rows, at(0), flags)[0].item() == 4


def test_more_stop_ids_or_biases_than_before_leave_other_rows_alone():
    """The tables widen by (0, 0.0) pairs: token 0 of the rows already there must not be barred or changed."""
    first = SamplingParams(top_k=1, min_new_tokens=5, logit_bias={"6": 1.0})
    state = SamplingState(2, VOCAB, "cpu")
    logits = torch.zeros(1, VOCAB)
    logits[0, 0] = 3.0
    state.admit([1], [first], [0], [PROMPT], [[5]], [[]])
    before = state.sample(logits, torch.tensor([1]), at(0), combine([flag_bits(first)]))[1]
    many = SamplingParams(top_k=1, min_new_tokens=5, logit_bias={str(i): -1.0 for i in range(100)})
    state.admit([2], [many], [0], [PROMPT], [list(range(100, 200))], [[]])
    after = state.sample(logits, torch.tensor([1]), at(0), combine([flag_bits(first)]))[1]
    assert torch.equal(before, after) and after[0, 0] == 3 and after[0, 5] == -torch.inf and after[0, 6] == 1
    wide = state.sample(logits, torch.tensor([2]), at(0), combine([flag_bits(many)]))[1]
    assert torch.equal(wide[0, :100], logits[0, :100] - 1) and torch.isinf(wide[0, 100:200]).all()


def test_bias_comes_after_penalties_and_before_the_temperature():
    params = SamplingParams(top_k=1, repetition_penalty=2.0, logit_bias={"0": 3.0}, temperature=0.5)
    state, rows, flags = state_of([params], vocab=4, outputs=[[0]])
    assert state.sample(torch.tensor([[4.0, 0, 0, 0]]), rows, at(1), flags)[1][0, 0] == (4 / 2 + 3) / 0.5


def test_the_wide_table_waits_for_the_first_penalty():
    state, _, _ = state_of([SamplingParams(logit_bias={"1": 1.0}, min_new_tokens=3)], stop_ids=[1])
    assert state.counts is None
    state.admit([1], [SamplingParams(presence_penalty=1.0)], [0], [PROMPT], [[]], [[]])
    assert state.counts.shape == (4, VOCAB)


def test_a_vocabulary_beyond_the_exact_sums_is_refused():
    with pytest.raises(AssertionError, match="1048577"):
        SamplingState(1, (1 << 20) + 1, "meta")


# ---- log-probabilities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 1 << 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_best_and_selected(block: int, dtype: torch.dtype, monkeypatch):
    monkeypatch.setattr(logprobs_module, "BLOCK_ELEMENTS", block)
    logits = torch.cat([normal(3), torch.zeros(1, VOCAB), few_values(2)]).to(dtype)
    ids = torch.tensor([3, 0, 299, 7, 1, 2])
    top = [0, 3, 2, 2, VOCAB + 5, 40]
    selected = [None, [1, 2], [], [299], [5] * 3, list(range(VOCAB))]
    values, best, asked = token_logprobs(logits, ids, top, selected).lists()
    exact = torch.log_softmax(logits.double(), -1).numpy()
    assert np.allclose(values, exact[range(6), ids], atol=1e-6)
    for row in range(6):
        if top[row] == 0:
            assert best[row] is None
        else:
            order = np.lexsort((np.arange(VOCAB), -exact[row]))[: top[row]]
            assert [token for _, token in best[row]] == order.tolist()
            assert np.allclose([value for value, _ in best[row]], exact[row, order], atol=1e-6)
        if not selected[row]:
            assert asked[row] is None
        else:
            assert np.allclose(asked[row], exact[row, selected[row]], atol=1e-6)


def test_logprobs_of_nothing():
    assert token_logprobs(torch.zeros(0, VOCAB), torch.zeros(0, dtype=torch.int64), [], []).lists() == ([], [], [])


def test_logprobs_are_those_after_penalties_and_temperature_and_before_the_cuts():
    params = SamplingParams(temperature=0.5, top_k=2, presence_penalty=1.0)
    state, rows, flags = state_of([params], outputs=[[4]])
    logits = normal(1)
    ids, scaled = state.sample(logits, rows, at(1), flags)
    x = logits.double()
    x[0, 4] -= 1.0
    exact = torch.log_softmax(x / 0.5, -1)
    (value,), (best,), _ = token_logprobs(scaled, ids, [5], [None]).lists()
    assert abs(value - exact[0, ids.item()]) < 1e-5
    assert np.allclose([v for v, _ in best], exact[0].topk(5).values, atol=1e-5)


def test_original_logprobs_are_the_models_own(monkeypatch):
    """Upstream's variable: before temperature, penalties, bias and what is barred; the tokens stay the same."""
    fields = {"temperature": 0.5, "presence_penalty": 1.0, "logit_bias": {"7": 50.0}, "min_new_tokens": 9}
    params = [SamplingParams(**fields), SamplingParams(top_k=1), SamplingParams(temperature=2.0)]
    logits, positions = normal(3), at(1, 3)
    usual = state_of(params, outputs=[[4], [], []], stop_ids=[3])
    monkeypatch.setenv("SGLANG_RETURN_ORIGINAL_LOGPROB", "1")
    original = state_of(params, outputs=[[4], [], []], stop_ids=[3])
    ids, reported = original[0].sample(logits, original[1], positions, original[2])
    assert torch.equal(ids, usual[0].sample(logits, usual[1], positions, usual[2])[0])
    exact = torch.log_softmax(logits.double(), -1)
    values, best, asked = token_logprobs(reported, ids, [5] * 3, [[3, 4]] * 3).lists()
    assert np.allclose(values, exact.gather(1, ids[:, None])[:, 0], atol=1e-5)
    for i in range(3):
        assert np.allclose([v for v, _ in best[i]], exact[i].topk(5).values, atol=1e-5)
        assert np.allclose(asked[i], exact[i, [3, 4]], atol=1e-5)


def test_barred_tokens_have_a_finite_logprob():
    """JSON has no -inf, and upstream reports the lowest float instead."""
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    (value,), (best,), (asked,) = token_logprobs(logits, torch.tensor([1]), [3], [[2]]).lists()
    lowest = torch.finfo(torch.float32).min
    assert value == lowest and asked == [lowest] and best == [(0.0, 0), (lowest, 1), (lowest, 2)]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
