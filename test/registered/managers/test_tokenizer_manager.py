"""TokenizerManager without sockets: what it sends and when, and how answers come together."""

import asyncio
import contextlib
import gc
import sys
import weakref

import pytest

from sglang.srt.managers.generation import Prompt, RequestError
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTextOutput,
    EndFlushReq,
    FinishReason,
    FlushCacheReply,
    FlushCacheReq,
    Logprobs,
    RequestReport,
    SchedulerReady,
    StopReq,
    TextOutput,
    TokenizedGenerateReq,
)
from sglang.srt.managers.prompt_reader import INLINE_CHARS
from sglang.srt.managers.server_info import ServerInfo
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=3, suite="unit-test-cpu")

INFO = ServerInfo(
    model_path="m", served_model_name="m", tokenizer_path="m", load_format="auto", preferred_sampling_params=None,
    context_length=10_000, max_running_requests=2, max_queued_requests=4, max_req_input_len=9_999,
    max_total_num_tokens=20_000, vocab_size=1000, eos_token_ids=[1], generation_config={}, architectures=[],
    model_type="",
)  # fmt: skip
LENGTH = FinishReason("length", length=1)


class Harness:
    def __init__(self, tokenizer: Tokenizer, **args):
        self.sent: list = []
        self.serials: dict[str, int] = {}
        self.manager = TokenizerManager(ServerArgs(**args), INFO, tokenizer, self.sent.append)

    def requests(self) -> list[TokenizedGenerateReq]:
        return [m for m in self.sent if isinstance(m, TokenizedGenerateReq)]

    def answer(
        self, rid: str, text: str = "x", ids: tuple[int, ...] = (7,), finish: FinishReason | None = LENGTH, **fields
    ):
        """An output of the latest request with that rid."""
        for generation in self.manager.generations.values():
            self.serials[generation.rid] = generation.serial
        out = TextOutput(self.serials[rid], text, list(ids), finish=finish, **fields)
        self.manager.handle_all([BatchTextOutput([out])])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(make_model_folder(tmp_path_factory.mktemp("t")))


@pytest.fixture
def harness(tokenizer) -> Harness:
    return Harness(tokenizer)


def prompt(rid: str = "r", **fields) -> Prompt:
    fields.setdefault("text", "a b")
    return Prompt(fields.pop("params", SamplingParams()), rid=rid, **fields)


def test_each_of_n_has_a_number_and_a_seed_of_its_own(harness):
    params = SamplingParams(n=2, stop=["s"], sampling_seed=2**63 - 1)

    async def main() -> None:
        async with harness.manager.generate([prompt(params=params, extra_key="k")]) as group:
            assert [g.rid for g in group.generations] == ["r-0", "r-1"]
            harness.answer("r-0")
            harness.answer("r-1")

    asyncio.run(main())
    first, second = harness.requests()
    assert (first.serial, second.serial) == (1, 2)
    assert (first.extra_key, first.sampling_params.n, first.sampling_params.stop) == ("k", 1, ["s"])
    assert [r.sampling_params.sampling_seed for r in harness.requests()] == [2**63 - 1, 0]  # no two alike
    assert len(harness.sent) == 2  # both had ended: nothing to abort
    assert not harness.manager.generations


@pytest.mark.parametrize("leave", [False, True])
def test_a_name_may_come_again_at_once(harness, leave):
    """Outputs of its first bearer that are still under way are not its second bearer's, and an abort finds the
    second one only."""
    stopped = FinishReason("stop", matched="x")

    async def main() -> None:
        with contextlib.suppress(KeyError):
            async with harness.manager.generate([prompt("same")]):
                if leave:
                    raise KeyError
                harness.answer("same", finish=stopped)
        async with harness.manager.generate([prompt("same")]) as group:
            late = TextOutput(1, "late", [9], finish=FinishReason("abort", message="the client has gone"))
            harness.manager.handle_all([BatchTextOutput([late])])
            (second,) = group.generations
            assert (second.text, second.finish) == ("", None)
            assert harness.manager.abort("same") == 1
            assert harness.sent[-1] == AbortReq(2, message="aborted by /abort_request")
            harness.answer("same", text="mine")
            assert second.text == "mine"

    asyncio.run(main())
    assert not harness.manager.generations


