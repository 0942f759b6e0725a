"""/v1/messages as the anthropic client sees it: blocks, streams, tools, thoughts, errors; and bodies that are wrong."""

import json
import sys

import anthropic
import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.entrypoints.anthropic.protocol import MessagesRequest, wire_messages, wire_tools
from sglang.srt.entrypoints.anthropic.serving_messages import BlockEvents
from sglang.srt.managers.generation import RequestError
from sglang.srt.parser.events import CallArguments, CallEnd, CallStart, Text, Thought
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess

register_cpu_ci(est_time=25, suite="base-a-test-cpu")

FOLDER = model_folder(ServerArgs())
TOKENIZER = Tokenizer(FOLDER)
(END_OF_TURN,) = TOKENIZER.special_ids_of(["<turn|>"])
ASK = [{"role": "user", "content": "Weather in Oslo?"}]
TOOL = {"name": "get_weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}
Q = '<|"|>'
CALL = f"<|tool_call>call:get_weather{{city:{Q}Oslo{Q},days:2}}<tool_call|>"
THOUGHT = "<|channel>thought\nHm,\nso.\n<channel|>"
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"a": 1}}]}


@pytest.fixture(scope="module")
def server():
    flags = ("--model-path", FOLDER, "--log-level", "warning", "--enable-cache-report")
    with ServerProcess("sglang.test.fake_server", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def says(text: str, **custom) -> dict:
    ids = {"output_ids": TOKENIZER.encode(text, False)} if text else {}
    return {"custom_params": ids | custom, "stop_token_ids": [END_OF_TURN]}


@pytest.fixture
def ask(client):
    """ask(text, ...): what a model that says `text` answers; a stream is put together by the client."""

    def ask(text: str, stream: bool = False, **options) -> anthropic.types.Message:
        extra = says(text, **options.pop("custom", {}))
        options = {"model": "m", "messages": ASK, "max_tokens": 400, "extra_body": extra} | options
        if not stream:
            return client.messages.create(**options)
        with client.messages.stream(**options) as events:
            return events.get_final_message()

    return ask


def contents(message: anthropic.types.Message) -> list[dict]:
    names = {"text": ("text",), "thinking": ("thinking", "signature"), "tool_use": ("name", "input")}
    return [{"type": b.type} | {name: getattr(b, name) for name in names[b.type]} for b in message.content]


WEATHER = {"type": "tool_use", "name": "get_weather", "input": {"city": "Oslo", "days": 2}}
CASES = [
    ("Yes.<turn|>", [{"type": "text", "text": "Yes."}], "end_turn"),
    (
        f"{THOUGHT}Done.<turn|>",
        [{"type": "thinking", "thinking": "Hm,\nso.", "signature": ""}, {"type": "text", "text": "Done."}],
        "end_turn",
    ),
    (
        f"{THOUGHT}I look.{CALL}{CALL}<|tool_response>",
        [
            {"type": "thinking", "thinking": "Hm,\nso.", "signature": ""},
            {"type": "text", "text": "I look."},
            WEATHER,
            WEATHER,
        ],
        "tool_use",
    ),
    (f"{CALL}<turn|>", [WEATHER], "tool_use"),
    ("<turn|>", [], "end_turn"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("text", "content", "reason"), CASES)
def test_answers(ask, text, content, reason, stream):
    message = ask(text, stream, tools=[TOOL], thinking={"type": "enabled", "budget_tokens": 1024})
    assert contents(message) == content and message.stop_reason == reason
    assert (message.type, message.role, message.model, message.stop_sequence) == ("message", "assistant", "m", None)
    assert message.id.startswith("msg_")
    ids = [block.id for block in message.content if block.type == "tool_use"]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("stream", [False, True])
def test_why_it_ended(ask, stream):
    message = ask("one two three four", stream, stop_sequences=["three"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "three")
    assert message.content[0].text == "one two "
    message = ask("one two three four", stream, max_tokens=2)
    assert (message.stop_reason, message.stop_sequence, message.usage.output_tokens) == ("max_tokens", None, 2)
    cut = ask(f"Yes.{CALL}", stream, max_tokens=len(TOKENIZER.encode(f"Yes.{CALL}", False)) - 2, tools=[TOOL])
    assert cut.stop_reason == "max_tokens"
    assert stream or contents(cut) == [{"type": "text", "text": "Yes."}]  # a stream has begun the call already


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_cached_tokens_apart(ask, client, stream):
    total = client.messages.count_tokens(model="m", messages=ASK).input_tokens
    usage = ask("Yes.<turn|>", stream, custom={"cached_tokens": 3}).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (total - 3, 3)
    assert usage.output_tokens == len(TOKENIZER.encode("Yes.<turn|>", False))


def test_the_stream_itself(server):
    """Event by event, as the API's pages have it."""
    body = {"model": "m", "messages": ASK, "max_tokens": 99, "stream": True, "tools": [TOOL]}
    body |= says(f"{THOUGHT}I look.{CALL}<|tool_response>")
    reply = server.client.post("/v1/messages", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [part.split("\n") for part in reply.text.removesuffix("\n\n").split("\n\n")]
    assert all(len(lines) == 2 for lines in events)
    named = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]
    assert all(name == value["type"] for name, value in named)
    kinds = [name for name, _ in named]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [v["delta"]["type"] for name, v in named if name == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    assert deltas.count("input_json_delta") > 2  # they grow
    blocks = [v["index"] for name, v in named if name == "content_block_start"]
    assert blocks == [0, 1, 2] == [v["index"] for name, v in named if name == "content_block_stop"]
    assert named[0][1]["message"]["content"] == [] and named[0][1]["message"]["stop_reason"] is None


def test_one_call_a_turn_if_so_asked(ask):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message = ask(CALL + CALL, tools=[TOOL], tool_choice=choice)
    assert contents(message) == [WEATHER] and message.stop_reason == "tool_use"
    message = ask(f"{CALL}<turn|>", tools=[TOOL], tool_choice={"type": "none"})
    assert [block.type for block in message.content] == ["text"]


def test_thinking_and_tools_reach_the_template(ask, server):
    def prompt() -> str:
        return TOKENIZER.decode(server.internal_state()["last_request"]["input_ids"], skip_special_tokens=False)

    ask("Yes.<turn|>", system=[{"type": "text", "text": "Be brief."}], thinking={"type": "adaptive"}, tools=[TOOL])
    assert "<|think|>" in prompt() and "Be brief." in prompt() and "declaration:get_weather" in prompt()
    ask("Yes.<turn|>", thinking={"type": "disabled"}, tools=[TOOL], tool_choice={"type": "none"})
    assert "<|think|>" not in prompt() and "declaration" not in prompt()


def test_a_tool_loop_is_the_chat_that_openai_clients_send(ask, server):
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}
    thought = {"type": "thinking", "thinking": "I look.", "signature": "x"}
    history = [*ASK, {**USE, "content": [thought, *USE["content"]]}, {"role": "user", "content": [result]}]
    ask("Yes.<turn|>", messages=history, tools=[TOOL], system="s")
    ids = server.internal_state()["last_request"]["input_ids"]
    function = {"name": "get_weather", "arguments": '{"a": 1}'}
    wire = [
        {"role": "system", "content": "s"},
        *ASK,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I look.",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    tool = {"name": "get_weather", "description": "d", "parameters": TOOL["input_schema"]}
    body = {"messages": wire, "tools": [{"type": "function", "function": tool}]}
    assert server.client.post("/tokenize", json=body).json()["tokens"] == ids


def test_a_budget_and_a_form_reach_the_scheduler(ask, server):
    ask("Yes.<turn|>", thinking={"type": "enabled", "budget_tokens": 1024}, extra_body={"output_format": FORM})
    params = server.internal_state()["last_request"]
    assert (params["thinking_budget"], params["json_schema"]) == (1024, '{"type":"object"}')
    ask("Yes.<turn|>", thinking={"type": "adaptive"})
    assert "thinking_budget" not in server.internal_state()["last_request"]


def test_an_answer_begun_by_the_client_is_continued(ask, server):
    ask("Yes.<turn|>", messages=[*ASK, {"role": "assistant", "content": "It is"}])
    ids = server.internal_state()["last_request"]["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=False).endswith("It is")


# ---- refused -------------------------------------------------------------------------------------------------------

GOOD = {"model": "m", "messages": ASK, "max_tokens": 4}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
RESULT = {"type": "tool_result", "tool_use_id": "c9", "content": "x"}
DONE = {"role": "user", "content": [{**RESULT, "tool_use_id": "c1"}]}
FORM = {"type": "json_schema", "schema": {"type": "object"}}
SERVER_TOOL = {"type": "web_search_20250305", "name": "web_search"}


@pytest.mark.parametrize(
    ("change", "says_what"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": -5}, "max_tokens must be at least 1, got -5"),
        ({"model": 5}, "model"),
        ({"model": "m" * 300}, "model has 300 characters"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role is 'system'"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content is empty"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]: a block of type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text must be text"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "no tool_use before it has that id"),
        ({"messages": [*ASK, USE]}, "a tool_use is followed by its tool_result"),
        (
            {
                "messages": [
                    *ASK,
                    USE,
                    {"role": "user", "content": [{**RESULT, "tool_use_id": "c1", "content": [IMAGE]}]},
                ]
            },
            "messages[2].content[0].content[0]: a block of type 'image'",
        ),
        ({"system": [IMAGE]}, "system[0]: a block of type 'image'"),
        ({"tools": [SERVER_TOOL]}, "tools[0] is of type 'web_search_20250305'"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name is 'get_weather', as another tool's is"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name is 'a b'"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema is missing"),
        ({"tool_choice": {"type": "any"}}, "tool_choice is of type any, but there are no tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name is 'f', which none"),
        (
            {"tools": [{**TOOL, "strict": True, "input_schema": {"properties": {"a": {"type": "x"}}}}]},
            "tools[0].input_schema.properties.a.type is 'x'",
        ),
        ({"thinking": {"type": "loud"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens must be at least 1"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": ["x"] * 99}, "stop_sequences holds 99 strings"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers is not supported"),
        ({"compaction": {"instructions": "x"}}, "compaction is not supported"),
        ({"thread": {"type": "continue", "previous_message_id": "x"}}, "send all of it, without thread"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format of type json_schema has no sch"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format has the type 'text'"),
        ({"output_format": "json"}, "output_format has the type None"),
        ({"output_config": {"format": FORM}, "output_format": FORM}, "output_config.format and output_format are both"),
        (
            {"messages": [*ASK, USE, {"role": "user", "content": "no"}]},
            "messages[1].content[0].id is 'c1', but no tool_result in the next message has that id",
        ),
        (
            {"messages": [*ASK, USE, DONE, {"role": "assistant", "content": "x"}, DONE]},
            "messages[4].content[0].tool_use_id is 'c1', but no tool_use before it has that id",
        ),
        ({"messages": [{"role": "user", "content": "word " * 70000}]}, "longer than the model's context length"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_name_what_is_wrong(server, change, says_what, stream):
    reply = server.client.post("/v1/messages", json={**GOOD, **change, "stream": stream})
    body = reply.json()
    assert reply.status_code == 400 and body.keys() == {"type", "error"} and body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error" and says_what in body["error"]["message"]


def test_errors_are_the_clients_own(server, client):
    with pytest.raises(anthropic.BadRequestError, match="max_tokens must be at least 1"):
        client.messages.create(model="m", messages=ASK, max_tokens=0)
    refused = says("", refuse="the queue is full", status=503)
    for stream in (False, True):
        with pytest.raises(anthropic.APIStatusError, match="the queue is full") as caught:
            client.messages.create(model="m", messages=ASK, max_tokens=4, stream=stream, extra_body=refused)
        assert caught.value.body["error"]["type"] == "overloaded_error"
    reply = server.client.get("/v1/messages/batches")
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")
    assert server.client.get("/v1/other").json()["object"] == "error"
    body = server.client.post("/v1/messages/count_tokens", content=b"{").json()
    assert body["error"]["message"].startswith("the body is not valid JSON")


def test_an_aborted_stream_ends_in_an_error_event(server):
    body = {**GOOD, "max_tokens": 400, "stream": True, **says("word " * 50, delay=0.05)}
    with server.client.stream("POST", "/v1/messages", json=body) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: message_start"
        server.client.post("/abort_request", json={"abort_all": True})
        rest = list(lines)
    assert rest[-3] == "event: error"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "overloaded_error"


def test_either_header_carries_the_key(start):
    server = start("--api-key", "secret")
    for headers in ({"x-api-key": "secret"}, {"Authorization": "Bearer secret"}):
        assert httpx.get(f"{server.url}/v1/models", headers=headers, timeout=60).status_code == 200
    for headers in ({}, {"x-api-key": "Secret"}, {"x-api-key": ""}, {"Authorization": "secret"}):
        reply = httpx.post(f"{server.url}/v1/messages", headers=headers, json=GOOD, timeout=60)
        assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")
        assert httpx.get(f"{server.url}/v1/models", headers=headers, timeout=60).json()["code"] == 401


# ---- by itself -----------------------------------------------------------------------------------------------------


def request(*messages: dict, **fields) -> MessagesRequest:
    return msgspec.convert({"model": "m", "messages": list(messages), "max_tokens": 4, **fields}, MessagesRequest)


def test_messages_of_one_role_are_one_turn_and_results_follow_their_calls():
    uses = [{"type": "tool_use", "id": f"c{i}", "name": "f", "input": {}} for i in range(2)]
    results = [
        {"type": "tool_result", "tool_use_id": "c0"},
        {"type": "tool_result", "tool_use_id": "c1", "content": "no such city", "is_error": True},
    ]
    text = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    wire = wire_messages(
        request(
            {"role": "user", "content": "a"},
            {"role": "user", "content": [text]},
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, *uses]},
            {"role": "user", "content": [results[0], text, results[1]]},
        )
    )
    assert [m["role"] for m in wire] == ["user", "assistant", "tool", "tool", "user"]
    assert [part["text"] for part in wire[0]["content"]] == ["a", "b"]
    assert [m["content"] for m in wire[2:]] == ["", {"error": "no such city"}, "b"]
    assert [c["id"] for c in wire[1]["tool_calls"]] == ["c0", "c1"] and "reasoning_content" not in wire[1]


def test_a_thought_between_two_texts_opens_blocks_of_its_own():
    blocks = BlockEvents()
    events = [Text("a"), Text("b"), Thought("t"), Text("c"), CallStart(0, "i", "f"), CallArguments(0, "{}"), CallEnd(0)]
    values = [value for event in events for value in blocks.of(event)] + blocks.close()
    shown = [(v["type"].removeprefix("content_block_"), v["index"]) for v in values]
    assert shown == [
        ("start", 0), ("delta", 0), ("delta", 0), ("stop", 0), ("start", 1), ("delta", 1), ("delta", 1), ("stop", 1),
        ("start", 2), ("delta", 2), ("stop", 2), ("start", 3), ("delta", 3), ("stop", 3),
    ]  # fmt: skip


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def mostly(good: st.SearchStrategy) -> st.SearchStrategy:
    return good | good | good | JSON


BLOCK = st.fixed_dictionaries(
    {"type": mostly(st.sampled_from(["text", "thinking", "tool_use", "tool_result", "image", "document"]))},
    optional={
        "text": mostly(st.text(max_size=5)),
        "thinking": mostly(st.text(max_size=5)),
        "id": mostly(st.sampled_from(["a", "b"])),
        "tool_use_id": mostly(st.sampled_from(["a", "b"])),
        "name": mostly(st.text(max_size=5)),
        "input": mostly(st.dictionaries(st.text(max_size=5), JSON, max_size=2)),
        "content": JSON,
        "is_error": JSON,
    },
)
CONTENT = mostly(st.text(max_size=5) | st.lists(BLOCK, max_size=3))
MESSAGE = st.fixed_dictionaries(
    {"role": mostly(st.sampled_from(["user", "assistant"])), "content": CONTENT},
)
FUZZED_TOOL = st.fixed_dictionaries(
    {
        "name": mostly(st.sampled_from(["f", "g", "h i"])),
        "input_schema": mostly(st.dictionaries(st.text(max_size=5), JSON)),
    },
    optional={"description": JSON, "type": JSON, "strict": mostly(st.booleans())},
)
BODY = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": mostly(st.integers(-1, 9)), "messages": st.lists(MESSAGE, max_size=4)},
    optional={
        "system": CONTENT,
        "tools": st.lists(FUZZED_TOOL, max_size=3),
        "tool_choice": mostly(st.fixed_dictionaries({"type": mostly(st.sampled_from(["auto", "none", "any"]))})),
        "thinking": mostly(st.fixed_dictionaries({"type": mostly(st.sampled_from(["enabled", "disabled"]))})),
        "stop_sequences": JSON,
        "top_k": JSON,
        "top_p": JSON,
        "stream": st.booleans(),
        "metadata": JSON,
        "chat_template_kwargs": JSON,
        "output_config": JSON,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODY, path=st.sampled_from(["/v1/messages", "/v1/messages/count_tokens"]))
def test_whatever_comes_is_answered_or_refused(server, body, path):
    reply = server.client.post(path, json=body)
    assert reply.status_code in (200, 400), (reply.text, body)
    if reply.status_code == 400:
        assert reply.json()["error"]["type"] == "invalid_request_error"


@settings(max_examples=300, deadline=None)
@given(messages=st.lists(MESSAGE, max_size=4), tools=st.lists(FUZZED_TOOL, max_size=3))
def test_translation_raises_nothing_else(messages, tools):
    try:
        body = request(*messages, tools=tools)
        wire_messages(body)
        wire_tools(body.tools)
    except (RequestError, msgspec.ValidationError):
        pass


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
