"""Bodies from outside: counted before they are decoded, and what is said of a bad one is short and true."""

import asyncio
import json
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.entrypoints import bodies, chat_worker, checks, generate_api, tokenizer_api
from sglang.srt.entrypoints.bodies import MAX_VALUES, count_values, read_body
from sglang.srt.entrypoints.checks import cache_key
from sglang.srt.entrypoints.generate_api import GenerateRequest, make_prompts
from sglang.srt.entrypoints.openai import protocol, response_store
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, shared_key
from sglang.srt.managers import prompt_reader, tokenizer_manager
from sglang.srt.managers.generation import MAX_MESSAGE_CHARS, RequestError
from sglang.srt.sampling import sampling_params, stop_regex
from sglang.srt.utils.shown import LogFormatter, shown
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=6, suite="base-a-test-cpu")

MB = 1_000_000


class FakeRequest:
    def __init__(self, content: bytes):
        self.content = content

    async def body(self) -> bytes:
        return self.content


def refusal(content: bytes, body_type: type = GenerateRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        asyncio.run(read_body(FakeRequest(content), body_type))
    return caught.value


# ---- counting ------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.integers() | st.text('a"\\{[,\n', max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text('b"\\[{', max_size=4), inner, max_size=5),
    max_leaves=40,
)


def count(value) -> tuple[int, int]:
    """Objects, lists and texts; commas."""
    inner = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else []
    keys = len(inner) if isinstance(value, dict) else 0
    counts = [count(v) for v in inner]
    own = int(isinstance(value, dict | list | str))
    return own + keys + sum(c[0] for c in counts), max(len(inner) - 1, 0) + sum(c[1] for c in counts)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_it_counts_what_json_holds(value):
    limit, bodies.MAX_VALUES = bodies.MAX_VALUES, -1  # nothing is few
    try:
        for ensure_ascii in (True, False):
            assert count_values(json.dumps(value, ensure_ascii=ensure_ascii).encode()) == count(value)
    finally:
        bodies.MAX_VALUES = limit


@pytest.mark.parametrize(
    ("body_type", "start", "item", "end"),
    [
        (GenerateRequest, b'{"text":[', b'""', b"]}"),
        (GenerateRequest, b'{"text":"a","image_data":[', b"[]", b"]}"),
        (CompletionRequest, b'{"prompt":[', b'"a"', b"]}"),
        (ChatCompletionRequest, b'{"messages":[', b"{}", b"]}"),
        (ChatCompletionRequest, b'{"messages":[],"tools":[', b'{"a":[]}', b"]}"),
        (ChatCompletionRequest, b'{"messages":[{"role":"user","content":[', b'{"type":"text"}', b"]}]}"),
        (GenerateRequest, b'{"text":"a","sampling_params":{"stop":[', b'"x"', b"]}}"),
        (GenerateRequest, b'{"text":"a","sampling_params":[', b"{}", b"]}"),
    ],
)
def test_millions_of_small_things_are_counted_and_never_made(monkeypatch, body_type, start, item, end):
    monkeypatch.setattr(bodies.msgspec.json, "decode", None)
    content = start + b",".join([item] * (3 * MB // len(item))) + end
    assert f"at most {MAX_VALUES} are read" in refusal(content, body_type).message


def test_long_texts_and_many_numbers_are_no_small_things():
    code = json.dumps('if (a[0] == "x") { b["\\"] }\n' * 50_000)  # brackets and quotes in a text are characters
    body = asyncio.run(read_body(FakeRequest(b'{"text":%s}' % code.encode()), GenerateRequest))
    assert body.text == json.loads(code)
    body = asyncio.run(read_body(FakeRequest(b'{"input_ids":[' + b"5," * MB + b"5]}"), GenerateRequest))
    assert len(body.input_ids) == MB + 1
    body = asyncio.run(read_body(FakeRequest(b'{"text":"' + b"5," * 4 * MB + b'"}'), GenerateRequest))
    assert len(body.text) == 8 * MB
    assert "3000000 numbers" in refusal(b'{"input_ids":[' + b"5," * 3 * MB + b"5]}").message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ["a"] * 4097}, "4097 generations"),
        ({"input_ids": [[5]] * 4097}, "4097 generations"),
        ({"input_ids": [5] * 2_000_001}, "2000001 token ids"),
        ({"input_ids": [[5] * 1_000_000] * 4}, "3000000 token ids"),
        ({"text": "a", "token_ids_logprob": [5] * MB}, "1000000 ids"),
        ({"text": "a", "sampling_params": {"stop": ["x"] * MB}}, "holds 1000000 strings"),
        ({"text": "a", "sampling_params": {"stop_token_ids": [1] * MB}}, "holds 1000000 ids"),
        ({"text": "a", "sampling_params": {"logit_bias": dict.fromkeys(map(str, range(2000)), 1)}}, "2000 entries"),
    ],
)
def test_lists_are_counted_before_their_entries_are_looked_at(fields, message):
    """The last entry is one that looking at would complain of."""
    for value in fields.values():
        if isinstance(value, list):
            value[-1] = object()
    with pytest.raises(RequestError, match=message):
        make_prompts(GenerateRequest(**fields))


