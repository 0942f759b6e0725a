"""The sampler: from logits to the next token of each request. It owns the per-request device tables sampling needs.

What happens to a row of logits, in upstream's order:
0. tokens that the row's grammar does not allow are barred;
1. frequency and presence penalties are subtracted, then repetition_penalty scales; all three look at generated tokens
   only, the prompt does not count (upstream's penalizers see output ids alone);
2. logit_bias is added, and tokens that the checkpoint wants never sampled are barred;
3. eos and the other stop tokens are barred until min_new_tokens are made;
4. division by the temperature: log-probabilities are those of the result, before anything is cut off, as upstream
   reports them; with SGLANG_RETURN_ORIGINAL_LOGPROB=1 they are the model's own, of the logits before step 1;
5. top_k, top_p and min_p cut, each judging the probabilities of step 4 (upstream's "joint" order: top_p's sum is not
   renormalised after top_k), so their order does not matter;
6. the draw, or for greedy rows (top_k 1) the argmax of step 3, ties to the lowest id.

The draw is Gumbel-argmax: argmax_i(logit_i + G_i) is a sample of softmax(logits) when the G_i are independent Gumbel
variables (Gumbel 1954). G_i comes from a hash of (seed, position, i), so a token depends on its own row alone: not on
the batch, its order, or how the request got there.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sglang.srt.ops.sampling.token_mask import mask_tokens
from sglang.srt.sampling.sampling_flags import SMALL_TOP_K, SamplingFlags, flag_bits
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.utils.device_copies import to_device
from sglang.srt.utils.environment import is_on

BLOCK_ELEMENTS = 1 << 23  # of logits that draw at a time: bounds the temporaries (64 MB for each int64 one)
MASK32 = 0xFFFFFFFF
GOLDEN = 0x9E3779B1  # 2**32 / golden ratio, odd (Knuth, TAOCP 3, 6.4): makes the second key differ from the first
MASS_BITS = 42  # fraction bits of a token's weight in top_p's exact sums; with MAX_VOCAB they fit int64
MAX_VOCAB = 1 << 20


class TokenValues:
    """A few (token id, value) pairs a row. Unused places hold (0, 0.0), which changes nothing when it is added."""

    def __init__(self, num_rows: int, device: torch.device):
        self.ids = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        self.values = torch.zeros(num_rows, 1, device=device)

    def put(self, row: int, pairs: dict[int, float]) -> None:
        """Replace a row's pairs; the table grows to the longest row there has been."""
        missing = len(pairs) - self.ids.shape[1]
        if missing > 0:
            self.ids = torch.nn.functional.pad(self.ids, (0, missing))
            self.values = torch.nn.functional.pad(self.values, (0, missing))
        device, count = self.ids.device, len(pairs)
        self.ids[row] = 0
        self.values[row] = 0
        self.ids[row, :count] = to_device(list(pairs), torch.int64, device)
        self.values[row, :count] = to_device(list(pairs.values()), torch.float32, device)


