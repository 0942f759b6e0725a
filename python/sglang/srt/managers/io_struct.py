"""The whole protocol between the processes: tagged msgspec structs in msgpack, grouped by who receives them.

HTTP (TokenizerManager) -> scheduler -> detokenizer -> HTTP. Nothing here may hold anything executable; a process that
meets a tag it does not know raises and names it. Times are seconds of `time.time()`, log-probabilities natural.

A generation is known here by its serial, a number that the HTTP process counts and never gives twice: names that
clients choose may come again at any time, and stay in the HTTP process.
"""

from typing import Annotated, Literal

import msgspec

from sglang.srt.sampling.sampling_params import SamplingParams

# A profile nobody stops ends here: 200,000 events are 50 to 100 MB before compression, and some seconds of work.
MAX_PROFILE_STEPS = 5000
MAX_PROFILE_EVENTS = 200_000


class Message(msgspec.Struct, tag=True, array_like=True, omit_defaults=True):
    """Base of every message: the class name travels as its tag."""


class FinishReason(msgspec.Struct, array_like=True, omit_defaults=True):
    """Why a request ended. `matched` is the stop token id or stop string; `message`, `status_code` belong to aborts."""

    type: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None
    status_code: int | None = None


class Logprobs(msgspec.Struct, array_like=True, omit_defaults=True):
    """Log-probabilities of consecutive tokens; the lists run side by side.

    `values[i]` is None only for the first prompt token, which nothing predicts. `top[i]` holds (logprob, id) pairs in
    falling order; `selected[i]` the log-probabilities of the ids asked for by `token_ids_logprob`, in that order.
    """

    values: list[float | None]
    ids: list[int]
    top: list[list[tuple[float, int]] | None] | None = None
    selected: list[list[float] | None] | None = None


# ---- to the scheduler -------------------------------------------------------------------------------------------


class ThoughtMarks(msgspec.Struct, array_like=True):
    """Tokens around a thought, behind which a grammar begins."""

    begin: int
    end: int
    others: list[int]  # special tokens that are no part of a thought, and end one
    may_begin: bool  # the answer may have a thought that the prompt has not begun
    label: list[int] = []  # what stands behind `begin`, a line of its own
    newline: int | None = None  # stands before `end`


class TokenizedGenerateReq(Message):
    """One prompt to serve (a request with n > 1 arrives as n of these)."""

    serial: int
    input_ids: list[int]
    sampling_params: SamplingParams
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: int = -1  # first prompt position whose logprob is wanted; -1 = output tokens only
    top_logprobs_num: int = 0
    token_ids_logprob: list[int] | None = None
    extra_key: str | None = None  # prefixes are shared only between requests with equal keys
    mark_ids: list[int] = []  # special tokens that have no text and are told of by themselves
    thought_marks: ThoughtMarks | None = None  # None: the grammar begins with the output, and no thought has a budget
    created: float = 0.0


class AbortReq(Message):
    """End one request, or all of them; each still gets its one final message (finish type abort)."""

    serial: int = 0  # serials begin at 1
    abort_all: bool = False
    message: str = "aborted by the client"


class StopReq(Message):
    """The detokenizer saw a stop string: it has sent the final text, the scheduler frees the request quietly."""

    serial: int


class GrammarReadyReq(Message):
    """From rank 0 to all: a grammar has been compiled, or why it can't be had."""

    job: int  # as GrammarManager counts them
    error: str | None = None
    status_code: int = 400  # with an error
    data: bytes = b""  # the compiled grammar, for the other ranks


class FlushCacheReq(Message):
    """`wait`: answer as soon as nothing runs any more, or when EndFlushReq comes; else at once."""

    call_id: str
    wait: bool = False


class EndFlushReq(Message):
    """Nobody waits for that flush any longer: it is answered as not done, unless it was."""

    call_id: str


class InternalStateReq(Message):
    call_id: str


class ProfileSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which steps are recorded and where their traces go; the body of /start_profile.

    `profile_by_stage` makes one trace of `num_steps` steps with prompt tokens (EXTEND) and one of as many without
    (DECODE). `start_step` counts from the server's start, as num_steps in /server_info does.
    """

    output_dir: str | None = None  # at or below SGLANG_TORCH_PROFILER_DIR, which is the default
    profile_prefix: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z")] | None = None
    num_steps: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROFILE_STEPS)] | None = None  # None: until it is stopped
    start_step: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None  # None, or a past one: the next step
    activities: Annotated[list[Literal["CPU", "GPU"]], msgspec.Meta(min_length=1, max_length=2)] | None = None
    profile_by_stage: bool = False
    with_stack: bool = False
    record_shapes: bool = False


class StartProfileReq(Message):
    call_id: str
    settings: ProfileSettings


class StopProfileReq(Message):
    call_id: str


# ---- to the detokenizer (those it does not use itself it passes on) ----------------------------------------------


class RequestReport(msgspec.Struct, array_like=True, omit_defaults=True):
    """What the scheduler tells of a request so far, for replies and metrics; the detokenizer passes it on unread."""

    cached_tokens: int = 0
    num_retractions: int = 0
    verified_drafts: list[int] | None = None  # entry i: drafts of which i tokens were accepted
    queue_time: float = 0.0  # seconds from its arrival at the HTTP process to its first step


class TextSettings(msgspec.Struct, array_like=True, omit_defaults=True):
    """How a request's text is made and where it stops."""

    params: SamplingParams
    prompt_tail: list[int] = []  # last prompt ids, so that the first output token is spaced as in its context
    mark_ids: list[int] = []


class TokenOutput(msgspec.Struct, array_like=True, omit_defaults=True):
    """New tokens of one request since its last output; the first one carries `text`, the last one `finish`."""

    serial: int
    new_ids: list[int]
    finish: FinishReason | None = None
    report: RequestReport = msgspec.field(default_factory=RequestReport)
    text: TextSettings | None = None
    output_logprobs: Logprobs | None = None  # of new_ids
    input_logprobs: Logprobs | None = None  # once, with the first output


class BatchTokenOutput(Message):
    outputs: list[TokenOutput]


class SchedulerReady(Message):
    """The scheduler can take requests; `info` is what /server_info reports of it (JSON-safe)."""

    info: dict


class FlushCacheReply(Message):
    call_id: str
    success: bool
    message: str = ""


class InternalStateReply(Message):
    call_id: str
    state: dict  # JSON-safe


class ProfileReply(Message):
    call_id: str
    error: str = ""  # why the call was refused
    profile: dict = {}  # StepProfiler.state(), JSON-safe


# ---- to the HTTP process -----------------------------------------------------------------------------------------


class TextOutput(msgspec.Struct, array_like=True, omit_defaults=True):
    """TokenOutput with its text: `text_delta` is what was added since the last output of the request."""

    serial: int
    text_delta: str
    new_ids: list[int]
    finish: FinishReason | None = None
    report: RequestReport = msgspec.field(default_factory=RequestReport)
    output_logprobs: Logprobs | None = None
    input_logprobs: Logprobs | None = None
    marks: list[tuple[int, int]] = []  # (characters of text_delta before it, token id) of the request's mark_ids


class BatchTextOutput(Message):
    outputs: list[TextOutput]


ToScheduler = (
    TokenizedGenerateReq
    | AbortReq
    | StopReq
    | GrammarReadyReq
    | FlushCacheReq
    | EndFlushReq
    | InternalStateReq
    | StartProfileReq
    | StopProfileReq
)
ToDetokenizer = BatchTokenOutput | SchedulerReady | FlushCacheReply | InternalStateReply | ProfileReply
ToHttp = BatchTextOutput | SchedulerReady | FlushCacheReply | InternalStateReply | ProfileReply
