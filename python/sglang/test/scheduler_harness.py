"""A Scheduler on a fake worker, fed and read by hand: no processes, sockets or model."""

import random
from dataclasses import dataclass, field

from sglang.srt.managers.grammar_manager import GrammarManager
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenOutput,
    Logprobs,
    Message,
    StopReq,
    TokenizedGenerateReq,
    TokenOutput,
)
from sglang.srt.managers.kv_manager import KVManager
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.managers.scheduler import Scheduler, SchedulerLimits
from sglang.srt.managers.scheduler_stats import SchedulerStats
from sglang.srt.mem_cache.arena import ArenaShape
from sglang.srt.mem_cache.host_tier import HostTier
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.test.fake_worker import ContextWorker

VOCAB = 1000
TOKEN_BYTES = 4 << 20, 8 << 20  # of a full and a sliding slot: a few dozen come back beside a step


@dataclass
class Received:
    """All that came back for one request."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[float, int]]] = field(default_factory=list)  # as are the next, if asked for
    selected: list[list[float]] = field(default_factory=list)
    prompt_logprobs: Logprobs | None = None
    finals: list[TokenOutput] = field(default_factory=list)


class Harness:
    """`worker` None means a ContextWorker that checks every slot. Each kind of slot has memory of its own (`full_size`,
    `swa_size`), or both share an arena of `shape`. `host_pages`: of a host tier's arena; a real worker comes with its
    `tier`."""

    def __init__(
        self,
        full_size: int = 256,
        swa_size: int = 256,
        window: int | None = 8,
        rows: int = 8,
        max_len: int = 128,
        chunk: int = 16,
        policy: str = "fcfs",
        mixed: bool = True,
        overlap: bool = True,
        cache: bool = True,
        max_queued: int | None = None,
        conservativeness: float = 1.0,
        vocab_size: int = VOCAB,
        decode_tokens: int = 1,
        worker=None,
        grammars: GrammarManager | None = None,
        shape: ArenaShape | None = None,
        host_pages: int = 0,
        tier: HostTier | None = None,
    ):
        shape = shape or ArenaShape.apart(full_size, swa_size if window else 0)
        host = None
        if host_pages:
            host = shape.with_pages(host_pages)
            tier = HostTier(host, shape, window, TOKEN_BYTES)
        self.worker = worker or ContextWorker(shape, window, rows, max_len, vocab_size, decode_tokens, host)
        self.kv = KVManager(shape, window, rows, max_len, cache, decode_tokens, tier)
        self.inbox: list[Message] = []
        self.other: list[Message] = []
        self.received: dict[str, Received] = {}
        self.names: list[str] = []  # that of serial i is at i - 1
        self.scheduler = Scheduler(
            self.worker,
            self.kv,
            SchedulePolicy(policy, chunk, 16384, mixed_chunk=mixed, conservativeness=conservativeness),
            SchedulerLimits(max_len, vocab_size, frozenset({vocab_size - 1}), max_queued=max_queued, overlap=overlap),
            self._receive,
            self._send,
            SchedulerStats(),
            grammars,
        )

    def _receive(self, block: bool | float) -> list[Message]:
        messages, self.inbox = self.inbox, []
        assert messages or block is not True, "the scheduler is idle and would wait for ever"
        return messages

    def _send(self, message: Message) -> None:
        if not isinstance(message, BatchTokenOutput):
            self.other.append(message)
            return
        for output in message.outputs:
            name = self.names[output.serial - 1]
            got = self.received.setdefault(name, Received())
            assert not got.finals, f"{name} got a message after its final one"
            got.ids += output.new_ids
            if output.output_logprobs:
                got.logprobs += output.output_logprobs.values
                got.top += output.output_logprobs.top or []
                got.selected += output.output_logprobs.selected or []
            if output.input_logprobs is not None:
                assert got.prompt_logprobs is None, "prompt log-probabilities came twice"
                got.prompt_logprobs = output.input_logprobs
            if output.finish:
                got.finals.append(output)

    def add(
        self,
        name: str,
        prompt: list[int],
        max_new_tokens: int = 8,
        ignore_eos: bool = True,
        params: dict | None = None,
        **fields,
    ) -> None:
        """`params`: more SamplingParams; `fields`: more of TokenizedGenerateReq."""
        params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=ignore_eos, **(params or {}))
        self.names.append(name)
        self.inbox.append(TokenizedGenerateReq(len(self.names), list(prompt), params, **fields))

    def serial(self, name: str) -> int:
        return self.names.index(name) + 1

    def abort(self, name: str) -> None:
        self.inbox.append(AbortReq(self.serial(name)))

    def stop(self, name: str) -> None:
        self.inbox.append(StopReq(self.serial(name)))

    def step(self) -> None:
        self.scheduler.step()

    def run(self, limit: int = 10_000) -> None:
        """Until everything is answered; fails when that takes more than `limit` steps."""
        for _ in range(limit):
            if self.scheduler.is_idle and not self.inbox:
                self.kv.check_idle()
                return
            self.step()
        raise AssertionError(f"not idle after {limit} steps: {self.kv.usage()}")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(f"{length}/{seed}").choices(range(VOCAB - 1), k=length)


def feed_sharing_requests(h: Harness, rng: random.Random) -> dict[str, tuple[list[int], int]]:
    """60 requests, most of which begin with the same tokens, come while others run, and all are served. Prompt and
    output length of each."""
    shared = prompt_of(40, seed=9)
    wanted = {}
    for i in range(60):
        prompt = shared[: rng.randrange(0, 41)] + prompt_of(rng.randrange(1, 30), seed=i)
        wanted[f"r{i}"] = (prompt, rng.randrange(1, 50))
        h.add(f"r{i}", *wanted[f"r{i}"])
        for _ in range(rng.randrange(0, 4)):
            h.step()
    h.run()
    return wanted
