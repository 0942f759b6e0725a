"""Prompts are judged before work is done for them, tokenized off the event loop, and sent without blocking others."""

import asyncio
import random
import sys
import time

import pytest

from sglang.srt.entrypoints.conversation import Conversation
from sglang.srt.entrypoints.openai.serving_chat import ChatApi
from sglang.srt.entrypoints.tokenizer_api import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenize_answer,
    tokenize_answer,
)
from sglang.srt.managers import tokenizer_manager
from sglang.srt.managers.generation import Prompt, RequestError
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReq
from sglang.srt.managers.prompt_reader import GROUP_IDS, INLINE_CHARS, INLINE_TEXTS, PromptReader
from sglang.srt.managers.server_info import ServerInfo
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.tiny_tokenizer import make_model_folder

register_cpu_ci(est_time=8, suite="unit-test-cpu")

INFO = ServerInfo(
    model_path="m", served_model_name="m", tokenizer_path="m", load_format="auto", preferred_sampling_params=None,
    context_length=10_000, max_running_requests=2000, max_queued_requests=4000, max_req_input_len=9_999,
    max_total_num_tokens=20_000, vocab_size=1000, eos_token_ids=[1], generation_config={}, architectures=[],
    model_type="",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_model_folder(tmp_path_factory.mktemp("t"))


@pytest.fixture
def tokenizer(folder) -> Tokenizer:
    return Tokenizer(folder)


def manager_of(tokenizer, sent: list, observer=None, **args) -> TokenizerManager:
    return TokenizerManager(ServerArgs(**args), INFO, tokenizer, sent.append, observer)


def forbidden(*_, **__):
    raise AssertionError("this was not to be called")


# ---- grammars and thoughts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "args", "message"),
    [
        ({"regex": "a"}, {"grammar_backend": "none"}, "regex: this server was started with --grammar-backend none"),
        ({"json_schema": "{}"}, {"skip_tokenizer_init": True}, "json_schema needs a tokenizer"),
        ({"regex": "a", "thinking_budget": 1}, {}, None),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_anything_is_sent(tokenizer, params, args, message):
    reader = PromptReader(ServerArgs(**args), INFO, None if "skip_tokenizer_init" in args else tokenizer, thinks=True)
    prompts = [Prompt(SamplingParams(**params), input_ids=[5])]
    if message is None:
        reader.check(prompts)
    else:
        with pytest.raises(RequestError, match=message) as caught:
            reader.check(prompts)
        assert caught.value.status == 400


# ---- tokenizing -----------------------------------------------------------------------------------------------------


def test_batch_calls_give_what_single_calls_give(tokenizer):
    rng = random.Random(1)
    texts = ["".join(rng.choices([*"the apples 日é€\n", "<|turn>", "\U0001f600"], k=k)) for k in range(200)]
    for special in (True, False):
        ids = tokenizer.encode_all(texts, special)
        assert ids == [tokenizer.encode(text, special) for text in texts]
        for skip in (True, False):
            assert tokenizer.decode_all(ids, skip) == [tokenizer.decode(i, skip) for i in ids]


@pytest.mark.parametrize("texts", [["a" * (INLINE_CHARS + 1)], ["a"] * (INLINE_TEXTS + 1), ["a" * 3000] * 2])
def test_what_takes_longer_goes_through_the_batch_call_in_a_thread(monkeypatch, tokenizer, texts):
    """The call for one text keeps the GIL: 4 MB stopped the event loop for two seconds from whatever thread."""
    wanted = tokenizer.encode_all(texts)
    monkeypatch.setattr(tokenizer, "encode", forbidden)
    monkeypatch.setattr(tokenizer, "decode", forbidden)
    reader = PromptReader(ServerArgs(), INFO, tokenizer)
    assert asyncio.run(reader.encode(texts)) == wanted
    assert asyncio.run(reader.decode(wanted)) == texts
    assert asyncio.run(reader.input_ids([Prompt(SamplingParams(), text=text) for text in texts])) == wanted


def test_short_texts_take_no_thread(monkeypatch, tokenizer):
    monkeypatch.setattr(tokenizer, "encode_all", forbidden)
    reader = PromptReader(ServerArgs(), INFO, tokenizer)
    assert asyncio.run(reader.encode(["a b"] * INLINE_TEXTS)) == [tokenizer.encode("a b")] * INLINE_TEXTS


def test_the_event_loop_goes_on_while_a_long_text_is_tokenized(tokenizer):
    async def main() -> tuple[float, float]:
        reader = PromptReader(ServerArgs(), INFO, tokenizer)
        begun = last = time.monotonic()
        work = asyncio.ensure_future(reader.encode(["the apples " * 100_000] * 2))
        longest = 0.0
        while not work.done():
            await asyncio.sleep(0.001)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        return longest, last - begun

    longest, total = asyncio.run(main())
    assert longest < max(0.5 * total, 0.1), (longest, total)  # 0.03 of the time on an idle machine


@pytest.mark.parametrize("texts", [["x" * 200_000], ["short", "x" * 200_000, "short"]])
def test_what_cannot_fit_is_refused_before_anything_is_tokenized(monkeypatch, tokenizer, texts):
    assert tokenizer.longest_token == max(len(tokenizer.token_text(i)) for i in range(tokenizer.size))
    monkeypatch.setattr(tokenizer, "encode", forbidden)
    monkeypatch.setattr(tokenizer, "encode_all", forbidden)
    reader = PromptReader(ServerArgs(), INFO, tokenizer)
    assert 9_999 < reader.max_chars < 200_000
    with pytest.raises(RequestError, match=r"The input \(at least \d+ tokens: 200000 characters\) is longer than the"):
        asyncio.run(reader.input_ids([Prompt(SamplingParams(), text=text) for text in texts]))


def test_what_is_cut_is_cut_before_it_is_tokenized_too(monkeypatch, tokenizer):
    reader = PromptReader(ServerArgs(allow_auto_truncate=True), INFO, tokenizer)
    seen = []
    real = tokenizer.encode_all
    monkeypatch.setattr(tokenizer, "encode_all", lambda texts, special: seen.extend(texts) or real(texts, special))
    (ids,) = asyncio.run(reader.input_ids([Prompt(SamplingParams(max_new_tokens=99), text="a" * 5_000_000)]))
    assert ids == tokenizer.encode("a" * 9_900)[: len(ids)] and len(ids) == 10_000 - 99
    assert [len(text) for text in seen] == [reader.max_chars + 1]


def test_too_many_ids_are_refused_before_they_are_looked_at(tokenizer):
    reader = PromptReader(ServerArgs(), INFO, tokenizer)
    with pytest.raises(RequestError, match=r"The input \(10000 tokens\) is longer than"):
        asyncio.run(reader.input_ids([Prompt(SamplingParams(), input_ids=[object()] * 10_000)]))


# ---- /tokenize and /detokenize --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (TokenizeRequest(prompt=["a"] * 5000), "prompt has 5000 texts, at most 4096"),
        (TokenizeRequest(prompt="a" * 5_000_000), "prompt has 5000000 characters, at most 4000000"),
        (TokenizeRequest(prompt=["a" * 2_500_000] * 2), "prompt has 5000000 characters"),
        (DetokenizeRequest(tokens=[object()] * 1_000_001), "tokens has 1000001 ids, at most 1000000"),
        (DetokenizeRequest(tokens=[[object()]] * 5000), "tokens has 5000 lists, at most 4096"),
        (DetokenizeRequest(tokens=[[object()] * 600_000] * 2), "tokens has 1200000 ids"),
        (DetokenizeRequest(tokens=[[1], [5000]]), "token id 5000"),
    ],
)
def test_lists_are_counted_first(tokenizer, body, says):
    manager = manager_of(tokenizer, [])
    if isinstance(body, TokenizeRequest):
        answer = tokenize_answer(body, manager, ChatApi(Conversation(manager, None, None)))
    else:
        answer = detokenize_answer(body, manager)
    with pytest.raises(RequestError, match=says) as caught:
        asyncio.run(answer)
    assert caught.value.status == 400 and caught.value.param in ("prompt", "tokens")


