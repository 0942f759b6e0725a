"""Fields nobody knows: ignored with one line each, or refused where that would change the answer."""

import asyncio
import json
import logging
import sys

import anthropic
import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.entrypoints import unknown_fields
from sglang.srt.entrypoints.anthropic.protocol import CountTokensRequest, MessagesRequest
from sglang.srt.entrypoints.bodies import read_body
from sglang.srt.entrypoints.gate import MAX_ID_CHARS, request_id
from sglang.srt.entrypoints.generate_api import GenerateRequest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from sglang.srt.entrypoints.openai.response_items import ResponsesRequest
from sglang.srt.entrypoints.routes import OTHER_WORK
from sglang.srt.managers.generation import RequestError
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

ASK = [{"role": "user", "content": "hi"}]
BODIES = [
    (GenerateRequest, {"text": "a"}),
    (CompletionRequest, {"prompt": "a"}),
    (ChatCompletionRequest, {"messages": ASK}),
    (ResponsesRequest, {"input": "a"}),
    (MessagesRequest, {"model": "m", "messages": ASK, "max_tokens": 1}),
    (CountTokensRequest, {"model": "m", "messages": ASK}),
]


class FakeRequest:
    def __init__(self, body: bytes):
        self._body = body

    async def body(self) -> bytes:
        return self._body


def read(fields: dict, body_type: type):
    return asyncio.run(read_body(FakeRequest(json.dumps(fields).encode()), body_type))


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(unknown_fields, "_told", set())


@pytest.mark.parametrize(("body_type", "fields"), BODIES, ids=lambda x: getattr(x, "__name__", ""))
def test_an_unknown_field_changes_nothing(body_type, fields, caplog):
    unknown = {"zzz": {"a": [1]}, "strem": True, "line\nend": 1}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert read(fields | unknown, body_type) == read(fields, body_type)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3  # once a name
    assert all(any(repr(name) in line for line in said) for name in unknown)
    if "stream" in body_type.__struct_fields__:
        assert any("'strem'" in line and "did you mean stream?" in line for line in said)


@pytest.mark.parametrize(("body_type", "fields"), BODIES, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("name", unknown_fields.REFUSED)
def test_what_would_change_the_answer_is_refused_and_its_nothings_pass(body_type, fields, name):
    if name in body_type.__struct_fields__:
        return  # known there
    for nothing in (None, False, 0, "", [], {}):
        assert read(fields | {name: nothing}, body_type) == read(fields, body_type)
    for something in (True, 1, "x", [0], {"type": "object"}):
        with pytest.raises(RequestError, match=f"{name} is not supported: ") as caught:
            read(fields | {name: something}, body_type)
        assert caught.value.param == name


def test_what_is_known_is_still_checked_beside_it():
    with pytest.raises(RequestError, match="temperature: expected"):
        read({"messages": ASK, "zzz": 1, "temperature": "hot"}, ChatCompletionRequest)
    with pytest.raises(RequestError, match="field 'messages' is missing"):
        read({"zzz": 1}, ChatCompletionRequest)
    assert read({"prompt": "a", "stream_options": {"zzz": 1}}, CompletionRequest).stream_options is not None


def test_the_log_does_not_grow_without_end(caplog):
    with caplog.at_level(logging.WARNING):
        read({"text": "a"} | {f"f{i}": 1 for i in range(3000)}, GenerateRequest)
    assert len(caplog.records) == len(unknown_fields._told) == unknown_fields.MAX_NAMES


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=3)))
def test_any_name_is_ignored_or_refused(fields):
    try:
        body = read({"model": "m", **fields, "text": "a"}, GenerateRequest)
    except RequestError:
        return
    assert body.text == "a"


CLIENTS = {
    CompletionRequest: openai.types.completion_create_params.CompletionCreateParamsBase,
    ChatCompletionRequest: openai.types.chat.completion_create_params.CompletionCreateParamsBase,
    ResponsesRequest: openai.types.responses.response_create_params.ResponseCreateParamsBase,
    MessagesRequest: anthropic.types.beta.message_create_params.MessageCreateParamsBase,
    CountTokensRequest: anthropic.types.beta.message_count_tokens_params.MessageCountTokensParams,
}


@pytest.mark.parametrize("body_type", CLIENTS, ids=lambda body_type: body_type.__name__)
def test_what_the_clients_can_send_is_known(body_type):
    """Served, of no effect or refused: never ignored as a field that nobody has thought of."""
    fields = set(body_type.__struct_fields__) | set(unknown_fields.REFUSED)
    assert set(CLIENTS[body_type].__annotations__) <= fields


# ---- whole servers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_id", [b"req-1", b"!~", b"x" * MAX_ID_CHARS])
def test_a_good_request_id_is_kept(given_id):
    assert request_id(given_id) == given_id


@pytest.mark.parametrize("given_id", [None, b"", b"a b", b"a\r\nb: c", b"\xff", b"\x00", b"x" * (MAX_ID_CHARS + 1)])
def test_another_is_replaced(given_id):
    made = request_id(given_id)
    assert made != given_id and len(made) == 32 and made.isalnum() and made != request_id(given_id)


def test_replies_name_their_request(start):
    server = start("--api-key", "k")
    key, named = {"Authorization": "Bearer k"}, {"X-Request-Id": "mine-1"}
    body = {"text": "a", "sampling_params": {"max_new_tokens": 2}}
    for stream in (False, True):
        reply = httpx.post(f"{server.url}/generate", json=body | {"stream": stream}, headers=key | named, timeout=60)
        assert (reply.status_code, reply.headers.get_list("x-request-id")) == (200, ["mine-1"])
    made = {httpx.get(f"{server.url}/health", timeout=60).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    for path, headers, status in (("/generate", named, 401), ("/nowhere", key | named, 404)):
        reply = httpx.post(f"{server.url}{path}", json={}, headers=headers, timeout=60)
        assert (reply.status_code, reply.headers["x-request-id"]) == (status, "mine-1")
    with anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(model="m", messages=ASK, max_tokens=0, extra_headers=named)
        assert caught.value.request_id == "mine-1"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        assert client.models.list()._request_id
        with pytest.raises(openai.BadRequestError, match="generates text") as caught:
            client.embeddings.create(model="m", input="a", extra_headers=named)
        assert caught.value.request_id == "mine-1"
    for path in OTHER_WORK:
        reply = httpx.post(f"{server.url}{path}", content=b"\x00any", headers=key, timeout=60)
        assert reply.status_code == 400 and f"{path} is not served" in reply.json()["error"]["message"]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
