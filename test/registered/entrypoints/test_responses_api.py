"""/v1/responses as the openai client sees it: items, streams, tools, thoughts, what is kept, and what is refused."""

import json
import sys

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.entrypoints.openai.response_items import wire_messages
from sglang.srt.entrypoints.openai.response_store import ResponseStore, Stored
from sglang.srt.managers.generation import RequestError
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.server_process import ServerProcess

register_cpu_ci(est_time=15, suite="base-a-test-cpu")

FOLDER = model_folder(ServerArgs())
TOKENIZER = Tokenizer(FOLDER)
(END_OF_TURN,) = TOKENIZER.special_ids_of(["<turn|>"])
TOOL = {"type": "function", "name": "get_weather", "description": "d", "parameters": {"type": "object"}, "strict": True}
Q = '<|"|>'
CALL = f"<|tool_call>call:get_weather{{city:{Q}Oslo{Q}}}<tool_call|>"
THOUGHT = "<|channel>thought\nHm,\nso.\n<channel|>"


@pytest.fixture(scope="module")
def server():
    flags = ("--model-path", FOLDER, "--log-level", "warning", "--enable-cache-report")
    with ServerProcess("sglang.test.fake_server", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def says(text: str, **custom) -> dict:
    ids = {"output_ids": TOKENIZER.encode(text, False)} if text else {}
    return {"custom_params": ids | custom, "stop_token_ids": [END_OF_TURN]}


@pytest.fixture
def ask(client):
    """ask(text, ...): what a model that says `text` answers; a stream's last event holds the response."""

    def ask(text: str, stream: bool = False, **options):
        extra = says(text, **options.pop("custom", {}))
        options = {"model": "m", "input": "Weather?", "max_output_tokens": 400, "extra_body": extra} | options
        if not stream:
            return client.responses.create(**options)
        with client.responses.stream(**options) as events:
            for event in events:
                last = event
        return last.response

    return ask


def shown(response) -> list:
    result = []
    for item in response.output:
        if item.type == "function_call":
            result.append((item.type, item.status, item.name, json.loads(item.arguments)))
        else:
            result.append((item.type, item.status, "".join(part.text for part in item.content)))
    return result


WEATHER = ("function_call", "completed", "get_weather", {"city": "Oslo"})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("Yes.<turn|>", [("message", "completed", "Yes.")]),
        (f"{THOUGHT}Done.<turn|>", [("reasoning", "completed", "Hm,\nso."), ("message", "completed", "Done.")]),
        (
            f"{THOUGHT}I look.{CALL}{CALL}<|tool_response>",
            [("reasoning", "completed", "Hm,\nso."), ("message", "completed", "I look."), WEATHER, WEATHER],
        ),
        ("<turn|>", []),
    ],
)
def test_answers(ask, text, output, stream):
    response = ask(text, stream, tools=[TOOL], metadata={"a": "b"}, custom={"cached_tokens": 3})
    assert shown(response) == output and response.status == "completed"
    assert (response.object, response.model, response.metadata, response.error) == ("response", "m", {"a": "b"}, None)
    assert len({item.id for item in response.output}) == len(output)
    usage, made = response.usage, text.split("<|tool_response>")[0]
    assert usage.output_tokens == len(TOKENIZER.encode(text, False))
    thought = len(TOKENIZER.encode(THOUGHT, False)) if THOUGHT in made else 0
    assert usage.output_tokens_details.reasoning_tokens == thought
    assert usage.input_tokens_details.cached_tokens == 3
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_is_incomplete(ask, client, stream):
    response = ask("one two three four", stream, max_output_tokens=2)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in response.output] == ["incomplete"]
    text = f"Yes.{CALL}"
    cut = ask(text, stream, tools=[TOOL], max_output_tokens=len(TOKENIZER.encode(text, False)) - 2)
    assert cut.status == "incomplete" and cut.output[0].content[0].text == "Yes."
    assert [item.status for item in cut.output[1:]] == (["incomplete"] if stream else [])  # begun already, and no call
    assert ask("Go on.<turn|>", previous_response_id=cut.id).status == "completed"


