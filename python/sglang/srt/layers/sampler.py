"""The sampler: from logits to the next token of each request. It owns the per-request device tables sampling needs.

Order (upstream's): frequency, presence and repetition penalties on generated tokens, logit_bias, min_new_tokens,
temperature, then top_k, top_p, min_p, then the draw. Greedy rows are those with top_k 1: the argmax after penalties,
ties to the lowest id.

The draw is Gumbel-argmax: argmax_i(logit_i + G_i) is a sample of softmax(logits) when the G_i are independent Gumbel
variables (Gumbel 1954). G_i comes from a hash of (seed, position, i), so a token depends on its own row alone: not on
the batch, its order, or how the request got there.
"""

import enum
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from sglang.srt.sampling.sampling_params import SamplingParams

MASK32 = 0xFFFFFFFF
GOLDEN = 0x9E3779B1  # 2**32 / golden ratio, odd: spreads consecutive ids (Knuth, TAOCP 3, 6.4)


class SamplingFlags(enum.IntFlag):
    """What a batch needs from the sampler, so that nothing branches on device data."""

    DRAW = 1  # some row is not greedy
    FILTER = 2  # some row that draws has top_k, top_p or min_p
    PENALTY = 4
    BIAS = 8
    MIN_TOKENS = 16
    TEMPERATURE = 32


def flag_bits(params: SamplingParams) -> int:
    """The SamplingFlags one request needs, as a plain int."""
    bits = 0
    if params.top_k != 1:
        bits |= SamplingFlags.DRAW
        if params.top_k > 0 or params.top_p < 1 or params.min_p > 0:
            bits |= SamplingFlags.FILTER
    if params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1:
        bits |= SamplingFlags.PENALTY
    if params.logit_bias:
        bits |= SamplingFlags.BIAS
    if params.min_new_tokens:
        bits |= SamplingFlags.MIN_TOKENS
    if params.temperature != 1:
        bits |= SamplingFlags.TEMPERATURE
    return int(bits)


def combine(bits: list[int]) -> SamplingFlags:
    """What a batch of requests needs, given flag_bits() of each."""
    return SamplingFlags(reduce(or_, bits, 0))