@pytest.mark.parametrize("first, n, second", [("a", 1, "a"), ("a", 2, "a"), ("a", 2, "a-1")])
def test_a_name_that_would_find_two_requests_is_refused(harness, first, n, second):
    async def main() -> None:
        async with harness.manager.generate([prompt(first, params=SamplingParams(n=n))]):
            with pytest.raises(RequestError, match=f"rid '{second}' is in use"):
                async with harness.manager.generate([prompt(second)]):
                    pass

    asyncio.run(main())
    assert len(harness.requests()) == n


@pytest.mark.parametrize(
    "deterministic,own,seeds", [(True, None, [42, 43]), (True, 7, [7, 8]), (False, None, [None] * 2)]
)
def test_seeds_of_requests_that_give_none(tokenizer, deterministic, own, seeds):
    harness = Harness(tokenizer, enable_deterministic_inference=deterministic)

    async def main() -> None:
        async with harness.manager.generate([prompt(params=SamplingParams(n=2, sampling_seed=own))]):
            harness.answer("r-0")
            harness.answer("r-1")

    asyncio.run(main())
    assert [r.sampling_params.sampling_seed for r in harness.requests()] == seeds


def test_what_has_ended_is_gone_without_the_garbage_collector(harness):
    """A generation holds its tokens, and a batch of thousands is hundreds of megabytes of them."""
    kept = []

    async def main() -> None:
        async with harness.manager.generate([prompt("a"), prompt("b")]) as group:
            kept.extend(map(weakref.ref, group.generations))
            harness.answer("a")
            harness.answer("b")
            await group.all()

    gc.disable()
    try:
        asyncio.run(main())
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_one_bad_prompt_stops_the_whole_batch_before_it_is_sent(harness):
    async def main() -> None:
        with pytest.raises(RequestError, match="token id 5000"):
            async with harness.manager.generate([prompt("a"), prompt("b", text=None, input_ids=[5000])]):
                pass

    asyncio.run(main())
    assert harness.sent == []
    assert not harness.manager.generations


def test_leaving_aborts_what_has_not_ended(harness):
    async def main() -> None:
        with pytest.raises(KeyError):
            async with harness.manager.generate([prompt("a"), prompt("b")]):
                harness.answer("a")
                raise KeyError
        harness.answer("b")  # was under way: nobody is there for it, and nothing breaks

    asyncio.run(main())
    assert [m for m in harness.sent if isinstance(m, AbortReq)] == [AbortReq(2, message="the client has gone")]
    assert not harness.manager.generations


def test_the_observer_hears_of_each_end_once(tokenizer):
    heard = []

    class Observer:
        def on_output(self, generation, out, now):
            heard.append((generation.rid, generation.updated, len(out.new_ids)))

        def on_end(self, generation):
            heard.append((generation.rid, generation.finish.type))

    harness = Harness(tokenizer)
    harness.manager.observer = Observer()

    async def main() -> None:
        async with harness.manager.generate([prompt("a"), prompt("b"), prompt("quiet", log_metrics=False)]):
            harness.answer("a")
            harness.answer("quiet")
        harness.answer("b")
        with pytest.raises(RequestError):
            async with harness.manager.generate([prompt("c")]) as group:
                harness.manager.fail_all("it broke")
                await group.all()

    asyncio.run(main())
    assert heard == [("a", 0.0, 1), ("a", "length"), ("b", "abort"), ("c", "abort")]


def test_capacity_is_checked_where_nothing_can_come_between(harness):
    """Both texts are tokenized in threads; the second must still see the first one's five requests."""
    text = "a" * (INLINE_CHARS + 1)

    async def ask(rid: str, n: int) -> str:
        try:
            async with harness.manager.generate([prompt(rid, text=text, params=SamplingParams(n=n))]) as group:
                await asyncio.wait_for(group.all(), 0.5)
        except RequestError as e:
            return f"{e.status}: {e}"
        except TimeoutError:
            return "accepted"
        return "answered"

    async def main() -> list[str]:
        return await asyncio.gather(ask("a", 5), ask("b", 5))

    results = sorted(asyncio.run(main()))
    assert results[0].startswith("503: the server holds 5 requests and takes at most 6")
    assert results[1] == "accepted"
    assert len(harness.requests()[0].input_ids) == len(text) + 1


