"""TokenizerManager: the HTTP process's side of every request. It validates, tokenizes, sends, and assembles answers.

It knows no HTTP: entrypoints give it Prompts and read Generations. All of it runs on one event loop; only the
tokenizing of long texts runs in threads.
"""

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec

from sglang.srt.managers.generation import Generation, GenerationGroup, Prompt, RequestError, RequestObserver
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTextOutput,
    EndFlushReq,
    FinishReason,
    FlushCacheReply,
    FlushCacheReq,
    InternalStateReply,
    InternalStateReq,
    Message,
    ProfileReply,
    ProfileSettings,
    StartProfileReq,
    StopProfileReq,
    ThoughtMarks,
    TokenizedGenerateReq,
)
from sglang.srt.managers.prompt_reader import MAX_LOGPROBS, PromptReader, prompt_logprobs, too_many_logprobs
from sglang.srt.managers.server_info import ServerInfo
from sglang.srt.resolved_args import DETERMINISTIC_SEED
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_GENERATIONS = 4096  # of one call: prompts times n
SEND_IDS = 100_000  # prompt ids sent before other clients get their turn
CONTROL_SECONDS = 30.0  # for a scheduler to answer a control message between two steps
PROFILE_SECONDS = 600.0  # for it to write a long profile's traces, too
LOG_TEXT_CHARS = 2048  # of a prompt or answer at --log-requests-level 2


def too_many_generations(count: int) -> RequestError:
    return RequestError(f"{count} generations (prompts times n) in one request, at most {MAX_GENERATIONS}")


