"""The three processes' own code with their messages delivered in every order that the sockets allow: each client gets
its own tokens or its own error, whatever names it uses and whenever it leaves, and nothing stays behind."""

import asyncio
import random
import sys
from collections import deque
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sglang.srt.managers.detokenizer_manager import DetokenizerManager, RequestText
from sglang.srt.managers.generation import GenerationGroup, Prompt, RequestError
from sglang.srt.managers.io_struct import (
    FinishReason,
    Message,
    TextOutput,
    TextSettings,
    ToDetokenizer,
    ToHttp,
    TokenOutput,
    ToScheduler,
)
from sglang.srt.managers.server_info import ServerInfo
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_worker import expected_output
from sglang.test.scheduler_harness import Harness
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=7, suite="unit-test-cpu")

MAX_LEN, ROWS, MAX_QUEUED = 64, 3, 4
NAMES = ("a", "a-0", "b")  # few, so that they come again, and one that n > 1 makes too
STOPS = ([], ["a"], ["e", "t "], ["zz"])
ABORTED = ("aborted by /abort_request", "everybody out")


def prompt_of(length: int, seed: int) -> list[int]:
    """Prompts of one seed begin alike: they share a cached prefix."""
    return random.Random(seed).choices(range(6, 300), k=40)[:length]


class Pipe:
    """One sender's messages to one receiver: they stay in order, and travel as bytes."""

    def __init__(self, message_type: object):
        self._waiting: deque[bytes] = deque()
        self._decoder = msgspec.msgpack.Decoder(message_type)

    def send(self, message: Message) -> None:
        self._waiting.append(msgspec.msgpack.encode(message))

    def take(self, count: int) -> list[Message]:
        return [self._decoder.decode(self._waiting.popleft()) for _ in range(min(count, len(self._waiting)))]

    def __len__(self) -> int:
        return len(self._waiting)


@dataclass
class Client:
    name: str | None
    prompt: list[int]
    params: SamplingParams
    expected: TextOutput
    in_use: bool  # a request with that name was under way when it asked
    task: asyncio.Task = None
    group: GenerationGroup | None = None
    error: RequestError | None = None
    may_abort: bool = False  # somebody aborted it
    left: bool = False


