"""Req, the scheduler's view of one prompt being served, and StepPlan, what one step will do. No device, no sockets."""

from dataclasses import dataclass, field

import msgspec
import numpy as np

from sglang.srt.constrained.grammar import AfterThought, Compiled, Grammar
from sglang.srt.managers.io_struct import (
    FinishReason,
    Logprobs,
    RequestReport,
    TextSettings,
    TokenizedGenerateReq,
    TokenOutput,
)
from sglang.srt.mem_cache.host_tier import Load
from sglang.srt.mem_cache.radix_cache import Match
from sglang.srt.model_executor.step_io import TokenLogprob
from sglang.srt.sampling.sampling_flags import SamplingFlags, flag_bits

PROMPT_TAIL = 8  # prompt tokens the detokenizer sees


class Req:
    """A request from arrival to its final message.

    Its tokens are prompt then output. `computed` counts tokens whose KV is in its slots, steps in flight included;
    `pending` counts tokens sampled by steps whose result has not been processed (0 or 1).
    """

    __slots__ = (
        "serial", "msg", "params", "prompt", "output_ids", "stop_ids", "seed", "max_new_tokens", "order",
        "row", "node", "owned_from", "swa_start", "swa_released", "branch", "load", "loaded_by", "prefill_end",
        "computed", "pending", "report", "finish", "announced", "sent", "out_logprobs", "in_logprobs", "stream_every",
        "sampling_bits", "grammar",
    )  # fmt: skip

    def __init__(self, msg: TokenizedGenerateReq, stop_ids: frozenset[int], seed: int, order: int, max_len: int):
        self.serial = msg.serial
        self.msg = msg
        self.params = msg.sampling_params
        self.prompt = np.asarray(msg.input_ids, dtype=np.int64)
        self.output_ids: list[int] = []
        self.stop_ids = stop_ids
        self.seed = seed
        self.max_new_tokens = min(self.params.max_new_tokens, max_len - len(self.prompt))
        self.order = order  # arrival number

        # KV, owned by KVManager
        self.row = -1
        self.node = None  # locked tree node of the cached part
        self.owned_from = 0  # slots of positions below are the tree's
        self.swa_start = 0  # first owned position whose sliding slot has not been given back
        self.swa_released = False  # the sliding lock on `node` was given up
        self.branch = 0  # where it leaves a cached prefix whose sliding window is gone, until that is shared anew

        self.load: Load | None = None  # what of its prefix still comes from the host, until all is on its way
        self.loaded_by = 0  # the copies after which that is there

        self.prefill_end = 0  # tokens to compute before decoding starts: all that were known at admission
        self.computed = 0
        self.pending = 0

        self.report = RequestReport()  # no decision reads it
        self.finish: FinishReason | None = None
        self.announced = False  # its first output is on its way
        self.sent = 0  # output tokens already sent on
        self.out_logprobs: list[TokenLogprob] = []  # not yet sent
        self.in_logprobs: list[TokenLogprob] | None = None
        if msg.return_logprob and msg.logprob_start_len >= 0:
            self.in_logprobs = []
        self.stream_every = self._stream_every()
        self.sampling_bits = flag_bits(self.params)
        self.grammar: Grammar | None = None  # once it is compiled; before, the request waits apart

    def begin_grammar(self, compiled: Compiled | None) -> None:
        """What the output must look like: `compiled`, behind a thought if there is one, and the thought has an end."""
        self.grammar = compiled and compiled.begin()
        if self.msg.thought_marks is not None:
            budget = self.params.thinking_budget
            self.grammar = AfterThought(self.grammar, self.msg.thought_marks, self.prompt, budget)

    def next_bits(self, drafted: int) -> int:
        """The SamplingFlags that its next token needs, and those behind `drafted` ones that come with it."""
        masked = self.grammar is not None and self.grammar.needs_mask(self.pending + drafted)
        return self.sampling_bits | (SamplingFlags.MASK if masked else 0)

    def count_verify(self, correct: int) -> None:
        """A draft was verified and its first `correct` tokens were accepted."""
        counts = self.report.verified_drafts or []
        counts = counts + [0] * (correct + 1 - len(counts))
        counts[correct] += 1
        self.report.verified_drafts = counts

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Prompt log-probabilities were asked for and the prompt is not through yet."""
        return self.in_logprobs is not None and not self.output_ids and not self.pending

    @property
    def match_limit(self) -> int:
        """How many tokens may come from the cache: at least one is computed, for its logits, and wanted prompt
        log-probabilities need the logits of the token before each."""
        if self.wants_prompt_logprobs:
            return max(0, min(len(self.prompt), self.msg.logprob_start_len) - 1)
        return self.num_tokens - 1

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output_ids)

    @property
    def is_prefilling(self) -> bool:
        return self.computed < self.prefill_end

    @property
    def wants_token(self) -> bool:
        """Another decode step is needed, as far as is known before pending tokens arrive."""
        return len(self.output_ids) + self.pending < self.max_new_tokens

    def token_ids(self) -> np.ndarray:
        """All known tokens, int64."""
        if not self.output_ids:
            return self.prompt
        return np.concatenate([self.prompt, np.asarray(self.output_ids, dtype=np.int64)])

    def _stream_every(self) -> int:
        """Output tokens between two messages: stop strings must be looked for in each token, others can wait."""
        if self.msg.stream:
            return self.params.stream_interval or 1
        return 1 if self.params.stop or self.params.stop_regex else 50

    def take_output(self) -> TokenOutput:
        """What has come since the last output."""
        new_ids = self.output_ids[self.sent :]
        aborted = self.finish is not None and self.finish.type == "abort"
        output = TokenOutput(
            self.serial,
            new_ids,
            finish=self.finish,
            report=msgspec.structs.replace(self.report),
            text=None if self.announced else self._text_settings(),
            output_logprobs=self.take_output_logprobs(new_ids),
            input_logprobs=None if aborted else self.take_prompt_logprobs(),
        )
        self.sent = len(self.output_ids)
        self.announced = True
        return output

    def _text_settings(self) -> TextSettings:
        return TextSettings(self.params, self.msg.input_ids[-PROMPT_TAIL:], self.msg.mark_ids)

    def take_prompt_logprobs(self) -> Logprobs | None:
        """The prompt's log-probabilities, once; entry 0 has no value when it is the first token of all."""
        if self.in_logprobs is None:
            return None
        start = self.msg.logprob_start_len
        ids = self.prompt[start:].tolist()
        entries, self.in_logprobs = self.in_logprobs, None
        result = make_logprobs(ids[len(ids) - len(entries) :], entries, self.msg)
        if start == 0 and ids:
            result.values.insert(0, None)
            result.ids.insert(0, ids[0])
            for column in (result.top, result.selected):
                if column is not None:
                    column.insert(0, None)
        return result

    def take_output_logprobs(self, ids: list[int]) -> Logprobs | None:
        """Log-probabilities of the output tokens being sent."""
        if not self.msg.return_logprob:
            return None
        entries, self.out_logprobs = self.out_logprobs, []
        return make_logprobs(ids, entries, self.msg)