def test_the_stream_itself(server):
    body = {"model": "m", "input": "Weather?", "stream": True, "tools": [TOOL]}
    reply = server.client.post("/v1/responses", json=body | says(f"{THOUGHT}I look.{CALL}<|tool_response>"))
    parts = [part.split("\n") for part in reply.text.removesuffix("\n\n").split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in parts]
    assert [name.removeprefix("event: ") for name, _ in parts] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event["type"].removeprefix("response.") for event in events))
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done", "output_text.delta", "output_text.done",
        "function_call_arguments.delta", "function_call_arguments.done", "completed",
    ]  # fmt: skip
    final = events[-1]["response"]
    assert [e["item"] for e in events if e["type"] == "response.output_item.done"] == final["output"]
    ids = [item["id"] for item in final["output"]]
    assert all(ids[e["output_index"]] == e["item_id"] for e in events if "item_id" in e)
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    pieces = [e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert len(pieces) > 2 and "".join(pieces) == final["output"][2]["arguments"]


def test_a_tool_loop_by_items_and_by_reference_is_one_prompt(ask, server):
    """And it is the chat that clients of the older API send."""

    def ids() -> list[int]:
        return server.internal_state()["last_request"]["input_ids"]

    options = {"tools": [TOOL], "instructions": "Be brief.", "reasoning": {"effort": "high"}}
    first = ask(f"{THOUGHT}I look.{CALL}<|tool_response>", **options)
    result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "rain"}
    ask("Yes.<turn|>", previous_response_id=first.id, input=[result], **options)
    by_reference = ids()
    items = [item.model_dump(exclude_none=True) for item in first.output]
    ask("Yes.<turn|>", True, input=[{"role": "user", "content": "Weather?"}, *items, result], store=False, **options)
    assert ids() == by_reference
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm,\nso.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    function = {name: TOOL[name] for name in ("name", "description", "parameters")}
    chat = {"messages": messages, "tools": [{"type": "function", "function": function}]}
    chat |= {"chat_template_kwargs": {"enable_thinking": True}}
    assert server.client.post("/tokenize", json=chat).json()["tokens"] == by_reference


def test_effort_switches_thinking(ask, server):
    def prompt() -> str:
        return TOKENIZER.decode(server.internal_state()["last_request"]["input_ids"], skip_special_tokens=False)

    for effort, thinks in (("none", False), ("low", True), ("high", True)):
        ask("Yes.<turn|>", reasoning={"effort": effort})
        assert ("<|think|>" in prompt()) is thinks


def test_what_is_kept_can_be_asked_for_and_deleted(ask, client):
    response = ask("Yes.<turn|>", True)
    assert client.responses.retrieve(response.id).output_text == "Yes."
    client.responses.delete(response.id)
    for gone in (response.id, ask("Yes.<turn|>", store=False).id, "resp_x"):
        with pytest.raises(openai.NotFoundError, match="is kept here"):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError, match="is kept here"):
            client.responses.delete(gone)
        with pytest.raises(openai.NotFoundError, match="is kept here"):
            ask("Yes.<turn|>", previous_response_id=gone)


def test_the_store_is_bounded_and_the_longest_unused_go_first():
    store = ResponseStore(max_responses=3, max_bytes=100)
    for name in "abc":
        store.put(name, Stored(b"12345", b"12345"))
    store.get("a")
    store.put("d", Stored(b"12345", b"12345"))
    with pytest.raises(RequestError, match="no response 'b' is kept here"):
        store.get("b")
    store.put("e", Stored(b"x" * 80, b""))
    assert (len(store), store.size) == (3, 100)
    store.put("f", Stored(b"x" * 101, b""))  # alone too large
    assert (len(store), store.size) == (0, 0)
    store.put("g", Stored(b"x", b"y"))
    store.delete("g")
    assert (len(store), store.size) == (0, 0)


# ---- refused -------------------------------------------------------------------------------------------------------

