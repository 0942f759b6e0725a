"""Bad input to the endpoints that speak of tools, thoughts and forms: each is refused with a reason or has a defined
answer, through a real server with the shipped model; and bodies by number, of which most are wrong.

A run asks for the first few hundred of the numbered bodies. With SGLANG_TEST_WEEKLY=1 it asks for 20,000.
"""

import json
import sys

import psutil
import pytest

from sglang.test.body_fuzz import ASK, LOOP, PERSON, TOOL, TREE, body, fuzz
from sglang.test.ci.ci_register import is_weekly, register_cpu_ci
from sglang.test.server_process import ServerProcess, children_of, wait_for

register_cpu_ci(est_time=45, suite="base-a-test-cpu")
register_cpu_ci(est_time=900, suite="weekly-test-cpu")

BODIES = 20_000 if is_weekly() else 300
FLAGS = (
    "--device", "cpu", "--dtype", "float32", "--context-length", "512", "--max-total-tokens", "4096",
    "--max-running-requests", "16", "--log-level", "warning",
)  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with ServerProcess("sglang.launch_server", *FLAGS, timeout=120) as server:
        yield server


def post(server: ServerProcess, path: str, **fields):
    return server.client.post(path, json={"max_tokens": 4, "messages": [ASK], "model": "m"} | fields)


# ---- forms ---------------------------------------------------------------------------------------------------------


def nested(levels: int) -> dict:
    schema: dict = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def refers(**defs: dict) -> dict:
    return {"$ref": "#/$defs/a", "$defs": defs}


SCHEMAS = {
    "huge": ({"enum": [f"{i:09d}" for i in range(9000)]}, "at most 65536 are possible"),
    "deep": (nested(100), "nested more than 64 levels deep"),
    "no schema": ("5", "must be a JSON schema"),
    "no JSON": ("{", "is no JSON"),
    "of itself alone": (refers(a={"$ref": "#/$defs/b"}, b={"$ref": "#/$defs/a"}), "Circular $ref chain"),
    "of nothing": ({"$ref": "#/$defs/a"}, "Cannot find field"),
    "bounds": ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum greater than maximum"),
    "lengths": ({"type": "string", "minLength": 5, "maxLength": 1}, "minLength 5 is greater than maxLength 1"),
    "of another place": ({"$ref": "https://example.org/a.json"}, "json_schema.$ref is 'https://example.org/a.json'"),
    "two types at once": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "json_schema.allOf holds 2 schemas"),
    "a value of another type": ({"type": "string", "const": 5}, "has 5 among its values, which is no string"),
    "what is required can't be": (
        {"type": "object", "properties": {"a": {}}, "required": ["b"], "additionalProperties": False},
        "json_schema.required names 'b', which is not in properties",
    ),
    "a pattern that looks ahead": ({"properties": {"a": {"pattern": "(?=a)b"}}}, "properties.a.pattern looks ahead"),
    "no choice": ({"enum": []}, "enum array must not be empty"),
    "nothing": ({"type": "array", "items": False, "minItems": 1}, ""),
    "a pattern that is none": ({"type": "string", "pattern": "(a"}, "position 3"),
    "a type that is none": ({"type": "thing"}, 'Unsupported type "thing"'),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_that_are_refused(server, name):
    schema, reason = SCHEMAS[name]
    text = schema if isinstance(schema, str) else json.dumps(schema)
    reply = server.client.post("/generate", json={"text": "a", "sampling_params": {"json_schema": text}})
    assert reply.status_code == 400 and reason in reply.json()["message"]
    if not isinstance(schema, str):
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        reply = post(server, "/v1/chat/completions", response_format=form)
        assert reply.status_code == 400 and reason in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "schema",
    [
        TREE,
        refers(a={"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}),  # endless
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}, "required": ["p299"]},
        {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    ],
)
def test_schemas_that_take_long_or_never_end(server, schema):
    """Compiled lazily, and cut off by the limit; a library that can't gives its reason."""
    params = {"json_schema": schema, "max_new_tokens": 4}
    reply = server.client.post("/generate", json={"text": "a", "sampling_params": params})
    if reply.status_code == 200:
        assert reply.json()["meta_info"]["finish_reason"]["type"] in ("length", "stop")
    else:
        assert reply.status_code == 400 and "json_schema" in reply.json()["message"]


# ---- tools ---------------------------------------------------------------------------------------------------------


def tool(name, parameters=PERSON, **fields) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