class TokenizerManager:
    """`to_scheduler` sends one message. `tokenizer` None: prompts must be ids. `observer` hears of every request but
    those with log_metrics off. `thought_marks`: of the model's output; None: it has none."""

    def __init__(
        self,
        args: ServerArgs,
        info: ServerInfo,
        tokenizer: Tokenizer | None,
        to_scheduler: Callable[[Message], None],
        observer: RequestObserver | None = None,
        thought_marks: ThoughtMarks | None = None,
    ):
        self.args = args
        self.info = info
        self.tokenizer = tokenizer
        self.thought_marks = thought_marks
        self.reader = PromptReader(args, info, tokenizer, thought_marks is not None)
        self.to_scheduler = to_scheduler
        self.observer = observer
        self.generations: dict[int, Generation] = {}  # those under way, by serial
        self._serials = itertools.count(1)
        self.last_token = 0.0  # time.monotonic() of the last one that came, whose ever it was
        self._calls: dict[str, asyncio.Future] = {}  # control messages that wait for their reply
        self._failure: str | None = None
        self.max_generations = info.max_running_requests + info.max_queued_requests

    # ---- requests ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def generate(self, prompts: list[Prompt]) -> AsyncIterator[GenerationGroup]:
        """Check all prompts, send them, and give their generations, which end with the context: leaving it early, as
        when the client has gone, aborts what still runs. Raises RequestError before anything was sent."""
        count = sum(p.params.n for p in prompts)
        if count > MAX_GENERATIONS:
            raise too_many_generations(count)
        self.reader.check(prompts)
        ids = await self.reader.input_ids(prompts)
        # No await from here to the last entry in `generations`: what was checked about other requests stays true.
        self._check_capacity(count, sum(p.params.n for p in prompts if p.log_metrics))
        group = self._make_group(prompts, ids)
        group.logprobs = sum(map(prompt_logprobs, prompts, ids))
        self.generations |= {generation.serial: generation for generation in group.generations}
        try:
            await self._send_all(group.generations)
            yield group
        finally:
            for generation in group.generations:
                if generation.finish is None and self.generations.pop(generation.serial, None):
                    self._abort(generation, "the client has gone")
                    generation.end(FinishReason("abort", message="the client has gone"))
                generation.group = None  # no circle keeps its tokens until the garbage collector comes by

    def _make_group(self, prompts: list[Prompt], ids: list[list[int]]) -> GenerationGroup:
        group = GenerationGroup()
        taken = self._rids_under_way() if any(prompt.rid for prompt in prompts) else set()
        for prompt, prompt_ids in zip(prompts, ids, strict=True):
            base = prompt.rid or uuid.uuid4().hex
            observer = self.observer if prompt.log_metrics else None
            for i in range(prompt.params.n):
                rid = base if prompt.params.n == 1 else f"{base}-{i}"
                if rid in taken:
                    raise RequestError(
                        f"Duplicate request ID: rid {rid!r:.80} is in use by a request under way", param="rid"
                    )
                taken.add(rid)
                serial, index = next(self._serials), len(group.generations)
                group.generations.append(Generation(serial, rid, base, index, i, prompt, prompt_ids, group, observer))
        return group

    def _rids_under_way(self) -> set[str]:
        """Names by which /abort_request would find a request."""
        return {rid for g in self.generations.values() for rid in (g.rid, g.base_rid)}

    async def _send_all(self, generations: list[Generation]) -> None:
        """Thousands of long prompts take a while; others get their turn in between."""
        room = SEND_IDS
        for generation in generations:
            if room < 0:
                await asyncio.sleep(0)
                room = SEND_IDS
            room -= len(generation.prompt_ids) + SEND_IDS // 100
            if generation.finish is None:  # else fail_all() has come in between
                self._send(generation)
                generation.sent = True
                if generation.aborted is not None:
                    self._abort(generation, generation.aborted)

    def _send(self, generation: Generation) -> None:
        prompt, params = generation.prompt, generation.prompt.params
        changes: dict = {"n": 1}
        seed = params.sampling_seed
        if seed is None and self.args.enable_deterministic_inference:
            seed = DETERMINISTIC_SEED
        if seed is not None:  # n answers of one prompt must not be n times the same
            changes["sampling_seed"] = (seed + generation.sample) % 2**63
        if self.tokenizer is not None and (ids := self.tokenizer.special_ids_of(params.stop)):
            changes["stop_token_ids"] = [*params.stop_token_ids, *ids]  # the text may not show these tokens
        marks = prompt.thought_marks
        if marks is None and (params.thinking_budget is not None or prompt.after_thought):
            marks = self.thought_marks
        if prompt.stream and params.stream_interval is None:
            changes["stream_interval"] = self.args.stream_interval
        self.to_scheduler(
            TokenizedGenerateReq(
                generation.serial,
                generation.prompt_ids,
                msgspec.structs.replace(params, **changes),
                stream=prompt.stream,
                return_logprob=prompt.return_logprob,
                logprob_start_len=prompt.logprob_start_len,
                top_logprobs_num=prompt.top_logprobs_num,
                token_ids_logprob=prompt.token_ids_logprob,
                extra_key=prompt.extra_key,
                mark_ids=prompt.mark_ids,
                thought_marks=marks,
                created=generation.created,
            )
        )
        if self.args.log_requests:
            self._log_start(generation)

    def _check_capacity(self, count: int, observed: int) -> None:
        if self._failure is not None:
            raise RequestError(self._failure, status=503)
        if len(self.generations) + count > self.max_generations:
            if self.observer is not None:
                self.observer.on_refused(observed)
            raise RequestError(
                f"the server holds {len(self.generations)} requests and takes at most {self.max_generations} "
                "(--max-running-requests plus --max-queued-requests); try again later",
                status=503,
            )

    def require_tokenizer(self) -> Tokenizer:
        """Raises RequestError where there is none."""
        return self.reader.require_tokenizer()

    # ---- aborts ------------------------------------------------------------------------------------------------

    def abort(self, rid: str) -> int:
        """End the request with that rid (all n of its generations); how many there were. Their clients get an answer
        with finish reason abort."""
        found = [g for g in self.generations.values() if rid in (g.rid, g.base_rid)]
        for generation in found:
            self._abort(generation, "aborted by /abort_request")
        return len(found)

    def abort_all(self, message: str) -> int:
        for generation in self.generations.values():
            if not generation.sent:
                generation.aborted = message
        self.to_scheduler(AbortReq(abort_all=True, message=message))
        return len(self.generations)

    def _abort(self, generation: Generation, message: str) -> None:
        if not generation.sent:
            generation.aborted = message
            return
        self.to_scheduler(AbortReq(generation.serial, message=message))

    def fail_all(self, reason: str) -> None:
        """The server cannot go on: every request under way, and every later one, ends with this error."""
        self._failure = reason
        for generation in list(self.generations.values()):
            generation.end(FinishReason("abort", message=reason, status_code=500))
            generation.group.notify(generation)
        self.generations.clear()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(RequestError(reason, status=503))

    # ---- control -----------------------------------------------------------------------------------------------

    async def flush_cache(self, timeout: float = 0.0) -> FlushCacheReply:
        """Empty the prefix cache, which works only while nothing runs; for `timeout` seconds until then is waited."""
        with self._called(FlushCacheReq, timeout > 0) as (call_id, reply):
            try:
                if timeout > 0:
                    await asyncio.wait([reply], timeout=timeout)
            finally:  # time is up, or the caller has gone
                if timeout > 0 and not reply.done():
                    self.to_scheduler(EndFlushReq(call_id))
            return await self._reply(reply)

    async def internal_state(self) -> dict:
        return (await self._call(InternalStateReq)).state

    async def start_profile(self, settings: ProfileSettings) -> dict:
        """Record steps from the next one on; StepProfiler.state(). Raises RequestError when that can't be done."""
        return self._profile(await self._call(StartProfileReq, settings, timeout=PROFILE_SECONDS))

    async def stop_profile(self) -> dict:
        """End the running profile and write its traces; StepProfiler.state(). Raises RequestError if none runs."""
        return self._profile(await self._call(StopProfileReq, timeout=PROFILE_SECONDS))

    def _profile(self, reply: ProfileReply) -> dict:
        if reply.error:
            raise RequestError(reply.error)
        if reply.profile["error"]:
            raise RequestError(reply.profile["error"], status=500)
        return reply.profile

    async def _call(self, message_type: type, *fields, timeout: float = CONTROL_SECONDS) -> Any:
        """Send a control message and wait for the reply that belongs to it."""
        with self._called(message_type, *fields) as (_, reply):
            return await self._reply(reply, timeout)

    @contextlib.contextmanager
    def _called(self, message_type: type, *fields) -> Iterator[tuple[str, asyncio.Future]]:
        """Send a control message; its id and its reply to come, which nobody waits for after the context."""
        if self._failure is not None:
            raise RequestError(self._failure, status=503)
        call_id = uuid.uuid4().hex
        future = self._calls[call_id] = asyncio.get_running_loop().create_future()
        self.to_scheduler(message_type(call_id, *fields))
        try:
            yield call_id, future
        finally:
            del self._calls[call_id]

    async def _reply(self, reply: asyncio.Future, timeout: float = CONTROL_SECONDS) -> Any:
        try:
            return await asyncio.wait_for(reply, timeout)
        except TimeoutError as e:
            raise RequestError(f"the scheduler did not answer within {timeout:.0f} s", status=503) from e

    # ---- messages from the detokenizer -------------------------------------------------------------------------

    def handle_all(self, messages: list[Message]) -> None:
        now = time.time()
        for message in messages:
            if isinstance(message, BatchTextOutput):
                for out in message.outputs:
                    if out.new_ids:
                        self.last_token = time.monotonic()
                    # Gone: its client left, and this was under way.
                    if generation := self.generations.get(out.serial):
                        generation.add(out, now)
                        if out.finish is not None:
                            self._finished(generation)
                        elif generation.group.logprobs > MAX_LOGPROBS:
                            self._give_up(generation.group)
            elif isinstance(message, FlushCacheReply | InternalStateReply | ProfileReply):
                future = self._calls.get(message.call_id)
                if future is not None and not future.done():
                    future.set_result(message)
            else:
                raise TypeError(f"{type(message).__name__} is no message for a server that is ready")

    def _give_up(self, group: GenerationGroup) -> None:
        """More log-probabilities have come than one call may have: it ends with an error."""
        error = too_many_logprobs(group.logprobs)
        for generation in group.generations:
            if generation.finish is None and self.generations.pop(generation.serial, None):
                self._abort(generation, error.message)
                generation.end(FinishReason("abort", message=error.message, status_code=error.status))
                group.notify(generation)

    def _finished(self, generation: Generation) -> None:
        del self.generations[generation.serial]
        if self.args.log_requests:
            self._log_end(generation)

    # ---- request log -------------------------------------------------------------------------------------------

    def _log_start(self, generation: Generation) -> None:
        level, prompt = self.args.log_requests_level, generation.prompt
        line = f"Receive: {_names(generation)}, prompt_tokens={generation.prompt_tokens}, stream={prompt.stream}"
        if level >= 1:
            line += f", sampling_params={msgspec.json.encode(prompt.params).decode()}"
        if level >= 2:
            shown = str(generation.prompt_ids) if prompt.text is None else self.tokenizer.special_text.show(prompt.text)
            line += f", prompt={_shown(shown, level)}"
        logger.info("%s", line)

    def _log_end(self, generation: Generation) -> None:
        line = (
            f"Finish: {_names(generation)}, reason={generation.finish.type}, prompt_tokens={generation.prompt_tokens}, "
            f"cached_tokens={generation.report.cached_tokens}, completion_tokens={generation.completion_tokens}, "
            f"e2e_latency={generation.ended - generation.created:.3f}"
        )
        if self.args.log_requests_level >= 2:
            line += f", text={_shown(generation.text, self.args.log_requests_level)}"
        logger.info("%s", line)


def _names(generation: Generation) -> str:
    """The client's name, which may hold anything, and the one that the other processes' logs use."""
    return f"rid={generation.rid!r}, serial={generation.serial}"


def _shown(text: str, level: int) -> str:
    return repr(text if level >= 3 or len(text) <= LOG_TEXT_CHARS else text[:LOG_TEXT_CHARS] + "...")