class SamplingState:
    """Sampling parameters, seeds and token counts by request row.

    Rows run from 0 to `num_rows`; one that no request has taken is greedy without penalties. Calls must run in stream
    order (they all enqueue on the current stream). The table as wide as the vocabulary, [rows, V] int32 of generated
    tokens, exists once a request with penalties has come; `vocab_size` may be up to 2**20. Tokens `never_sampled` have
    logits of -inf.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device | str, never_sampled: Sequence[int] = ()):
        assert 0 < vocab_size <= MAX_VOCAB, f"vocabulary of {vocab_size} tokens, at most {MAX_VOCAB} are supported"
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        n = num_rows + 1
        # columns: seed, prompt length, min_new_tokens, top_k (the vocabulary's size for "all")
        self.ints = torch.tensor([[0, 0, 0, 1]], device=device).repeat(n, 1)
        # columns: temperature, top_p, min_p, frequency, presence, repetition
        self.floats = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 1.0]], device=device).repeat(n, 1)
        self.bias = TokenValues(n, self.device)
        self.barred = TokenValues(n, self.device)  # stop ids with -inf, for rows with min_new_tokens
        self.biased_rows: set[int] = set()
        self.never_sampled = torch.tensor(never_sampled, device=device) if never_sampled else None
        self.counts: Tensor | None = None
        self.token_words = mix32(torch.arange(vocab_size, device=device))  # [V], the hash's part that never changes
        self.reports_original = is_on("SGLANG_RETURN_ORIGINAL_LOGPROB")

    def admit(
        self,
        rows: list[int],
        params: list[SamplingParams],
        seeds: list[int],
        prompt_lens: list[int],
        stop_ids: list[list[int]],
        output_ids: list[list[int]],
    ) -> None:
        """Fill rows (all different) for requests that start or, with `output_ids` given, resume.

        `seeds` are int64; `stop_ids` is what ends a request, eos included, and is barred until min_new_tokens are made.
        Copies from host to device; nothing here may be called while a graph is captured.
        """
        index = to_device(rows, torch.int64, self.device)
        ints = [
            [seed, prompt_len, p.min_new_tokens, min(p.top_k, self.vocab_size) if p.top_k > 0 else self.vocab_size]
            for seed, prompt_len, p in zip(seeds, prompt_lens, params, strict=True)
        ]
        floats = [
            [p.temperature, p.top_p, p.min_p, p.frequency_penalty, p.presence_penalty, p.repetition_penalty]
            for p in params
        ]
        self.ints[index] = to_device(ints, torch.int64, self.device)
        self.floats[index] = to_device(floats, torch.float32, self.device)
        for row, p, stops, outputs in zip(rows, params, stop_ids, output_ids, strict=True):
            self._admit_tokens(row, p, stops, outputs)

    def _admit_tokens(self, row: int, params: SamplingParams, stop_ids: list[int], output_ids: list[int]) -> None:
        bits = flag_bits(params)
        if bits & SamplingFlags.MIN_TOKENS:  # without it the row's old stop ids are never looked at
            # A checkpoint may name an eos its vocabulary does not have.
            self.barred.put(row, {token: -math.inf for token in stop_ids if token < self.vocab_size})
        if bits & SamplingFlags.BIAS:
            self.bias.put(row, {int(token): value for token, value in params.logit_bias.items()})
            self.biased_rows.add(row)
        elif row in self.biased_rows:
            self.bias.put(row, {})
            self.biased_rows.remove(row)
        if bits & SamplingFlags.PENALTY:
            if self.counts is None:
                self.counts = torch.zeros(len(self.ints), self.vocab_size, dtype=torch.int32, device=self.device)
            made = to_device(output_ids, torch.int64, self.device)
            self.counts[row].zero_().scatter_add_(0, made, torch.ones_like(made, dtype=torch.int32))

    def sample(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        flags: SamplingFlags,
        masks: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """logits [S, V] -> next ids [S] int64 and the logits [S, V] fp32 that log-probabilities are of: those after
        penalties, bias and temperature, or the original ones.

        `rows` [S] int64, `positions` [S] int64: index in its sequence of the token being sampled. `flags` must hold
        what any of the rows needs; more than that changes no token. `logits` is left as it was. The tokens count as
        generated from now on. `masks`: of which rows, and their bits, for mask_tokens().
        """
        next_ids, reported = self.choose(logits, rows, positions, flags, masks=masks)
        self.count(rows, next_ids, flags)
        return next_ids, reported

    def choose(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        flags: SamplingFlags,
        path: Tensor | None = None,
        masks: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """sample() without counting the tokens as generated. `path` [S, P] int64: drafted tokens that come before the
        row's token and count as generated for it; -1 where there are fewer."""
        ints, floats = self.ints[rows], self.floats[rows]
        allowed = logits.float() if masks is None else mask_tokens(logits, *masks)
        adjusted = self._adjust(allowed, rows, positions, ints, floats, flags, path)
        scaled = adjusted / floats[:, :1] if flags & SamplingFlags.TEMPERATURE else adjusted
        # Of the adjusted logits: dividing can make equal what was not. torch.argmax takes the first of equals.
        next_ids = adjusted.argmax(-1)
        if flags & SamplingFlags.DRAW:
            drawn = torch.cat([block.argmax(-1) for block in self._noisy(scaled, positions, ints, floats, flags)])
            next_ids = torch.where(ints[:, 3] == 1, next_ids, drawn)
        return next_ids, logits.float() if self.reports_original else scaled

    def preferences(self, logits: Tensor, rows: Tensor, positions: Tensor, flags: SamplingFlags) -> Tensor:
        """[S, V] fp32: what choose() takes the largest of, for those who want the next ones too."""
        ints, floats = self.ints[rows], self.floats[rows]
        adjusted = self._adjust(logits.float(), rows, positions, ints, floats, flags, None)
        if not flags & SamplingFlags.DRAW:
            return adjusted
        scaled = adjusted / floats[:, :1] if flags & SamplingFlags.TEMPERATURE else adjusted
        noisy = torch.cat(list(self._noisy(scaled, positions, ints, floats, flags)))
        return torch.where(ints[:, 3:] == 1, adjusted, noisy)

    def count(self, rows: Tensor, ids: Tensor, flags: SamplingFlags, real: Tensor | None = None) -> None:
        """Note `ids` [S] as generated by the requests in `rows` [S], where `real` [S] bool is true (None: all)."""
        if not flags & SamplingFlags.PENALTY:
            return
        # Rows without penalties are counted too; their counts are set anew when a request takes the row.
        ones = torch.ones_like(rows, dtype=torch.int32) if real is None else real.int()
        self.counts.view(-1).scatter_add_(0, rows * self.vocab_size + ids, ones)

    def _adjust(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        ints: Tensor,
        floats: Tensor,
        flags: SamplingFlags,
        path: Tensor | None,
    ) -> Tensor:
        """Steps 1 to 3 of the module's list."""
        if flags & SamplingFlags.PENALTY:
            frequency, presence, repetition = floats[:, 3:].unsqueeze(-1).unbind(1)
            counts = self.counts[rows]
            if path is not None:
                counts = counts.scatter_add(1, path.clamp(min=0), (path >= 0).int())
            seen = counts > 0
            logits = logits - frequency * counts - presence * seen
            logits = torch.where(seen, torch.where(logits < 0, logits * repetition, logits / repetition), logits)
        if flags & SamplingFlags.BIAS:
            logits = logits.scatter_add(1, self.bias.ids[rows], self.bias.values[rows])
        if self.never_sampled is not None:
            logits = logits.index_fill(1, self.never_sampled, -torch.inf)
        if flags & SamplingFlags.MIN_TOKENS:
            _, prompt_lens, min_new_tokens, _ = ints.unbind(1)
            early = positions - prompt_lens < min_new_tokens
            logits = logits.scatter_add(
                1, self.barred.ids[rows], torch.where(early[:, None], self.barred.values[rows], 0.0)
            )
        return logits

    def _noisy(
        self, logits: Tensor, positions: Tensor, ints: Tensor, floats: Tensor, flags: SamplingFlags
    ) -> Iterator[Tensor]:
        """Steps 5 and 6, some rows at a time: [.., V] whose argmax is a sample of what is left of softmax(logits)."""
        size = max(1, BLOCK_ELEMENTS // self.vocab_size)
        tables = (logits, positions, ints, floats)
        for part, places, whole, real in zip(*(table.split(size) for table in tables), strict=True):
            if flags & (SamplingFlags.TOP_K | SamplingFlags.TOP_P | SamplingFlags.MIN_P):
                kept = kept_tokens(part, whole[:, 3], real[:, 1], real[:, 2], flags)
                part = part.masked_fill(~kept, -torch.inf)
            yield part + gumbel(self.token_words, whole[:, 0], places)


def kept_tokens(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, flags: SamplingFlags) -> Tensor:
    """Which tokens top_k, top_p and min_p leave, [S, V] bool; at least the best token of each row.

    `logits` [S, V] fp32; `top_k` [S] int64 in 1..V, `top_p` and `min_p` [S] fp32. top_p keeps the fewest best tokens
    whose probabilities sum to at least top_p. Equal logits rank by id, the lowest first. min_p keeps probabilities of
    at least min_p times the largest.

    top_k and top_p both keep the first so many tokens in falling order, so only sorted values are needed: the smaller
    number wins, and the value at that rank is a threshold. top_p's sums are of integers, hence exact: no row's cut
    depends on how a device splits a sum.
    """
    vocab_size = logits.shape[1]
    best = logits.amax(-1, keepdim=True)
    kept = torch.ones_like(logits, dtype=torch.bool)
    if flags & (SamplingFlags.TOP_K | SamplingFlags.TOP_P):
        if flags & SamplingFlags.FULL_SORT:
            ordered = logits.sort(-1, descending=True).values
        else:
            ordered = logits.topk(min(SMALL_TOP_K, vocab_size)).values
        number = top_k
        if flags & SamplingFlags.TOP_P:
            masses = mass(ordered - best)
            target = (top_p.double() * mass(logits - best).sum(-1)).ceil().long()
            needed = (masses.cumsum(-1) - masses < target[:, None]).sum(-1)
            number = torch.where(top_p < 1, torch.minimum(top_k, needed), top_k)
        # Rows that keep all may have the vocabulary's size here, more than was ordered. (Both ends are clamped so that
        # NaN logits can't make an index that faults; what is sampled from them is arbitrary but a token.)
        last = ordered.gather(1, (number - 1).clamp(0, ordered.shape[1] - 1)[:, None])
        above, ties = logits > last, logits == last
        room = number - above.sum(-1)
        kept = above | (ties & (ties.cumsum(-1) <= room[:, None])) | (number == vocab_size)[:, None]
    if flags & SamplingFlags.MIN_P:
        kept = kept & (logits - best >= min_p.log()[:, None])
    return kept


def mass(below_best: Tensor) -> Tensor:
    """exp of numbers that are at most 0, as int64 with MASS_BITS of fraction."""
    return (below_best.exp() * 2.0**MASS_BITS).long()


def gumbel(token_words: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Standard Gumbel noise [S, V] fp32 for `token_words` = mix32(0..V-1), seeds [S] and positions [S] (int64).

    With h the 32-bit hash below, v = (h + 1/2) / 2**32 and the noise is -log(-log(1 - v)). The large values, which
    decide, come from small v, which float64 holds to the last bit: -3.1 to 22.9 in steps far below a logit's.
    The hash is integer arithmetic that never leaves int64's range, so its bits are the same on every device. The
    logarithms are float64 rounded to fp32, so devices differ only where theirs straddle a rounding boundary.

    hash(token): two keys a row, each a chain of mix32 over a half of the seed and the position (below 2**32); then
    mix32's steps over token_words[token] ^ key, with the second key put in half way.
    """
    key = mix32(mix32(seeds & MASK32) ^ positions)
    second = mix32(mix32(((seeds >> 32) & MASK32) ^ GOLDEN) ^ mix32(positions ^ GOLDEN))
    h = token_words ^ key[:, None]
    h ^= h >> 16
    h *= 0x21F0AAAD
    h &= MASK32
    h ^= second[:, None]
    h ^= h >> 15
    h *= 0x735A2D97
    h &= MASK32
    h ^= h >> 15
    v = h.double().add_(0.5).mul_(-(2.0**-32))
    return v.log1p_().neg_().log_().neg_().float()


def mix32(x: Tensor) -> Tensor:
    """A bijection of 32-bit words held in int64 (found by C. Wellons' hash-prospector, public domain).

    Both multipliers are below 2**31, so products stay below 2**63.
    """
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & MASK32
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & MASK32
    return x ^ (x >> 15)