class SamplingState:
    """Sampling parameters, seeds and token counts by request row; row 0 is padding (greedy, no penalties).

    The tables as wide as the vocabulary exist only once a request needs them.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device | str):
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        n = num_rows + 1
        self.seeds = torch.zeros(n, dtype=torch.int64, device=device)
        self.prompt_lens = torch.zeros(n, dtype=torch.int64, device=device)
        self.min_new_tokens = torch.zeros(n, dtype=torch.int64, device=device)
        self.top_ks = torch.ones(n, dtype=torch.int64, device=device)
        # columns: temperature, top_p, min_p, frequency, presence, repetition
        self.values = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 1.0]], device=device).repeat(n, 1)
        self.stop_ids = torch.zeros(n, 1, dtype=torch.int64, device=device)  # padded by repeating the last one
        self.has_stop_ids = torch.zeros(n, dtype=torch.bool, device=device)
        self.counts: Tensor | None = None  # [n, V] int32, generated tokens
        self.bias: Tensor | None = None  # [n, V] fp32

    def admit(
        self,
        rows: list[int],
        params: list[SamplingParams],
        seeds: list[int],
        prompt_lens: list[int],
        stop_ids: list[list[int]],
        output_ids: list[list[int]],
    ) -> None:
        """Fill rows for requests that start or, with `output_ids` given, resume. `stop_ids`: what ends a request,
        eos included, and is barred until min_new_tokens are made."""
        index = self._ints(rows)
        self.seeds[index] = self._ints(seeds)
        self.prompt_lens[index] = self._ints(prompt_lens)
        self.min_new_tokens[index] = self._ints([p.min_new_tokens for p in params])
        self.top_ks[index] = self._ints([p.top_k if p.top_k > 0 else self.vocab_size for p in params])
        self.values[index] = torch.tensor(
            [
                [p.temperature, p.top_p, p.min_p, p.frequency_penalty, p.presence_penalty, p.repetition_penalty]
                for p in params
            ],
            device=self.device,
        )
        for i, row in enumerate(rows):
            self._admit_wide(row, flag_bits(params[i]), params[i], stop_ids[i], output_ids[i])

    def _admit_wide(
        self, row: int, bits: int, params: SamplingParams, stop_ids: list[int], output_ids: list[int]
    ) -> None:
        if bits & SamplingFlags.MIN_TOKENS:
            width = self.stop_ids.shape[1]
            if len(stop_ids) > width:
                self.stop_ids = torch.nn.functional.pad(self.stop_ids, (0, len(stop_ids) - width))
            width = self.stop_ids.shape[1]
            padded = (stop_ids + stop_ids[-1:] * width)[:width] if stop_ids else [0] * width
            self.stop_ids[row] = self._ints(padded)
            self.has_stop_ids[row] = bool(stop_ids)
        if bits & SamplingFlags.PENALTY:
            if self.counts is None:
                self.counts = torch.zeros(len(self.seeds), self.vocab_size, dtype=torch.int32, device=self.device)
            self.counts[row] = torch.bincount(self._ints(output_ids), minlength=self.vocab_size).int()
        if bits & SamplingFlags.BIAS:
            if self.bias is None:
                self.bias = torch.zeros(len(self.seeds), self.vocab_size, device=self.device)
            self.bias[row] = 0
            ids = self._ints([int(token) for token in params.logit_bias])
            self.bias[row, ids] = torch.tensor(list(params.logit_bias.values()), device=self.device)
        elif self.bias is not None:
            self.bias[row] = 0  # an earlier request of this row had one

    def _ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def sample(self, logits: Tensor, rows: Tensor, positions: Tensor, flags: SamplingFlags) -> tuple[Tensor, Tensor]:
        """logits [S, V] -> next ids [S] int64 and the logits [S, V] fp32 after penalties, bias and temperature.

        `rows` [S] int64, `positions` [S] int64: index in its sequence of the token being sampled. Log-probabilities are
        taken from the second result, as upstream does: before top_k, top_p and min_p cut anything off.
        """
        scaled = self._adjust(logits.float(), rows, positions, flags)
        if flags & SamplingFlags.DRAW:
            candidates = self._filter(scaled, rows) if flags & SamplingFlags.FILTER else scaled
            noisy = candidates + gumbel(self.seeds[rows], positions, self.vocab_size)
            # A mixed batch: where top_k is 1 the noise must not decide.
            next_ids = torch.where(self.top_ks[rows] == 1, argmax(scaled), argmax(noisy))
        else:
            next_ids = argmax(scaled)
        if flags & SamplingFlags.PENALTY:
            # Rows without penalties are counted too; their counts are set anew when a request takes the row.
            self.counts.index_put_((rows, next_ids), torch.ones_like(rows, dtype=torch.int32), accumulate=True)
        return next_ids, scaled

    def _adjust(self, logits: Tensor, rows: Tensor, positions: Tensor, flags: SamplingFlags) -> Tensor:
        temperature, _, _, frequency, presence, repetition = self.values[rows].unsqueeze(-1).unbind(1)
        if flags & SamplingFlags.PENALTY:
            counts = self.counts[rows]
            seen = counts > 0
            logits = logits - frequency * counts - presence * seen
            repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
            logits = torch.where(seen, repeated, logits)
        if flags & SamplingFlags.BIAS:
            logits = logits + self.bias[rows]
        if flags & SamplingFlags.MIN_TOKENS:
            early = (positions - self.prompt_lens[rows] < self.min_new_tokens[rows]) & self.has_stop_ids[rows]
            barred = torch.where(early, -torch.inf, 0.0)[:, None].expand(-1, self.stop_ids.shape[1])
            logits = logits.scatter_add(1, self.stop_ids[rows], barred)
        return logits / temperature if flags & SamplingFlags.TEMPERATURE else logits

    def _filter(self, logits: Tensor, rows: Tensor) -> Tensor:
        """-inf for what top_k, top_p and min_p cut off. Equal logits rank by id; top_p keeps tokens until the sum
        before one exceeds it, over the probabilities before top_k, as upstream does."""
        _, top_p, min_p = self.values[rows].unsqueeze(-1).unbind(1)[:3]
        ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        probs = torch.softmax(ordered, dim=-1)
        before = probs.cumsum(-1) - probs
        rank = torch.arange(self.vocab_size, device=logits.device)
        cut = (rank >= self.top_ks[rows, None]) | (before > top_p) | (probs < probs[:, :1] * min_p)
        cut[:, 0] = False
        return torch.empty_like(logits).scatter_(1, order, ordered.masked_fill(cut, -torch.inf))


def argmax(values: Tensor) -> Tensor:
    """Index of the largest entry of each row [S], the lowest one among equals (torch.argmax leaves that open)."""
    best = values.amax(-1, keepdim=True)
    ids = torch.arange(values.shape[-1], device=values.device)
    return torch.where(values == best, ids, values.shape[-1]).amin(-1)


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise [S, V] fp32 from seeds [S] and positions [S], both int64.

    -log(-log(u)) of u = (h + 1/2) / 2**23 with h the upper 23 bits of a hash, so that u is never 0 or 1. The hash is
    integer arithmetic and gives the same bits on every device; the logarithms may differ in the last place.
    """
    tokens = torch.arange(vocab_size, device=seeds.device)
    low, high = seeds & MASK32, (seeds >> 32) & MASK32
    key = mix32(low ^ mix32((positions & MASK32) * GOLDEN + 1))
    second = mix32(high ^ mix32(key + GOLDEN))
    h = mix32(mix32(tokens * GOLDEN + key[:, None]) ^ second[:, None])
    u = ((h >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u))


def mix32(x: Tensor) -> Tensor:
    """A bijection of 32-bit words held in int64: the finalizer of MurmurHash3 (A. Appleby, public domain)."""
    x = x & MASK32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK32
    return x ^ (x >> 16)