def make_logprobs(ids: list[int], entries: list[TokenLogprob], msg: TokenizedGenerateReq) -> Logprobs:
    """Rows of log-probabilities as the columns the protocol wants; raises AssertionError when their counts differ."""
    assert len(ids) == len(entries), f"{len(ids)} tokens but {len(entries)} log-probabilities for {msg.serial}"
    return Logprobs(
        values=[e.value for e in entries],
        ids=ids,
        top=[e.top for e in entries] if msg.top_logprobs_num else None,
        selected=[e.selected for e in entries] if msg.token_ids_logprob else None,
    )


@dataclass(slots=True)
class Chunk:
    """`tokens` more prompt tokens of a request; a request not yet running comes with its cached prefix, locked."""

    req: Req
    tokens: int
    match: Match | None = None


@dataclass(slots=True)
class Piece:
    """`tokens` more tokens of a request's prefix come from the host, the last `swa_tokens` of them with sliding slots.
    A request not yet running comes with its cached prefix and all of its load, both locked."""

    req: Req
    tokens: int
    swa_tokens: int
    match: Match | None = None
    load: Load | None = None


@dataclass(slots=True)
class StepPlan:
    """What one step does. Retracted requests gave their slots back when the plan was made. Pieces come before chunks:
    a request may have one of each."""

    pieces: list[Piece] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    decodes: list[Req] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.chunks or self.decodes)

    def starts(self) -> list[tuple[Req, Match, Load | None]]:
        """The requests that start in this step, and from where."""
        starts = [(piece.req, piece.match, piece.load) for piece in self.pieces if piece.match is not None]
        return starts + [(chunk.req, chunk.match, None) for chunk in self.chunks if chunk.match is not None]

    def slots(self, decode_tokens: int) -> tuple[int, int]:
        """Full and sliding slots that it takes."""
        computed = sum(chunk.tokens for chunk in self.chunks) + len(self.decodes) * decode_tokens
        full = sum(piece.tokens for piece in self.pieces)
        return computed + full, computed + sum(piece.swa_tokens for piece in self.pieces)