ODD_NAMES = ["", " ", "a b", "a:b", "a{", 'a"', "a\n", "x" * 300, 5, None, ["f"]]


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ([TOOL, TOOL], "tools[1].function.name is 'get_weather', as another tool's is"),
        *(([tool(name)], "tools[0].function.name") for name in ODD_NAMES),
        ([{"type": "web_search"}], "tools[0] is of type 'web_search'"),
        ([{"type": "function"}], "tools[0].function"),
        ([tool("f", "text")], "tools[0].function.parameters"),
        ([tool("f", {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}, strict=True)], "'#/$defs/b'"),
        ([tool("f", {"type": "object", "properties": {"a": {"minimum": 3, "maximum": 1, "type": "integer"}},
                     "required": ["a"]}, strict=True)], "tools[0].function"),
    ],
)  # fmt: skip
def test_tools_that_are_refused(server, tools, reason, choice):
    reply = post(server, "/v1/chat/completions", tools=tools, tool_choice=choice)
    assert reply.status_code == 400 and reason in reply.json()["error"]["message"], reply.text


@pytest.mark.parametrize("name", ["a.b", "a-b_c", "天気", "f" * 63, "null", "call", "<|tool_call>"])
def test_names_that_are_served(server, name):
    for choice in ("auto", "required"):
        reply = post(server, "/v1/chat/completions", tools=[tool(name)], tool_choice=choice, max_tokens=2)
        assert reply.status_code == 200, reply.text


# ---- history -------------------------------------------------------------------------------------------------------

CALLS = LOOP[2]
RESULT = LOOP[3]
BROKEN = {
    "a result without a call": [ASK, RESULT],
    "a call without a result": [ASK, CALLS, ASK],
    "arguments that are no JSON": [
        ASK, {**CALLS, "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{"}}]}, RESULT
    ],
    "arguments that are no object": [
        ASK, {**CALLS, "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "[1]"}}]}, RESULT
    ],
    "a call of nothing": [ASK, {**CALLS, "tool_calls": [{"id": "c1"}]}, RESULT],
    "a result of another call": [ASK, CALLS, {**RESULT, "tool_call_id": "c2"}],
    "a result that is a number": [ASK, CALLS, {**RESULT, "content": 5}],
    "two results of one call": [ASK, CALLS, RESULT, RESULT],
    "no question": [CALLS, RESULT],
    "a call of a tool that is not there": [ASK, {**CALLS, "tool_calls": [
        {"id": "c1", "function": {"name": "other", "arguments": "{}"}}]}, RESULT],
}  # fmt: skip
SERVED = {"a result that is a number", "two results of one call", "no question", "a call of a tool that is not there"}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_history(server, name):
    reply = post(server, "/v1/chat/completions", messages=BROKEN[name])
    if name in SERVED:
        assert reply.status_code == 200, reply.text
    else:
        assert reply.status_code == 400 and "messages[" in reply.json()["error"]["message"]


# ---- by number -----------------------------------------------------------------------------------------------------


def test_a_body_of_a_number_is_always_the_same():
    assert [body(i) for i in range(50)] == [body(i) for i in range(50)]


def test_numbered_bodies(server):
    """No 500, every client answered, and afterwards the server is as it was: nothing runs, every slot is free, memory,
    threads and open files stay."""
    first = fuzz(server.url, range(BODIES // 4))
    before = footprint(server)
    rest = fuzz(server.url, range(BODIES // 4, BODIES))
    assert not first.failures + rest.failures, "\n".join([*first.failures, *rest.failures][:10])
    counts = {path: dict(first.statuses.get(path, {}) + rest.statuses[path]) for path in sorted(rest.statuses)}
    print(counts, first.total + rest.total)
    assert all(rest.total[status] > BODIES / 10 for status in (200, 400)), "too few of them are good, or bad"
    wait_for(lambda: is_idle(server), 30)
    assert server.client.post("/flush_cache?timeout=10").status_code == 200
    state = server.internal_state()
    assert (state["full_free"], state["swa_free"]) == (state["full_capacity"], state["swa_capacity"])
    reply = post(server, "/v1/chat/completions", tools=[TOOL])
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] > 0
    after = footprint(server)
    assert after["threads"] <= before["threads"] + 4 and after["files"] <= before["files"] + 8, (before, after)
    # What is kept of grammars and responses is still growing then, to 256 and 64 MB.
    assert after["bytes"] <= before["bytes"] + (400 << 20), (before, after)


def is_idle(server: ServerProcess) -> bool:
    state = server.internal_state()
    return state["num_running_reqs"] == state["num_queue_reqs"] == 0


def footprint(server: ServerProcess) -> dict[str, int]:
    """Of all its processes together."""
    main = psutil.Process(server.process.pid)
    processes = [main, *children_of(main.pid, recursive=True)]
    return {
        "bytes": sum(p.memory_info().rss for p in processes),
        "threads": sum(p.num_threads() for p in processes),
        "files": sum(p.num_fds() for p in processes),
    }


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
