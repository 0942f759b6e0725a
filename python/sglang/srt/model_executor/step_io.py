"""StepInput and StepOutput: one step as host data, the seam between scheduling and the device.

The scheduler makes a StepInput without knowing tokens that are still being computed: a decode row takes its input from
the device's table of last sampled tokens. Steps run in the order of submission, so a slot freed while an earlier step
is in flight can be given out again at once: whoever writes it next runs later.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sglang.srt.mem_cache.slot_copies import StepCopies
from sglang.srt.sampling.sampling_flags import SamplingFlags
from sglang.srt.sampling.sampling_params import SamplingParams


@dataclass(slots=True)
class Admission:
    """A request takes row `row`; the device fills its sampling state. `output_ids`: tokens made before a retraction."""

    row: int
    params: SamplingParams
    seed: int
    prompt_len: int
    stop_ids: list[int]
    output_ids: list[int]


@dataclass(slots=True)
class TableWrite:
    """Slots of positions [start, start + len) of a row: a cached prefix, or slots the cache has exchanged."""

    row: int
    start: int
    full_slots: np.ndarray  # int32
    swa_slots: np.ndarray  # int32


@dataclass(slots=True)
class PromptLogprobs:
    """Prompt tokens whose log-probabilities are wanted: logits of token rows `token_rows` predict `next_ids`."""

    index: int  # of the request in StepInput.rows
    token_rows: np.ndarray  # int64 [n]
    next_ids: np.ndarray  # int64 [n]
    top: int
    selected: list[int] | None


@dataclass(slots=True)
class StepInput:
    """Rows are prefill chunks first, then decodes; T = sum of extend_lens. All integer arrays are int64.

    With speculation a step is all chunks or all decodes, and a decode takes as many slots as a draft has tokens: its
    newest token and the drafted ones after it, which the device makes up.
    """

    rows: np.ndarray  # [B]
    seq_lens: np.ndarray  # [B], this step's tokens included
    extend_lens: np.ndarray  # [B]
    num_extends: int
    prefill_ids: np.ndarray  # [tokens of the prefill chunks]; decode inputs come from the device's last tokens
    out_cache_loc: np.ndarray  # [T]
    out_cache_loc_swa: np.ndarray  # [T]
    sampled: np.ndarray  # [S], indices into rows of the requests that get a token
    flags: SamplingFlags
    admissions: list[Admission] = field(default_factory=list)
    table_writes: list[TableWrite] = field(default_factory=list)
    copies: StepCopies | None = None  # before all else
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    # one entry a sampled request where any of them wants log-probabilities: (top, selected ids), None = not wanted
    output_logprobs: list[tuple[int, list[int] | None] | None] | None = None


@dataclass(slots=True)
class DraftTokens:
    """What a round of drafts lets the target verify, on the host. N nodes a request, node 0 its newest token; parents
    come before their children, and the root's parent is itself."""

    tokens: np.ndarray  # [S, N] int64
    parents: np.ndarray  # [S, N] int64


@dataclass(slots=True)
class TokenMasks:
    """Which tokens rows with grammars may get; other rows are free. Words as constrained/grammar.py has them."""

    # int64 [G], indices into StepInput.sampled; of a step with drafts of N nodes i * N + j for what follows node j of i
    places: np.ndarray
    bits: np.ndarray  # int32 [G, words]


@dataclass(slots=True)
class TokenLogprob:
    value: float
    top: list[tuple[float, int]] | None
    selected: list[float] | None


@dataclass(slots=True)
class StepOutput:
    """What each of the S sampled requests got: one token, or after a verified draft one and more."""

    next_ids: list[list[int]]  # [S]
    output_logprobs: list[list[TokenLogprob] | None] | None = None  # [S], one of each token; None = not wanted
    prompt_logprobs: list[list[TokenLogprob]] = field(default_factory=list)  # one list a PromptLogprobs
    # [S] after drafts: which of the step's slots of a request hold its accepted tokens, in their order; the first is 0
    kept: list[list[int]] | None = None


class PendingStep(Protocol):
    """A step under way."""

    def result(self) -> StepOutput:
        """Waits for the step's end. Raises what the step raised."""
        ...


class HeldStep:
    """A PendingStep whose forward is under way and that is sampled once its masks are known. `sample` starts that;
    `forwarded` waits for the forward as far as a host can; `drafts` waits for what the forward has drafted, None where
    it drafts nothing."""

    def __init__(
        self,
        sample: Callable[[TokenMasks], PendingStep],
        forwarded: Callable[[], object],
        drafts: Callable[[], DraftTokens | None] = lambda: None,
    ):
        self._sample = sample
        self._forwarded = forwarded
        self.drafts = drafts
        self._sampled: PendingStep | None = None

    def sample(self, masks: TokenMasks) -> None:
        """Once, before the next step is submitted and before result()."""
        self._sampled = self._sample(masks)

    def result(self) -> StepOutput:
        return self._sampled.result()

    def settle(self) -> None:
        """Wait for what has been started of it."""
        self._forwarded() if self._sampled is None else self._sampled.result()


class Worker(Protocol):
    """Runs steps in the order they come."""

    def submit(self, step: StepInput) -> PendingStep:
        """Returns at once; a HeldStep where step.flags have MASK."""
        ...

    def copy(self, copies: StepCopies) -> None:
        """As a step without rows; nothing is under way."""
        ...
