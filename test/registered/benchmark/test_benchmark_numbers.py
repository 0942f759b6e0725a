"""Metrics against numbers worked out by hand, arrivals, the gate, and what a reader makes of chunks and gaps."""

import asyncio
import json
import math
import sys

import numpy as np
import pytest

from sglang.benchmark.backends import (
    BACKENDS,
    AnswerError,
    GenerateReader,
    OpenAIReader,
    RequestOptions,
    error_message,
    events,
    merged,
)
from sglang.benchmark.datasets import DatasetRow
from sglang.benchmark.load import Stop, arrival_times, run_load
from sglang.benchmark.metrics import RequestResult, metrics, most_at_once, per_second, summarize, token_times
from sglang.benchmark.server import without_secrets
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


def done(sent_at: float, ttft: float | None, itls: list[float], first_tokens: int = 1, prompt_len: int = 10):
    """A complete answer that ends with its last token."""
    latency = (ttft or 0) + sum(itls)
    return RequestResult(
        prompt_len, first_tokens + len(itls), sent_at, ttft, latency, itls, first_tokens, text="x", error=""
    )


def test_numbers_of_two_answers_and_what_failed():
    """A: sent at 0, tokens at 0.5, 1.0, 1.5. B: sent at 1, two tokens at 2.0, one at 2.5."""
    a, b = done(0.0, 0.5, [0.5, 0.5]), done(1.0, 1.0, [0.5], first_tokens=2, prompt_len=30)
    failed = RequestResult(99, 5, 0.0, 0.1, 2.0, [0.1] * 4, 1, error="broken")
    got = metrics([a, b, failed, RequestResult(99)], duration=4.0)
    want = {
        "duration": 4.0, "completed": 2, "failed": 1, "not_sent": 1,
        "total_input_tokens": 40, "total_input_text_tokens": 40, "total_input_vision_tokens": 0,
        "total_output_tokens": 6, "request_throughput": 0.5, "input_throughput": 10.0, "output_throughput": 1.5,
        "total_throughput": 11.5,
        "concurrency": (1.5 + 1.5) / 4,
        "max_output_tokens_per_s": 3,  # in [0.5, 1.5): two; in [1.5, 2.5): A's last and B's first two; then one
        "max_concurrent_requests": 3,
        "mean_e2e_latency_ms": 1500.0, "median_e2e_latency_ms": 1500.0, "std_e2e_latency_ms": 0.0,
        "mean_ttft_ms": 750.0, "std_ttft_ms": 250.0, "p90_ttft_ms": 950.0, "p99_ttft_ms": 995.0,
        "mean_tpot_ms": (500 + 250) / 2,  # A: 1.0 s / 2, B: 0.5 s / 2
        "median_itl_ms": 500.0, "max_itl_ms": 500.0,
    }  # fmt: skip
    assert {k: got[k] for k in want} == pytest.approx(want)
    assert "request_goodput" not in got


def test_numbers_of_nothing():
    got = metrics([RequestResult(3)], duration=0.0)
    assert got["output_throughput"] == 0.0 and got["max_concurrent_requests"] == got["max_output_tokens_per_s"] == 0
    assert got["mean_itl_ms"] is got["p99_ttft_ms"] is got["max_itl_ms"] is None and got["not_sent"] == 1


def test_an_answer_of_one_token_has_no_tpot():
    one = done(0.0, 0.25, [])
    assert one.tpot is None and metrics([one], 1.0)["mean_tpot_ms"] is None
    whole = RequestResult(1, 8, 0.0, None, 2.0, [], 8, error="")
    assert whole.tpot is None and metrics([whole], 1.0)["mean_ttft_ms"] is None


def test_goodput():
    """Objectives are milliseconds, kept when equal; one token has no tpot to miss."""
    results = [done(0.0, 0.5, [0.1]), done(0.0, 0.25, [0.5]), done(0.0, 0.25, [])]
    assert metrics(results, 2.0, {"ttft": 500.0})["request_goodput"] == 1.5
    assert metrics(results, 2.0, {"ttft": 250.0})["request_goodput"] == 1.0
    assert metrics(results, 2.0, {"tpot": 200.0})["request_goodput"] == 1.0
    assert metrics(results, 2.0, {"ttft": 300.0, "tpot": 200.0})["request_goodput"] == 0.5
    assert metrics(results, 2.0, {"e2el": 600.0})["request_goodput"] == 1.0


def test_summarize():
    got = summarize([i / 1000 for i in range(1, 101)], "x")
    want = {"mean": 50.5, "median": 50.5, "std": math.sqrt((100**2 - 1) / 12), "p90": 90.1, "p95": 95.05, "p99": 99.01}
    assert got == pytest.approx({f"{k}_x_ms": v for k, v in want.items()})


