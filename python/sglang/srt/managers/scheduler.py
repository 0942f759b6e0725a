"""Scheduler: receive, plan, launch, and process the previous step while the device runs this one.

It owns the queues and the requests. It knows slots as numbers (KVManager) and the device as a Worker that runs steps in
order; tensors, text and HTTP are others' business. Its decisions depend on the request stream and its own state only.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang.srt.managers.grammar_manager import GrammarManager
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenOutput,
    EndFlushReq,
    FinishReason,
    FlushCacheReply,
    FlushCacheReq,
    GrammarReadyReq,
    InternalStateReply,
    InternalStateReq,
    Message,
    ProfileReply,
    StartProfileReq,
    StopProfileReq,
    StopReq,
    TokenizedGenerateReq,
    TokenOutput,
)
from sglang.srt.managers.kv_manager import KVManager
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.managers.scheduler_stats import SchedulerStats
from sglang.srt.managers.step_builder import build_step
from sglang.srt.managers.token_masks import MaskMaker
from sglang.srt.model_executor.step_io import HeldStep, PendingStep, TableWrite, TokenLogprob, Worker

if TYPE_CHECKING:
    from sglang.srt.managers.step_profiler import StepProfiler

logger = logging.getLogger(__name__)

DEEP_CHECK_SECONDS = 1.0  # of idleness: who comes right after another must not wait for it
BETWEEN_CHECKS = 0.001  # seconds that messages are waited for between two of its parts


@dataclass(slots=True)
class InFlight:
    """A launched step and the requests its results belong to."""

    pending: PendingStep
    sampled: list[Req]
    # Where prompt log-probabilities go; a retraction starts the request's list anew and drops these with the old.
    prompt_logprobs: list[list[TokenLogprob]]


@dataclass(frozen=True)
class SchedulerLimits:
    """`max_len`: tokens of prompt and output together a request may have. `max_queued`: None = no limit."""

    max_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_queued: int | None = None
    seed: int = 0
    overlap: bool = True


class Scheduler:
    """`receive(block)` gives the messages that have come: True waits for one, a number so many seconds at most.
    `send(message)` passes one on to the detokenizer."""

    def __init__(
        self,
        worker: Worker,
        kv: KVManager,
        policy: SchedulePolicy,
        limits: SchedulerLimits,
        receive: Callable[[bool | float], list[Message]],
        send: Callable[[Message], None],
        stats: SchedulerStats,
        grammars: GrammarManager | None = None,
    ):
        self.worker = worker
        self.kv = kv
        self.policy = policy
        self.limits = limits
        self.receive = receive
        self.send = send
        self.stats = stats
        self.grammars = grammars
        self.masks = MaskMaker(limits.vocab_size)
        self.compiling: dict[int, Req] = {}  # by serial: those that wait for their grammar
        self.waiting: list[Req] = []
        self.running: list[Req] = []
        self.by_serial: dict[int, Req] = {}
        self.in_flight: InFlight | None = None
        self.outbox: list[TokenOutput] = []
        self.telling: list[Req] = []  # whose new tokens go out at the step's end: masks come first
        self.table_writes: list[TableWrite] = []
        self.arrivals = 0
        self.deep_checks: Iterator[None] = iter(())
        self.idle_wait: bool | float = True  # what receive() is told when there is nothing to do
        self.seeds = random.Random(limits.seed)
        self.profiler: StepProfiler | None = None  # the last one started; the worker while it records
        self.untold_profile = False  # it has not been stopped, nor told of since it ended by itself
        self.profile_calls: list[str] = []  # those who wait for its traces
        self.flush_calls: list[str] = []  # those who wait until nothing runs
        self.handlers: dict[type, Callable] = {
            TokenizedGenerateReq: self.on_generate,
            AbortReq: self.on_abort,
            StopReq: self.on_stop,
            GrammarReadyReq: self.on_grammar_ready,
            FlushCacheReq: self.on_flush,
            EndFlushReq: self.on_end_flush,
            InternalStateReq: self.on_internal_state,
            StartProfileReq: self.on_start_profile,
            StopProfileReq: self.on_stop_profile,
        }

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running and self.in_flight is None

    def step(self) -> None:
        was_idle = self.is_idle
        messages = self.receive(was_idle and self.idle_wait)
        if was_idle and self.idle_wait is not True:
            self.go_on_checking(restart=bool(messages))
        for message in messages:
            self.handlers[type(message)](message)
        launched = self.launch()
        worked = launched is not None or not was_idle
        if self.in_flight:  # the previous step's tokens, while the device runs this one
            self.process(self.in_flight)
        if launched and isinstance(launched.pending, HeldStep):  # grammars have now seen all tokens before this step's
            launched.pending.sample(self.masks.make(launched.sampled, launched.pending.drafts()))
        if not self.limits.overlap and launched:
            self.process(launched)
            launched = None
        self.in_flight = launched
        self.flush_outbox()
        self.answer_waiting()
        if worked and self.is_idle:
            self.kv.check_idle(deep=False)
            self.go_on_checking(restart=True)
            if copies := self.kv.take_copies():  # else the next request's own would come behind them
                self.worker.copy(copies)

    def go_on_checking(self, restart: bool) -> None:
        """The next part of going through the KV books, or all of it again from the first once nothing has come for a
        while: what has come may change them, and must not wait."""
        if restart:
            self.deep_checks, self.idle_wait = self.kv.deep_checks(), DEEP_CHECK_SECONDS
        else:
            self.idle_wait = True if next(self.deep_checks, self) is self else BETWEEN_CHECKS

    # ---- messages ----------------------------------------------------------------------------------------------

    def on_generate(self, msg: TokenizedGenerateReq) -> None:
        error = self.refusal(msg)
        if error:
            self.outbox.append(TokenOutput(msg.serial, [], finish=error))
            return
        params = msg.sampling_params
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.limits.eos_token_ids
        # Drawn for every request, so that one with its own seed does not shift those of the others.
        drawn = self.seeds.getrandbits(62)
        seed = drawn if params.sampling_seed is None else params.sampling_seed
        req = Req(msg, frozenset(stop_ids), seed, self.arrivals, self.limits.max_len)
        self.arrivals += 1
        self.by_serial[req.serial] = req
        if grammar := req.params.grammar:
            compiled = self.grammars.start(req.serial, *grammar)
            if compiled is None:
                self.compiling[req.serial] = req
                return
            req.begin_grammar(compiled)
        elif params.thinking_budget is not None:
            req.begin_grammar(None)
        self.waiting.append(req)

    def on_grammar_ready(self, msg: GrammarReadyReq) -> None:
        serials, compiled = self.grammars.finished(msg)
        for req in (self.compiling.pop(serial) for serial in serials):
            self.waiting.append(req)
            if compiled is None:
                self.finish(req, _refused(msg.error, msg.status_code))
            else:
                req.begin_grammar(compiled)
        self.waiting.sort(key=lambda r: r.order)

    def refusal(self, msg: TokenizedGenerateReq) -> FinishReason | None:
        """Why this request can't be taken. The HTTP process checks first; these bounds guard the device itself."""
        if not msg.input_ids:
            return _refused("the prompt has no tokens")
        if len(msg.input_ids) >= self.limits.max_len:
            return _refused(
                f"the prompt has {len(msg.input_ids)} tokens; with at least one output token it must stay within "
                f"{self.limits.max_len} (the context length and KV memory)"
            )
        if not 0 <= min(msg.input_ids) <= max(msg.input_ids) < self.limits.vocab_size:
            return _refused(f"token ids must be from 0 to {self.limits.vocab_size - 1}")
        if msg.sampling_params.thinking_budget is not None and msg.thought_marks is None:
            return _refused("thinking_budget: it is not known what a thought looks like")
        if msg.sampling_params.grammar and self.grammars is None:
            return _refused("this server compiles no grammars: xgrammar is not installed, or it was switched off")
        if self.limits.max_queued is not None and len(self.waiting) + len(self.compiling) >= self.limits.max_queued:
            return _refused(f"the queue is full ({self.limits.max_queued} requests wait)", status_code=503)
        return None

    def on_abort(self, msg: AbortReq) -> None:
        for serial in list(self.by_serial) if msg.abort_all else [msg.serial]:
            if req := self.by_serial.get(serial):  # it may have ended by itself
                self.finish(req, FinishReason("abort", message=msg.message))

    def on_stop(self, msg: StopReq) -> None:
        if req := self.by_serial.get(msg.serial):
            self.finish(req, FinishReason("stop"))

    def on_flush(self, msg: FlushCacheReq) -> None:
        self.flush_calls.append(msg.call_id)
        self.answer_waiting()
        if not msg.wait:
            self.on_end_flush(EndFlushReq(msg.call_id))

    def on_end_flush(self, msg: EndFlushReq) -> None:
        if msg.call_id in self.flush_calls:
            self.flush_calls.remove(msg.call_id)
            reason = f"{len(self.running)} requests are running and {len(self.waiting)} waiting"
            self.send(FlushCacheReply(msg.call_id, False, reason))

    def answer_waiting(self) -> None:
        """Answer the calls whose time has come."""
        if self.flush_calls and not self.waiting and not self.running:
            self.kv.flush()
            for call_id in self.flush_calls:
                self.send(FlushCacheReply(call_id, True))
            self.flush_calls = []
        if self.profile_calls and not self.profiler.running:
            for call_id in self.profile_calls:
                self.send(ProfileReply(call_id, profile=self.profiler.state()))
            self.profile_calls = []
            self.untold_profile = False

    def on_internal_state(self, msg: InternalStateReq) -> None:
        state = self.stats.state() | self.kv.usage()
        queued = [*self.waiting, *self.compiling.values()]
        state |= {"num_running_reqs": len(self.running), "num_queue_reqs": len(queued)}
        state["num_queue_tokens"] = sum(len(req.prompt) + len(req.output_ids) for req in queued)
        state["num_retracted_reqs"] = sum(req.report.num_retractions > 0 for req in self.waiting)
        state["profile"] = self.profiler.state() if self.profiler else None
        self.send(InternalStateReply(msg.call_id, state))

    def on_start_profile(self, msg: StartProfileReq) -> None:
        if self.profiler is not None and self.profiler.running:
            self.send(ProfileReply(msg.call_id, "a profile is running already; /stop_profile ends it"))
            return
        from sglang.srt.managers.step_profiler import StepProfiler  # the only one here that needs torch

        in_flight = self.in_flight.pending if self.in_flight else None
        try:
            profiler = StepProfiler(self.worker, msg.settings, self.stats.steps, in_flight, self.end_profile)
        except (ValueError, OSError) as e:
            self.send(ProfileReply(msg.call_id, str(e)))
            return
        self.worker = self.profiler = profiler
        self.untold_profile = True
        self.send(ProfileReply(msg.call_id, profile=profiler.state()))

    def on_stop_profile(self, msg: StopProfileReq) -> None:
        if not self.untold_profile:  # one that has ended by itself is told of once
            self.send(ProfileReply(msg.call_id, "no profile is running"))
            return
        self.profiler.stop()
        self.profile_calls.append(msg.call_id)

    def end_profile(self) -> None:
        self.worker = self.profiler.worker

    # ---- a step ------------------------------------------------------------------------------------------------

    def launch(self) -> InFlight | None:
        """Plan and start the next step; None when there is nothing to run."""
        self.kv.trim(self.running)
        while victim := self.policy.victim(self.running, self.kv):
            self.retract(victim)
        plan = self.policy.plan(self.waiting, self.running, self.kv)
        if not plan:
            return None
        for req, _, _ in plan.starts():
            self.waiting.remove(req)
            self.running.append(req)
            if not req.report.num_retractions:
                req.report.queue_time = time.time() - req.msg.created
        step, sampled, logprob_reqs = build_step(plan, self.kv)
        step.table_writes[:0] = self.table_writes
        self.table_writes = []
        for chunk in plan.chunks:
            # Whoever reads these slots runs after this step, so the prompt can be shared at once.
            if write := self.kv.share_prompt(chunk.req):
                self.table_writes.append(write)
        pending = self.worker.submit(step)
        self.stats.on_launch(plan, self.running, self.waiting, self.kv)
        return InFlight(pending, sampled, [req.in_logprobs for req in logprob_reqs])

    def retract(self, req: Req) -> None:
        """Give the request's slots back; it waits again, before all later arrivals, and resumes from its tokens."""
        if req.wants_prompt_logprobs:
            req.in_logprobs = []
        self.kv.release(req)
        req.report.num_retractions += 1
        self.running.remove(req)
        if not self.running:  # what it began from lay too scattered; alone in an empty arena it fits
            self.kv.cache.reset()
        self.waiting.append(req)
        self.waiting.sort(key=lambda r: r.order)
        self.policy.ratio.after_retraction(self.running)
        self.stats.retractions += 1
        logger.info("KV memory is full: request %d retracted, %d still run", req.serial, len(self.running))

    def process(self, launched: InFlight) -> None:
        """Hand out the tokens of a finished step."""
        output = launched.pending.result()
        for target, entries in zip(launched.prompt_logprobs, output.prompt_logprobs, strict=True):
            target.extend(entries)
        if output.kept is not None:
            self.keep_accepted(launched.sampled, output.kept)
        logprobs = output.output_logprobs or [None] * len(launched.sampled)
        for req, tokens, entries in zip(launched.sampled, output.next_ids, logprobs, strict=True):
            req.pending -= 1
            if req.finish is not None:  # it ended while this step was under way
                continue
            self.add_tokens(req, tokens, entries)
        self.stats.on_tokens(sum(map(len, output.next_ids)))

    def keep_accepted(self, reqs: list[Req], kept: list[list[int]]) -> None:
        """After a verified draft: the accepted tokens keep their slots, the others' are free again."""
        for req, places in zip(reqs, kept, strict=True):
            assert req.finish is None, f"{req.serial} ended while its draft was verified"
            if write := self.kv.keep(req, places):
                self.table_writes.append(write)
            req.count_verify(len(places) - 1)
        self.stats.on_verify([len(places) for places in kept])

    def add_tokens(self, req: Req, tokens: list[int], logprobs: list[TokenLogprob] | None) -> None:
        """The request's next tokens, up to where it ends."""
        if req.max_new_tokens == 0:  # only the prompt was of interest
            self.finish(req, FinishReason("length", length=0))
            return
        for index, token in enumerate(tokens):
            if req.grammar is not None and not req.grammar.accept(token):
                self.finish(req, _refused(self.masks.dead_end(req)))
                return
            req.output_ids.append(token)
            if logprobs is not None:
                req.out_logprobs.append(logprobs[index])
            if token in req.stop_ids or (req.grammar is not None and req.grammar.ended):
                self.finish(req, FinishReason("stop", matched=token))
                return
            if len(req.output_ids) >= req.max_new_tokens:
                self.finish(req, FinishReason("length", length=len(req.output_ids)))
                return
        if len(req.output_ids) - req.sent >= req.stream_every or req.sent == 0:
            self.telling.append(req)

    def finish(self, req: Req, reason: FinishReason) -> None:
        """End a request wherever it is: its slots are free or cached at once, and its final message is on its way."""
        req.finish = reason
        if req.row >= 0:
            self.kv.release(req)
            self.running.remove(req)
        elif self.compiling.pop(req.serial, None):
            self.grammars.drop(req.serial)
        else:
            self.waiting.remove(req)
        del self.by_serial[req.serial]
        self.outbox.append(req.take_output())

    def flush_outbox(self) -> None:
        self.outbox += [req.take_output() for req in self.telling if req.finish is None]
        self.telling = []
        if self.outbox:
            self.send(BatchTokenOutput(self.outbox))
            self.outbox = []


def _refused(message: str, status_code: int = 400) -> FinishReason:
    return FinishReason("abort", message=message, status_code=status_code)