def test_a_waiting_client_wakes_once_for_all_that_came(harness):
    async def main() -> list[list[int]]:
        wakes = []
        async with harness.manager.generate([prompt("a"), prompt("b"), prompt("c")]) as group:
            for i in range(5):
                harness.answer("c", text=str(i), finish=None)
                harness.answer("a", text=str(i), finish=LENGTH if i == 4 else None)
            async for generations in group.news():
                wakes.append([g.index for g in generations])
                if len(wakes) == 1:  # the client is busy with these when the rest comes
                    harness.answer("b")
                    harness.answer("c", text="")
            assert [g.text for g in group.generations] == ["01234", "x", "01234"]
        return wakes

    assert asyncio.run(main()) == [[0, 2], [1, 2]]


def test_logprobs_and_counts_add_up(harness):
    async def main() -> None:
        async with harness.manager.generate([prompt("a")]) as group:
            first = Logprobs([-1.0], [7], [[(-0.5, 3)]], [[-2.0]])
            harness.answer("a", finish=None, output_logprobs=first, input_logprobs=Logprobs([None], [2]))
            harness.answer(
                "a", output_logprobs=Logprobs([-3.0], [8], [None], [None]), report=RequestReport(4, num_retractions=1)
            )
            (g,) = await group.all()
        assert g.output_logprobs == Logprobs([-1.0, -3.0], [7, 8], [[(-0.5, 3)], None], [[-2.0], None])
        assert g.input_logprobs == Logprobs([None], [2])
        assert (g.report, g.output_ids) == (RequestReport(4, 1), [7, 7])

    asyncio.run(main())


def test_control_calls_find_their_replies(harness):
    async def main() -> None:
        calls = [asyncio.ensure_future(harness.manager.flush_cache()) for _ in range(2)]
        await asyncio.sleep(0)
        ids = [m.call_id for m in harness.sent if isinstance(m, FlushCacheReq)]
        harness.manager.handle_all([FlushCacheReply(ids[1], False, "busy"), FlushCacheReply("unknown", True)])
        harness.manager.handle_all([FlushCacheReply(ids[0], True)])
        replies = await asyncio.gather(*calls)
        assert [(r.success, r.message) for r in replies] == [(True, ""), (False, "busy")]

    asyncio.run(main())
    assert not harness.manager._calls


def test_flush_that_waits_is_one_message_and_one_when_it_ends(harness):
    async def main() -> None:
        leaves = asyncio.ensure_future(harness.manager.flush_cache(3600))
        late = asyncio.ensure_future(harness.manager.flush_cache(0.05))
        await asyncio.sleep(0.2)
        leaves.cancel()
        await asyncio.wait([leaves])
        asked, asked_late, *ended = harness.sent
        assert (asked.wait, asked_late.wait) == (True, True)
        assert ended == [EndFlushReq(asked_late.call_id), EndFlushReq(asked.call_id)]
        harness.manager.handle_all([FlushCacheReply(asked.call_id, False), FlushCacheReply(asked_late.call_id, True)])
        assert (await late).success

    asyncio.run(main())
    assert not harness.manager._calls


def test_after_a_failure_nothing_waits_and_nothing_starts(harness):
    async def main() -> None:
        with pytest.raises(RequestError, match="it broke") as caught:
            async with harness.manager.generate([prompt("a")]) as group:
                call = asyncio.ensure_future(harness.manager.internal_state())
                await asyncio.sleep(0)
                harness.manager.fail_all("it broke")
                await group.all()
        assert caught.value.status == 500
        for later in (call, harness.manager.internal_state(), harness.manager.generate([prompt("b")]).__aenter__()):
            with pytest.raises(RequestError, match="it broke"):
                await later

    asyncio.run(main())
    assert not any(isinstance(m, AbortReq) for m in harness.sent)


def test_messages_for_others_are_an_error(harness):
    for message in (StopReq(1), SchedulerReady({})):
        with pytest.raises(TypeError, match=type(message).__name__):
            harness.manager.handle_all([message])


def test_stream_interval_is_the_servers_unless_the_request_has_one(tokenizer):
    harness = Harness(tokenizer, stream_interval=9)

    async def main() -> None:
        prompts = [
            prompt("a", stream=True),
            prompt("b", stream=True, params=SamplingParams(stream_interval=2)),
            prompt("c"),
        ]
        async with harness.manager.generate(prompts):
            pass

    asyncio.run(main())
    assert [r.sampling_params.stream_interval for r in harness.requests()] == [9, 2, None]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