class Processes(RuleBasedStateMachine):
    tokenizer: Tokenizer  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.http_to_scheduler, self.detokenizer_to_scheduler = Pipe(ToScheduler), Pipe(ToScheduler)
        self.to_detokenizer, self.to_http = Pipe(ToDetokenizer), Pipe(ToHttp)
        size = self.tokenizer.size
        # Pools too small for all: requests are retracted; a short queue: some are refused.
        h = Harness(
            full_size=70,
            swa_size=70,
            rows=ROWS,
            max_len=MAX_LEN,
            max_queued=MAX_QUEUED,
            vocab_size=size,
            conservativeness=0.0,
        )
        self.scheduler, self.inbox, self.kv = h.scheduler, h.inbox, h.kv
        self.scheduler.send = self.to_detokenizer.send
        self.scheduler.receive = self._receive
        info = ServerInfo(
            model_path="m", served_model_name="m", tokenizer_path="m", load_format="auto",
            preferred_sampling_params=None, context_length=MAX_LEN, max_running_requests=100, max_queued_requests=100,
            max_req_input_len=MAX_LEN - 1, max_total_num_tokens=70, vocab_size=size, eos_token_ids=[],
            generation_config={}, architectures=[], model_type="",
        )  # fmt: skip
        self.detokenizer = DetokenizerManager(self.tokenizer, self.to_http.send, self.detokenizer_to_scheduler.send)
        self.manager = TokenizerManager(ServerArgs(), info, self.tokenizer, self.http_to_scheduler.send)
        self.clients: list[Client] = []

    def _receive(self, block: bool) -> list[Message]:
        messages, self.inbox = self.inbox, []
        return messages

    def _let_clients_run(self) -> None:
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))

    # ---- clients -----------------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from([None, None, *NAMES]),
        n=st.sampled_from([1, 1, 2, 3]),
        prompt=st.builds(prompt_of, st.integers(1, 40), st.integers(0, 2)),
        stop=st.sampled_from(STOPS),
        max_new_tokens=st.sampled_from([0, 1, 7, 20, 40]),
        min_new_tokens=st.sampled_from([0, 0, 4]),
        stream_interval=st.sampled_from([1, 3, 50]),
    )
    def ask(self, name, n, prompt, stop, max_new_tokens, min_new_tokens, stream_interval) -> None:
        params = SamplingParams(
            n=n, stop=stop, max_new_tokens=max_new_tokens, min_new_tokens=min(min_new_tokens, max_new_tokens),
            ignore_eos=True, stream_interval=stream_interval,
        )  # fmt: skip
        rids = {name} if n == 1 else {f"{name}-{i}" for i in range(n)}
        in_use = name is not None and any({g.rid, g.base_rid} & rids for g in self.manager.generations.values())
        client = Client(name, prompt, params, self._alone(prompt, params), in_use)

        async def live() -> None:
            try:
                stream = stream_interval < 50
                asked = Prompt(params, input_ids=prompt, rid=name, stream=stream)
                async with self.manager.generate([asked]) as client.group:
                    await client.group.all()
            except RequestError as error:
                client.error = error

        client.task = self.loop.create_task(live())
        self.clients.append(client)
        self._let_clients_run()

    def _alone(self, prompt: list[int], params: SamplingParams) -> TextOutput:
        """The whole answer of a request that is alone in the world."""
        count = min(params.max_new_tokens, MAX_LEN - len(prompt))
        ids = expected_output(prompt, count, self.tokenizer.size)
        output = TokenOutput(1, ids, FinishReason("length", length=count))
        return RequestText(TextSettings(params, prompt[-8:]), self.tokenizer).add(output)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), how=st.sampled_from(["leave", "leave", "abort", "abort", "abort all"]))
    def disturb(self, data, how) -> None:
        client = data.draw(st.sampled_from(self.clients))
        if how == "leave":
            client.left |= not client.task.done()
            client.task.cancel()
            self._let_clients_run()
        elif how == "abort":
            name = client.name or "b"
            for other in self.clients:
                generations = other.group.generations if other.group else []
                other.may_abort |= any(name in (g.rid, g.base_rid) for g in generations)
            self.manager.abort(name)
        else:
            for other in self.clients:
                other.may_abort = True
            self.manager.abort_all("everybody out")

    # ---- processes ---------------------------------------------------------------------------------------------

    @rule(data=st.data(), from_http=st.integers(0, 6), from_detokenizer=st.integers(0, 3), steps=st.integers(1, 3))
    def scheduler_steps(self, data, from_http, from_detokenizer, steps) -> None:
        """Two senders: each one's messages in order, the two mixed in any way."""
        queues = [self.http_to_scheduler.take(from_http), self.detokenizer_to_scheduler.take(from_detokenizer)]
        while any(queues):
            chosen = data.draw(st.sampled_from([q for q in queues if q])) if all(queues) else queues[0] or queues[1]
            self.inbox.append(chosen.pop(0))
        for _ in range(steps):
            self.scheduler.step()

    @rule(count=st.integers(1, 4))
    def detokenizer_handles(self, count) -> None:
        self.detokenizer.handle_all(self.to_detokenizer.take(count))

    @rule(count=st.integers(1, 4))
    def http_handles(self, count) -> None:
        self.manager.handle_all(self.to_http.take(count))
        self._let_clients_run()

    @rule(rounds=st.integers(1, 12))
    def time_passes(self, rounds) -> None:
        for _ in range(rounds):
            self._move()

    # ---- what must hold ----------------------------------------------------------------------------------------

    @invariant()
    def who_has_ended_got_what_was_his(self) -> None:
        for client in self.clients:
            if client.task.done() and not client.left:
                client.task.result()
                self._check(client)

    def _check(self, client: Client) -> None:
        if client.error is not None:
            refused_name = client.in_use and "is in use" in client.error.message
            assert refused_name or client.error.status == 503, client.error.message
            return
        assert not client.in_use
        assert len(client.group.generations) == client.params.n
        for g in client.group.generations:
            if g.finish.type == "abort":
                assert client.may_abort and g.finish.message in ABORTED
                assert client.expected.text_delta.startswith(g.text)
                assert client.expected.new_ids[: len(g.output_ids)] == g.output_ids
            else:
                assert (g.text, g.output_ids) == (client.expected.text_delta, client.expected.new_ids)
                assert g.finish == client.expected.finish

    def _move(self) -> None:
        """Every process handles all that lies before it."""
        self.inbox += self.http_to_scheduler.take(100) + self.detokenizer_to_scheduler.take(100)
        self.scheduler.step()
        self.detokenizer.handle_all(self.to_detokenizer.take(100))
        self.manager.handle_all(self.to_http.take(100))
        self._let_clients_run()

    def teardown(self) -> None:
        try:
            self._drain()
        finally:
            for client in self.clients:
                client.task.cancel()
            self._let_clients_run()
            self.loop.close()

    def _drain(self) -> None:
        pipes = (self.http_to_scheduler, self.detokenizer_to_scheduler, self.to_detokenizer, self.to_http)
        for _ in range(2000):
            if self.scheduler.is_idle and not self.inbox and not any(map(len, pipes)):
                break
            self._move()
        assert all(client.task.done() for client in self.clients), "a client waits for ever"
        self.who_has_ended_got_what_was_his()
        assert not self.manager.generations and not self.detokenizer.requests and not self.scheduler.by_serial
        self.kv.check_idle()
        assert len(self.kv.free_rows) == ROWS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(make_model_folder(tmp_path_factory.mktemp("t")))


def test_every_client_gets_its_own(tokenizer):
    Processes.tokenizer = tokenizer
    Processes.TestCase.settings = settings(
        max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
    )
    Processes.TestCase("runTest").runTest()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