def test_tokens_over_time():
    times, tokens = token_times([done(1.0, 0.5, [0.25, 2.0], first_tokens=3), RequestResult(1, 4, 0.0, None, 2.0)])
    assert times.tolist() == [1.5, 1.75, 3.75, 2.0] and tokens.tolist() == [3, 1, 1, 4]
    assert per_second(times, tokens) == [8, 0, 1] and per_second(*token_times([])) == []


def test_most_at_once():
    assert most_at_once([(0, 2), (1, 3), (2, 4), (5, 6)]) == 2  # the third starts as the first ends
    assert most_at_once([(0, 9), (1, 8), (2, 7)]) == 3 and most_at_once([]) == 0


# ---- arrivals and the gate ------------------------------------------------------------------------------------------


def test_arrivals():
    times = arrival_times(4001, 8.0, seed=1)
    gaps = np.diff(times)
    assert times[0] == 0 and (gaps >= 0).all() and len(times) == 4001
    assert abs(gaps.mean() - 1 / 8) < 4 * (1 / 8) / math.sqrt(4000)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.1  # as exponential gaps have
    assert (arrival_times(9, 8.0, seed=1) == times[:9]).all() and (arrival_times(9, 8.0, seed=2) != times[:9]).any()
    assert (arrival_times(9, 4.0, seed=1) == 2 * times[:9]).all()
    assert arrival_times(3, math.inf, 1).tolist() == [0, 0, 0] and len(arrival_times(0, 8.0, 1)) == 0


