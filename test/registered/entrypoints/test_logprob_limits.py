"""How many log-probabilities one call may return, and that building them never holds the event loop for long."""

import asyncio
import sys
import time

import msgspec
import pytest

from sglang.srt.entrypoints import generate_api
from sglang.srt.entrypoints.generate_api import GenerateApi, GenerateRequest
from sglang.srt.entrypoints.openai.protocol import CompletionRequest
from sglang.srt.entrypoints.openai.serving_completions import CompletionsApi
from sglang.srt.managers import tokenizer_manager
from sglang.srt.managers.generation import RequestError
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTextOutput,
    FinishReason,
    Logprobs,
    TextOutput,
    TokenizedGenerateReq,
)
from sglang.srt.managers.prompt_reader import MAX_LOGPROBS
from sglang.srt.managers.server_info import ServerInfo
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=8, suite="unit-test-cpu")

INFO = ServerInfo(
    model_path="m", served_model_name="m", tokenizer_path="m", load_format="auto", preferred_sampling_params=None,
    context_length=131_072, max_running_requests=200, max_queued_requests=200, max_req_input_len=131_071,
    max_total_num_tokens=131_072, vocab_size=1000, eos_token_ids=[1], generation_config={}, architectures=[],
    model_type="",
)  # fmt: skip