GOOD = {"model": "m", "input": "hi", "max_output_tokens": 4}
OUTPUT = {"type": "function_call_output", "call_id": "c9", "output": "x"}
USE = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("change", "says_what"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input is empty"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role is 'robot'"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content must be text"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type is 'input_image'",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type is 'item_reference'"),
        ({"input": [OUTPUT]}, "input[0].call_id is 'c9', but no function_call"),
        ({"input": [USE]}, "the function_call 'c1' has no function_call_output"),
        ({"input": [{**USE, "arguments": "{"}, {**OUTPUT, "call_id": "c1"}]}, "is not JSON"),
        ({"tools": [{"type": "web_search"}]}, "tools[0] is of type 'web_search'"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name is 'get_weather', as another tool's is"),
        ({"tool_choice": "required"}, "tool_choice is 'required', but there are no tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice names the tool 'f'"),
        ({"tools": [TOOL], "tool_choice": "any"}, 'tool_choice is \'any\'; "auto", "none", "required"'),
        ({"tools": [{**TOOL, "strict": 1}]}, "tools[0].strict is 1"),
        (
            {"tools": [{**TOOL, "strict": True, "parameters": {"properties": {"a": {"enum": []}}}}]},
            "tools[0].parameters.properties.a.enum must be a list of values",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format has the type 'xml'"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format of type json_schema has no schema"),
        ({"thinking_budget": -1}, "thinking_budget must be an integer from 0"),
        ({"reasoning": {"effort": "much"}}, "the reasoning effort is 'much'"),
        ({"max_output_tokens": 0}, "max_output_tokens must be at least 1, got 0"),
        ({"temperature": -1}, "temperature"),
        ({"background": True}, "background is not supported"),
        ({"top_logprobs": 2}, "top_logprobs is not supported"),
        ({"conversation": "c"}, "conversation is not supported"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs is not supported"),
        ({"input": "word " * 70000}, "longer than the model's context length"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_name_what_is_wrong(server, change, says_what, stream):
    reply = server.client.post("/v1/responses", json={**GOOD, **change, "stream": stream})
    assert reply.status_code == 400 and says_what in reply.json()["error"]["message"]


def test_an_aborted_stream_has_failed(server):
    body = {**GOOD, "max_output_tokens": 400, "stream": True, **says("word " * 50, delay=0.05)}
    with server.client.stream("POST", "/v1/responses", json=body) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: response.created"
        server.client.post("/abort_request", json={"abort_all": True})
        rest = list(lines)
    assert rest[-3] == "event: response.failed"
    response = json.loads(rest[-2].removeprefix("data: "))["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")


# ---- whatever comes ------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def mostly(good: st.SearchStrategy) -> st.SearchStrategy:
    return good | good | good | JSON


PART = st.fixed_dictionaries(
    {
        "type": mostly(st.sampled_from(["input_text", "output_text", "summary_text", "input_image"])),
        "text": mostly(st.text(max_size=5)),
    }
)
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": mostly(st.sampled_from(["message", "function_call", "function_call_output", "reasoning"])),
        "role": mostly(st.sampled_from(["user", "assistant", "system", "developer"])),
        "content": mostly(st.text(max_size=5) | st.lists(PART, max_size=2)),
        "summary": mostly(st.lists(PART, max_size=2)),
        "call_id": mostly(st.sampled_from(["a", "b"])),
        "name": mostly(st.text(max_size=5)),
        "arguments": mostly(st.sampled_from(["", "{}", '{"a": [1, {}]}', "[", "5"])),
        "output": mostly(st.text(max_size=5) | st.lists(PART, max_size=2)),
    },
)
FUZZED_TOOL = st.fixed_dictionaries(
    {"type": mostly(st.just("function")), "name": mostly(st.sampled_from(["f", "g", "h i"]))},
    optional={
        "description": JSON,
        "parameters": mostly(st.dictionaries(st.text(max_size=5), JSON)),
        "strict": mostly(st.booleans()),
    },
)
BODY = st.fixed_dictionaries(
    {"input": mostly(st.text(max_size=5) | st.lists(ITEM, max_size=4)), "max_output_tokens": mostly(st.integers(0, 9))},
    optional={
        "instructions": mostly(st.text(max_size=5)),
        "tools": st.lists(FUZZED_TOOL, max_size=3),
        "tool_choice": mostly(st.sampled_from(["required", {"type": "function", "name": "f"}])),
        "previous_response_id": JSON,
        "reasoning": mostly(st.fixed_dictionaries({"effort": JSON})),
        "text": JSON,
        "store": JSON,
        "stream": st.booleans(),
        "include": JSON,
        "metadata": JSON,
        "chat_template_kwargs": JSON,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODY)
def test_whatever_comes_is_answered_or_refused(server, body):
    reply = server.client.post("/v1/responses", json=body)
    assert reply.status_code in (200, 400, 404), (reply.text, body)
    if reply.status_code == 404:
        assert body["previous_response_id"] is not None


@settings(max_examples=300, deadline=None)
@given(items=st.lists(ITEM, max_size=5))
def test_translation_raises_nothing_else(items):
    try:
        messages = wire_messages(items, [])
    except RequestError:
        return
    assert all(message["role"] in ("user", "assistant", "system", "developer", "tool") for message in messages)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