class Sender:
    """Stands for a server: answers when `release` is set, and notes what was under way."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.running = self.most = 0
        self.release = asyncio.Event()

    async def __call__(self, row: DatasetRow, result: RequestResult) -> None:
        self.order.append(row.prompt[0])
        self.running += 1
        self.most = max(self.most, self.running)
        result.sent_at = 1.0
        try:
            await self.release.wait()
            result.error = ""
        finally:
            self.running -= 1


ROWS = [DatasetRow([i], 1, 1) for i in range(6)]


async def passes(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("limit", [1, 2, 6, None])
def test_gate_keeps_order_and_limit(limit):
    async def run():
        send, seen = Sender(), []
        load = asyncio.ensure_future(run_load(ROWS, [0.0] * 6, send, Stop(), limit, seen.append))
        await passes()
        assert send.running == (limit or 6)
        send.release.set()
        return await load, send, seen

    outcome, send, seen = asyncio.run(run())
    assert send.order == [0, 1, 2, 3, 4, 5] and send.most == (limit or 6)
    assert outcome.stopped is None and all(r.ok for r in outcome.results) and len(seen) == 6


def test_requests_come_at_their_times():
    async def run():
        send = Sender()
        send.release.set()
        loop, started = asyncio.get_running_loop(), []

        async def noting(row, result):
            started.append(loop.time())
            await send(row, result)

        await run_load(ROWS[:3], [0.0, 0.05, 0.1], noting, Stop())
        return started

    first, second, third = asyncio.run(run())
    assert second - first >= 0.04 and third - first >= 0.09


def test_stop_cancels_and_keeps():
    async def run():
        send, stop = Sender(), Stop()
        load = asyncio.ensure_future(run_load(ROWS, [0.0, 0.0, 0.0, 60.0, 60.0, 60.0], send, stop, 2))
        await passes()
        stop.set("enough")
        stop.set("too late to say so")
        return await load, send

    outcome, send = asyncio.run(run())
    assert outcome.stopped == "enough" and send.running == 0 and len(outcome.results) == 6
    assert [r.sent_at is not None for r in outcome.results] == [True, True, False, False, False, False]
    assert not any(r.ok for r in outcome.results)


def test_a_bug_in_a_sender_is_not_swallowed():
    async def broken(row, result):
        raise RuntimeError("bug")

    with pytest.raises(ExceptionGroup):
        asyncio.run(run_load(ROWS, [0.0] * 6, broken, Stop()))


# ---- chunks ---------------------------------------------------------------------------------------------------------


def read(reader_type, chunks: list[tuple[float, dict]], **options) -> RequestResult:
    result = RequestResult(prompt_len=4, sent_at=10.0)
    reader = reader_type(result, RequestOptions("m", **options))
    for now, chunk in chunks:
        reader.chunk(json.dumps(chunk).encode(), now)
    reader.end()
    return result


def generated(count: int, text: str = "", **meta) -> dict:
    return {"text": text, "output_ids": [1] * count, "meta_info": {"completion_tokens": count, **meta}}


def test_gaps_of_chunks_with_several_tokens():
    """2 tokens at 10.5, 3 at 11.1 (0.2 s each), none at 11.2, 1 at 11.5 (0.4 s after the last token)."""
    times = [(10.5, generated(2, "ab")), (11.1, generated(5, "abcde")), (11.2, generated(5, "abcde"))]
    result = read(GenerateReader, [*times, (11.5, generated(6, "abcdef", prompt_tokens=7))])
    assert result.ttft == 0.5 and result.first_tokens == 2 and result.output_len == 6 and result.prompt_len == 7
    assert result.itls == pytest.approx([0.2, 0.2, 0.2, 0.4]) and result.text == "abcdef"


def test_incremental_text():
    chunks = [(10.5, generated(1, "ab")), (11.0, generated(2, "c"))]
    assert read(GenerateReader, chunks, incremental=True).text == "abc"
    assert read(GenerateReader, chunks).text == "c"


def openai(text: str | None, count: int | None = None, **choice) -> dict:
    usage = None if count is None else {"completion_tokens": count, "prompt_tokens": 5}
    return {"choices": [] if text is None else [{"text": text, **choice}], "usage": usage}


def test_openai_with_running_usage():
    chunks = [(10.25, openai("a", 1)), (10.75, openai("", 3)), (11.25, openai("bcd", 4)), (11.5, openai(None, 4))]
    result = read(OpenAIReader, chunks)
    assert result.ttft == 0.25 and result.itls == [0.25, 0.25, 0.5] and result.output_len == 4
    assert result.text == "abcd" and result.prompt_len == 5 and not result.counted_chunks


def test_openai_with_usage_at_the_end_or_none():
    chunks = [(10.25, openai("", None)), (10.5, openai("ab")), (11.0, openai("c"))]
    result = read(OpenAIReader, [*chunks, (11.5, openai(None, 3))])
    assert result.ttft == 0.5 and result.itls == [0.5] and result.output_len == 3
    result = read(OpenAIReader, chunks)
    assert result.output_len == 2 and result.counted_chunks and result.prompt_len == 4


def test_chat_chunks():
    """The chunk that only names the role holds no token; thoughts are part of the answer."""
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm "}, {"content": "yes"}]
    chunks = [(10.0 + i, {"choices": [{"delta": delta}]}) for i, delta in enumerate(deltas)]
    result = read(OpenAIReader, chunks)
    assert result.ttft == 1.0 and result.itls == [1.0] and result.text == "hm yes"


@pytest.mark.parametrize(
    "reader,chunk,message",
    [
        (GenerateReader, {"error": {"message": "full"}}, "the server answered with an error: full"),
        (GenerateReader, {"error": "full"}, "error: full"),
        (GenerateReader, {"text": "a"}, "without meta_info"),
        (GenerateReader, generated(1, finish_reason={"type": "abort", "message": "why"}), "aborted: why"),
        (GenerateReader, generated(0), "no token"),
        (OpenAIReader, {"error": {"message": "full"}}, "error: full"),
        (OpenAIReader, openai("a", 1, finish_reason="abort"), "aborted"),
        (OpenAIReader, {}, "no token"),
    ],
)
def test_chunks_that_are_no_answer(reader, chunk, message):
    with pytest.raises(AnswerError, match=message):
        read(reader, [(11.0, chunk)])


def test_events():
    lines = b'data: {"a": 1}\r\n\r\n: ping\nevent: x\ndata:{"b": 2}\n\ndata: [DONE]\n'.split(b"\n")
    assert list(events(lines)) == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]


def test_merged():
    body = {"sampling_params": {"a": 1, "b": 2}, "stream": True}
    extra = {"sampling_params": {"b": 3, "c": 4}, "x": {"y": 1}}
    assert merged(body, extra) == {"sampling_params": {"a": 1, "b": 3, "c": 4}, "stream": True, "x": {"y": 1}}
    assert merged(body, {"sampling_params": 5}) == {"sampling_params": 5, "stream": True}


def test_error_message():
    assert error_message(b'{"error": {"message": "a"}}') == "a"
    assert error_message(b'{"message": "b", "code": 400}') == error_message(b'{"detail": "b"}') == "b"
    assert error_message(b" <html>") == "<html>" and len(error_message(b"x" * 9999)) == 300


def test_without_secrets():
    """Names that only count tokens stay."""
    info = {"api_key": "k", "admin_api_key": "k", "hf_token": "k", "max_total_num_tokens": 4, "max_prefill_tokens": 5,
            "internal_states": [{"PASSWORD": "k", "ok": [1]}], "token": "k"}  # fmt: skip
    want = {"max_total_num_tokens": 4, "max_prefill_tokens": 5, "internal_states": [{"ok": [1]}]}
    assert without_secrets(info) == want


def test_flags_and_backends_agree():
    from sglang.bench_serving import BACKEND_NAMES

    assert BACKEND_NAMES == tuple(BACKENDS)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