def test_a_batch_has_as_many_different_patterns_as_a_request():
    """Each is compiled: 32,768 of them stopped everything for 17 s."""
    same = [{"stop_regex": ["[0-9]+", "x+"]}] * 4096
    assert len(make_prompts(GenerateRequest(text=["a"] * 4096, sampling_params=same))[0]) == 4096
    for form in (lambda i: f"a{i}[b-z]", lambda i: [f"a{i}[b-z]"]):
        params = [{"stop_regex": form(i)} for i in range(33)]
        with pytest.raises(RequestError, match="33 different stop_regex, at most 32"):
            make_prompts(GenerateRequest(text=["a"] * 33, sampling_params=params))
        assert len(make_prompts(GenerateRequest(text=["a"] * 32, sampling_params=params[:32]))[0]) == 32


def test_one_set_of_parameters_is_parsed_once_for_a_batch(monkeypatch):
    calls = []
    real = make_prompts.__globals__["sampling_params"]
    monkeypatch.setitem(make_prompts.__globals__, "sampling_params", lambda *v: calls.append(v) or real(*v))
    prompts, _ = make_prompts(GenerateRequest(text=["a"] * 4096, sampling_params={"stop_regex": ["x+"] * 32}))
    assert len(prompts) == 4096 and len(calls) == 1


def test_the_page_of_limits_has_the_numbers_of_the_code():
    page = (Path(__file__).parents[3] / "docs" / "limits.md").read_text()
    numbers = {
        bodies: ("MAX_VALUES", "MAX_COMMAS"),
        generate_api: ("MAX_IDS", "MAX_REPEATED_LOGPROBS"),
        prompt_reader: ("MAX_TOP_LOGPROBS", "MAX_TOKEN_IDS_LOGPROB", "MAX_LOGPROBS", "MAX_RID_CHARS"),
        checks: ("MAX_MODEL_CHARS",),
        protocol: ("MAX_TOP_LOGPROBS",),
        response_store: ("MAX_RESPONSES",),
        sampling_params: ("MAX_STOP", "MAX_STOP_CHARS", "MAX_STOP_REGEX_CHARS", "MAX_LOGIT_BIAS"),
        stop_regex: ("MAX_REPEATS", "MAX_UNROLLED_CHARS"),
        tokenizer_api: ("MAX_LISTS", "MAX_CHARS", "MAX_IDS"),
        tokenizer_manager: ("MAX_GENERATIONS",),
    }
    for module, names in numbers.items():
        for name in names:
            assert f"{getattr(module, name):,}" in page, name
    assert f"{chat_worker.RENDER_SECONDS:.0f} s of processor time" in page
    assert f"{prompt_reader.MAX_PARAMS_BYTES // MB} MB" in page


# ---- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"", b"abc", b"abcd", b"\\u0041"])
@pytest.mark.parametrize("rest", [b'"}', b'","model":"m"}', b'"            }'])
def test_half_of_a_surrogate_pair_is_called_by_its_name(end, rest):
    for half in (b"\\ud83d", b"\\ude00"):
        assert "half of a surrogate pair" in refusal(b'{"text":"a' + half + end + rest).message


@pytest.mark.parametrize("content", [b'{"text":"a', b'{"text":"a"', b'{"text":"\\ud83d\\ude00"', b'{"text":"\\'])
def test_a_body_that_ends_early_is_called_truncated(content):
    assert "truncated" in refusal(content).message


@pytest.mark.parametrize(
    ("form", "param"),
    [
        (b'{"text":"a","sampling_params":{"%s":1}}', "sampling_params"),
        (b'{"text":"a","sampling_params":{"stop":5,"temperature":"%s"}}', "sampling_params"),
    ],
)
def test_no_value_of_the_client_comes_back_in_full(form, param):
    content = form % (b"x" * 5 * MB)
    with pytest.raises(RequestError) as caught:
        make_prompts(asyncio.run(read_body(FakeRequest(content), GenerateRequest)))
    assert caught.value.param == param
    assert len(caught.value.message) <= MAX_MESSAGE_CHARS and "x" * 100 not in caught.value.message


def test_shown_values_are_short():
    for value in ("x" * MB, ["x" * MB] * 9, {"a" * MB: ["b" * MB]}, b"y" * MB, 10**5000, object()):
        assert len(shown(value)) <= 80


# ---- keys and log lines ---------------------------------------------------------------------------------------------


def test_salt_and_key_are_a_pair():
    """Text joined without a border let a salt be met by another salt with the right key."""
    pairs = [("t1", "2"), ("t12", ""), ("", "t12"), ("t", "12"), ("t1", "3"), ('a","', "b"), ("a", '","b')]
    assert len({cache_key(*pair) for pair in pairs}) == len(pairs)
    assert cache_key("t", "") == cache_key("t", None) and cache_key(None, "") is None
    for salt, extra in pairs:
        body = CompletionRequest(prompt="a", cache_salt=salt, extra_key=extra)
        (prompt,), _ = make_prompts(GenerateRequest(text="a", cache_salt=salt, extra_key=extra))
        assert prompt.extra_key == shared_key(body) == cache_key(salt, extra)
        assert len(prompt.extra_key) <= 64


@pytest.mark.parametrize(
    "text", ["a\n[2026-11-28 00:00:00 http] FORGED", "a\x1b[2Jb", "a\0b", "a\rb", "a\u2028b", "\ud800"]
)
def test_no_text_of_a_client_is_a_line_of_its_own(text):
    formatter = LogFormatter("[%(asctime)s http] %(message)s")
    record = logging.LogRecord("x", logging.INFO, "f", 1, "rid=%s done", (text,), None)
    line = formatter.format(record)
    assert line.isprintable() and line.endswith(" done")
    try:
        raise ValueError(text)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    first, *trace = formatter.format(record).split("\n")
    assert first.endswith("failed") and trace
    assert all(line.isprintable() and line.startswith("    ") for line in trace)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