class Harness:
    """A manager whose scheduler answers by itself: `outputs` messages of `tokens` tokens for each request."""

    def __init__(self, tokenizer: Tokenizer, tokens: int = 1, outputs: int = 1, max_queued_requests: int = 200, **args):
        self.tokens, self.outputs = tokens, outputs
        self.aborted: list[str] = []
        info = msgspec.structs.replace(INFO, max_queued_requests=max_queued_requests)
        self.manager = TokenizerManager(ServerArgs(**args), info, tokenizer, self.receive)

    def receive(self, message) -> None:
        if isinstance(message, AbortReq):
            self.aborted.append(message.message)
        if isinstance(message, TokenizedGenerateReq):
            asyncio.ensure_future(self.answer(message))

    async def answer(self, request: TokenizedGenerateReq) -> None:
        for i in range(self.outputs):
            await asyncio.sleep(0.001)
            start = request.logprob_start_len
            inputs = self.logprobs(request, request.input_ids[start:]) if start >= 0 and i == 0 else None
            ids = [7] * self.tokens
            out = TextOutput(
                request.serial, "x" * self.tokens, ids, input_logprobs=inputs,
                output_logprobs=self.logprobs(request, ids) if request.return_logprob else None,
                finish=FinishReason("length", length=1) if i == self.outputs - 1 else None,
            )  # fmt: skip
            self.manager.handle_all([BatchTextOutput([out])])

    def logprobs(self, request: TokenizedGenerateReq, ids: list[int]) -> Logprobs:
        best, wanted = request.top_logprobs_num, request.token_ids_logprob
        tops = [[(-float(k), k) for k in range(best)] for _ in ids] if best else None
        return Logprobs([-1.0] * len(ids), ids, tops, [[-2.0] * len(wanted) for _ in ids] if wanted else None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(make_model_folder(tmp_path_factory.mktemp("t")))


def body(prompt: int = 1, tokens: int = 1, **fields) -> GenerateRequest:
    params = {"max_new_tokens": tokens, **fields.pop("sampling_params", {})}
    return GenerateRequest(input_ids=[5] * prompt, sampling_params=params, return_logprob=True, **fields)


async def events(harness: Harness, request: GenerateRequest) -> list[dict]:
    return [chunk async for chunk in GenerateApi(harness.manager).chunks(request)]


@pytest.mark.parametrize(
    "request_body",
    [
        body(47_000, logprob_start_len=0, top_logprobs_num=20),
        body(131_071, logprob_start_len=0, top_logprobs_num=5),
        body(131_071, logprob_start_len=130_000, top_logprobs_num=128, token_ids_logprob=[5] * 700),
    ],
)
def test_a_full_context_with_the_best_of_each_token_is_answered(tokenizer, request_body):
    harness = Harness(tokenizer)
    answer = asyncio.run(GenerateApi(harness.manager).answer(request_body))
    meta, rows = answer["meta_info"], len(request_body.input_ids) - request_body.logprob_start_len
    assert len(meta["input_token_logprobs"]) == len(meta["input_top_logprobs"]) == rows
    assert meta["input_top_logprobs"][-1][1] == (-1.0, 1, None)


@pytest.mark.parametrize(
    "request_body",
    [
        body(4000, logprob_start_len=0, top_logprobs_num=128, token_ids_logprob=[5] * 1024),
        body(60_000, logprob_start_len=0, top_logprobs_num=20),
        body(2000, logprob_start_len=0, top_logprobs_num=20, sampling_params={"n": 128}),
        GenerateRequest(input_ids=[[5] * 4000] * 20, return_logprob=True, logprob_start_len=0, top_logprobs_num=20),
    ],
)
def test_what_the_prompts_would_return_is_known_before_anything_is_sent(tokenizer, request_body):
    harness = Harness(tokenizer)
    with pytest.raises(RequestError, match=f"log-probabilities .* at most {MAX_LOGPROBS} are returned") as caught:
        asyncio.run(GenerateApi(harness.manager).answer(request_body))
    assert caught.value.status == 400 and "ask for fewer" in caught.value.message
    assert not harness.manager.generations and not harness.aborted


@pytest.mark.parametrize("n", [1, 4])
def test_outputs_end_when_they_have_returned_too_many(monkeypatch, tokenizer, n):
    monkeypatch.setattr(tokenizer_manager, "MAX_LOGPROBS", 5000)
    harness = Harness(tokenizer, tokens=4, outputs=500)
    request = body(tokens=2000, top_logprobs_num=9, sampling_params={"n": n})
    with pytest.raises(RequestError, match="ask for fewer of each token") as caught:
        asyncio.run(GenerateApi(harness.manager).answer(request))
    assert caught.value.status == 400
    assert len(harness.aborted) == n and not harness.manager.generations


def test_a_cumulative_stream_repeats_a_bounded_number(monkeypatch, tokenizer):
    """128 best and 1,024 asked for over 400 tokens made 420 MB of a request of 5 KB."""
    monkeypatch.setattr(generate_api, "MAX_REPEATED_LOGPROBS", 50_000)
    request = body(tokens=400, stream=True, top_logprobs_num=9)
    with pytest.raises(RequestError, match="--incremental-streaming-output") as caught:
        asyncio.run(events(Harness(tokenizer, outputs=400), request))
    assert caught.value.status == 400
    chunks = asyncio.run(events(Harness(tokenizer, outputs=400, incremental_streaming_output=True), request))
    assert sum(len(c["meta_info"]["output_top_logprobs"]) for c in chunks) == 400


def test_an_ordinary_cumulative_stream_stays_as_it_is(tokenizer):
    chunks = asyncio.run(events(Harness(tokenizer, outputs=300), body(9, 300, stream=True, top_logprobs_num=5)))
    lengths = [len(c["meta_info"]["output_top_logprobs"]) for c in chunks]
    assert lengths == [len(c["output_ids"]) for c in chunks] == [len(c["text"]) for c in chunks]
    assert lengths == sorted(lengths) and lengths[-1] == 300 and len(chunks) > 100
    assert len({id(c["meta_info"]["output_top_logprobs"]) for c in chunks}) == len(chunks), "an answer would grow"


def test_rows_are_made_once_however_often_they_are_repeated(monkeypatch, tokenizer):
    texts = []
    real = tokenizer.token_text
    monkeypatch.setattr(tokenizer, "token_text", lambda token_id: texts.append(token_id) or real(token_id))
    request = body(50, 100, stream=True, logprob_start_len=0, return_text_in_logprobs=True)
    chunks = asyncio.run(events(Harness(tokenizer, outputs=100), request))
    assert len(chunks) > 50 and len(chunks[-1]["meta_info"]["input_token_logprobs"]) == 50
    assert len(texts) == 50 + 100


@pytest.mark.parametrize("chat", [False, True])
def test_others_have_their_turn_while_large_answers_are_built(tokenizer, chat):
    """Counted, not timed: the loop goes round many times between the last output and the answer."""

    async def main() -> int:
        harness = Harness(tokenizer)
        if chat:
            fields = {"prompt": [5] * 20_000, "max_tokens": 1, "echo": True, "logprobs": 20}
            work = asyncio.ensure_future(CompletionsApi(harness.manager).answer(CompletionRequest(**fields)))
        else:
            request = body(20_000, logprob_start_len=0, top_logprobs_num=20)
            work = asyncio.ensure_future(GenerateApi(harness.manager).answer(request))
        while not harness.manager.generations:
            await asyncio.sleep(0)
        while harness.manager.generations:
            await asyncio.sleep(0)
        turns, longest, last = 0, 0.0, time.thread_time()
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
            longest, last = max(longest, time.thread_time() - last), time.thread_time()
        assert longest < 0.5
        return turns

    assert asyncio.run(main()) > 30


@pytest.mark.parametrize("completions", [False, True])
def test_others_have_their_turn_while_many_answers_are_built(tokenizer, completions):
    """4,096 of them took a fifth of a second in one piece."""

    async def main() -> int:
        harness = Harness(tokenizer, max_queued_requests=4000)
        prompts = [[5]] * 1000
        if completions:
            work = CompletionsApi(harness.manager).answer(CompletionRequest(prompt=prompts, max_tokens=1))
        else:
            params = {"max_new_tokens": 1}
            work = GenerateApi(harness.manager).answer(GenerateRequest(input_ids=prompts, sampling_params=params))
        work = asyncio.ensure_future(work)
        while not work.done() and not harness.manager.generations:
            await asyncio.sleep(0)
        while harness.manager.generations:
            await asyncio.sleep(0)
        turns = 0
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        answers = work.result()["choices"] if completions else work.result()
        assert len(answers) == 1000
        return turns

    assert asyncio.run(main()) >= 5


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
