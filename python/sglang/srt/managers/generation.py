"""What the HTTP process keeps of requests: Prompt (wanted), Generation (its answer so far), GenerationGroup (those of
one client call). No sockets, no JSON."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from sglang.srt.managers.io_struct import FinishReason, Logprobs, RequestReport, TextOutput, ThoughtMarks
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.utils.shown import cut

MAX_MESSAGE_CHARS = 1000


class RequestError(Exception):
    """A request that cannot be served, with the HTTP status that says whose fault it is; `param` names the field.
    `details` is what a client's program reads, in the form of the API that was asked."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, details: dict | None = None):
        message = cut(message, MAX_MESSAGE_CHARS)  # whatever of the request is in it
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = None if param is None else cut(param)
        self.details = details


@dataclass
class Prompt:
    """One prompt of a client's call; it gives params.n generations. Either `text` or `input_ids` is set."""

    params: SamplingParams
    text: str | None = None
    input_ids: list[int] | None = None
    rid: str | None = None
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: int = -1  # first prompt position whose logprob is wanted; -1 = output tokens only
    top_logprobs_num: int = 0
    token_ids_logprob: list[int] | None = None
    extra_key: str | None = None
    add_special_tokens: bool = True  # chat templates write them out themselves
    mark_ids: list[int] = field(default_factory=list)  # special tokens told of in Generation.marks
    thought_marks: ThoughtMarks | None = None  # behind a thought the grammar of `params` begins; None: at once
    after_thought: bool = False  # the same, by the marks that the manager knows
    log_metrics: bool = True  # False: the observer does not hear of it

    @property
    def logprob_columns(self) -> int:
        """Log-probabilities that are returned for a token."""
        return (1 + self.top_logprobs_num + len(self.token_ids_logprob or ())) if self.return_logprob else 0


class RequestObserver(Protocol):
    """Is told how requests go, for metrics. It changes nothing. Times are seconds of time.time()."""

    def on_output(self, generation: "Generation", out: TextOutput, now: float) -> None:
        """`out` has come, which the generation does not hold yet."""

    def on_refused(self, count: int) -> None:
        """So many generations were turned away, since the server is full."""

    def on_end(self, generation: "Generation") -> None:
        """`generation.finish` is set; it comes once for each generation."""


class Generation:
    """One answer and all that came of it so far. `serial` is its name in the other processes, `rid` a label for
    clients and logs; `base_rid` the client's own id, which all n of a prompt share. `index` counts the group's
    generations, prompt by prompt; `sample` those of one prompt."""

    def __init__(
        self,
        serial: int,
        rid: str,
        base_rid: str,
        index: int,
        sample: int,
        prompt: Prompt,
        prompt_ids: list[int],
        group: "GenerationGroup",
        observer: RequestObserver | None = None,
    ):
        self.serial = serial
        self.rid = rid
        self.base_rid = base_rid
        self.index = index
        self.sample = sample
        self.prompt = prompt
        self.prompt_ids = prompt_ids
        self.group: GenerationGroup | None = group  # None once the call is over
        self.observer = observer
        self.created = time.time()
        self.updated = 0.0  # when the latest output came, 0 before the first
        self.ended = 0.0
        self.text = ""
        self.marks: list[tuple[int, int]] = []  # (characters of `text` before it, token id), of the prompt's mark_ids
        self.output_ids: list[int] = []
        self.output_logprobs = Logprobs([], [])
        self.input_logprobs: Logprobs | None = None
        self.finish: FinishReason | None = None
        self.sent = False  # the scheduler has been sent it
        self.aborted: str | None = None  # why, if that was before
        self.report = RequestReport()

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def completion_tokens(self) -> int:
        return len(self.output_ids)

    def add(self, out: TextOutput, now: float) -> None:
        """An output that came at `now` (time.time())."""
        if self.observer is not None:
            self.observer.on_output(self, out, now)
        self.updated = now
        self.marks += [(len(self.text) + at, token_id) for at, token_id in out.marks]
        self.text += out.text_delta
        self.output_ids += out.new_ids
        self.report = out.report
        if out.input_logprobs is not None:
            self.input_logprobs = out.input_logprobs
        if out.output_logprobs is not None:
            _extend(self.output_logprobs, out.output_logprobs)
            self.group.logprobs += len(out.output_logprobs.ids) * self.prompt.logprob_columns
        if out.finish is not None:
            self.end(out.finish)
        self.group.notify(self)

    def end(self, finish: FinishReason) -> None:
        self.finish = finish
        self.ended = time.time()
        if self.observer is not None:
            self.observer.on_end(self)

    def raise_if_refused(self) -> None:
        """An abort with a status code is an error of this call; one without was asked for and is an answer."""
        if self.finish and self.finish.type == "abort" and self.finish.status_code is not None:
            raise RequestError(self.finish.message or "the request was aborted", self.finish.status_code)


def _extend(total: Logprobs, new: Logprobs) -> None:
    total.values += new.values
    total.ids += new.ids
    if new.top is not None:
        total.top = (total.top or []) + new.top
    if new.selected is not None:
        total.selected = (total.selected or []) + new.selected


class GenerationGroup:
    """The generations of one client call. However many outputs came since, a waiting client wakes once."""

    def __init__(self) -> None:
        self.generations: list[Generation] = []
        self.logprobs = 0  # how many have come, of prompts and outputs
        self._fresh: dict[int, Generation] = {}
        self._event = asyncio.Event()

    def notify(self, generation: Generation) -> None:
        self._fresh[generation.index] = generation
        self._event.set()

    async def news(self) -> AsyncGenerator[list[Generation], None]:
        """The generations that have something new, by index, again and again until all have ended and their ends were
        seen. Raises RequestError for a refused one."""
        while self._fresh or any(g.finish is None for g in self.generations):
            await self._event.wait()
            self._event.clear()
            fresh, self._fresh = self._fresh, {}
            generations = [fresh[i] for i in sorted(fresh)]
            for generation in generations:
                generation.raise_if_refused()
            yield generations

    async def all(self) -> list[Generation]:
        """Wait until every generation has ended. Raises RequestError if one was refused."""
        async for _ in self.news():
            pass
        return self.generations