def test_detokenizing_stops_with_its_client(monkeypatch, tokenizer):
    calls = []

    def slow(lists, skip):
        calls.append(len(lists))
        time.sleep(0.05)
        return [""] * len(lists)

    monkeypatch.setattr(tokenizer, "decode_all", slow)

    async def main() -> None:
        body = DetokenizeRequest(tokens=[[7] * (GROUP_IDS // 2)] * 20)
        task = asyncio.ensure_future(detokenize_answer(body, manager_of(tokenizer, [])))
        await asyncio.sleep(0.08)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.2)

    asyncio.run(main())
    assert 1 <= len(calls) <= 4 and set(calls) == {2}


# ---- parameters and sending -----------------------------------------------------------------------------------------


def test_shared_parameters_are_checked_once(monkeypatch, tokenizer):
    reader = PromptReader(ServerArgs(), INFO, tokenizer)
    calls = []
    monkeypatch.setattr(SamplingParams, "verify", lambda self, size: calls.append(size))
    params, ids = SamplingParams(), [5] * 1000
    reader.check([Prompt(params, text="a", token_ids_logprob=ids) for _ in range(4096)])
    assert calls == [1000]


def test_parameters_have_a_bound_over_all_generations(tokenizer):
    """They are sent with each: 64 KB and n make a gigabyte of it in the scheduler."""
    reader = PromptReader(ServerArgs(), INFO, tokenizer)
    params = SamplingParams(n=128, custom_params={"x": "y" * 60_000})
    reader.check([Prompt(params, text="a")])
    with pytest.raises(RequestError, match="the sampling parameters take .* at most 16000000"):
        reader.check([Prompt(params, text="a")] * 32)


def test_others_have_their_turn_while_thousands_are_sent(monkeypatch, tokenizer):
    monkeypatch.setattr(tokenizer_manager, "SEND_IDS", 1000)
    sent: list = []
    manager = manager_of(tokenizer, sent)
    turns = []

    async def others() -> None:
        while len(sent) < 2000:
            turns.append(len(sent))
            await asyncio.sleep(0)

    async def main() -> None:
        other = asyncio.ensure_future(others())
        prompts = [Prompt(SamplingParams(n=100), input_ids=[5] * 50) for _ in range(20)]
        async with manager.generate(prompts) as group:
            assert len(manager.generations) == len(group.generations) == 2000
        await other

    asyncio.run(main())
    assert len(set(turns)) > 100
    kinds = [type(m) for m in sent]
    assert kinds == [TokenizedGenerateReq] * 2000 + [AbortReq] * 2000


@pytest.mark.parametrize("all_of_them", [True, False])
def test_an_abort_that_comes_before_the_request_is_sent_follows_it(monkeypatch, tokenizer, all_of_them):
    monkeypatch.setattr(tokenizer_manager, "SEND_IDS", 0)
    sent: list = []
    manager = manager_of(tokenizer, sent)

    async def main() -> None:
        async def ask() -> None:
            async with manager.generate([Prompt(SamplingParams(n=6), input_ids=[5], rid="r")]):
                await asyncio.sleep(60)

        task = asyncio.ensure_future(ask())
        while len(sent) < 2:
            await asyncio.sleep(0)
        manager.abort_all("over") if all_of_them else manager.abort("r")
        while sum(isinstance(m, TokenizedGenerateReq) for m in sent) < 6:
            await asyncio.sleep(0)
        aborted = {m.serial for m in sent if isinstance(m, AbortReq)}
        late = {m.serial for m in sent[3:] if isinstance(m, TokenizedGenerateReq)}
        assert late <= aborted
        for i, message in enumerate(sent):
            if isinstance(message, AbortReq) and message.serial in late:
                assert any(isinstance(m, TokenizedGenerateReq) and m.serial == message.serial for m in sent[:i])
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())


def test_refusals_are_told_to_the_observer(tokenizer):
    class Observer:
        refused = 0

        def on_refused(self, count: int) -> None:
            self.refused += count

        def on_end(self, generation) -> None:
            pass

    observer = Observer()
    manager = manager_of(tokenizer, [], observer)

    async def main() -> None:
        async with manager.generate([Prompt(SamplingParams(n=128), input_ids=[5])] * 30):
            for log_metrics in (True, False):
                prompts = [Prompt(SamplingParams(n=128), input_ids=[5], log_metrics=log_metrics)] * 20
                with pytest.raises(RequestError, match="takes at most 6000") as caught:
                    async with manager.generate(prompts):
                        pass
                assert caught.value.status == 503

    asyncio.run(main())
    assert observer.refused == 2560


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
