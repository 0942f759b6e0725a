"""Bodies that no client should send, numbered: number i is the same body in every run, so a failure can be asked again.

Three kinds: valid bodies with a few of their values exchanged, struct fields with values of their own and other types,
and JSON text that is broken. `fuzz` asks a server for a range of them and says what came back.
"""

import collections
import dataclasses
import json
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
from msgspec import inspect

from sglang.srt.entrypoints.anthropic.protocol import CountTokensRequest, MessagesRequest
from sglang.srt.entrypoints.generate_api import GenerateRequest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from sglang.srt.entrypoints.openai.response_items import ResponsesRequest
from sglang.srt.entrypoints.tokenizer_api import DetokenizeRequest, TokenizeRequest

MAX_NEW = 6  # tokens of most bodies: many of them are fine, and are answered
LIMITS = {
    "/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens", "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}  # fmt: skip
TYPES = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/tokenize": TokenizeRequest,
    "/generate": GenerateRequest,
    "/v1/completions": CompletionRequest,
    "/v1/detokenize": DetokenizeRequest,
}

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kinds": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "home": {"anyOf": [{"$ref": "#/$defs/home"}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"home": {"type": "object", "properties": {"street": {"type": "string", "pattern": "^[a-z]{1,4}$"}}}},
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
}  # fmt: skip
FUNCTION = {"name": "get_weather", "description": "d", "parameters": PERSON, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"name": "Oslo", "age": 3}'}}
ASK = {"role": "user", "content": "Weather in Oslo?"}
LOOP = [
    {"role": "system", "content": "Be brief."},
    ASK,
    {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "rain"}'},
]
USE = {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"name": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}], "is_error": False}
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, USE]},
    {"role": "user", "content": [RESULT]},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
    {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"name": "Oslo"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
]
SCHEMA_FORM = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": PERSON}}


def _chat(**fields: Any) -> tuple[str, dict]:
    return "/v1/chat/completions", {"model": "m", "messages": [ASK], **fields}


def _messages(**fields: Any) -> tuple[str, dict]:
    return "/v1/messages", {"model": "m", "messages": [ASK], **fields}


def _responses(**fields: Any) -> tuple[str, dict]:
    return "/v1/responses", {"model": "m", "input": "Weather in Oslo?", **fields}


def _generate(**params: Any) -> tuple[str, dict]:
    return "/generate", {"text": "Mia has 12 marbles.", "sampling_params": {"max_new_tokens": MAX_NEW, **params}}


CLAUDE_TOOL = {"name": "get_weather", "description": "d", "input_schema": PERSON}
RESPONSES_TOOL = {"type": "function", **FUNCTION}
VALID = [
    _chat(stream=True, stream_options={"include_usage": True}, n=2, seed=1, temperature=0.5, top_p=0.9, stop=["x"]),
    _chat(messages=LOOP, tools=[TOOL], tool_choice="auto", parallel_tool_calls=False),
    _chat(messages=LOOP, tools=[TOOL], tool_choice="required", stream=True),
    _chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}),
    _chat(response_format=SCHEMA_FORM, reasoning_effort="low", chat_template_kwargs={"enable_thinking": True}),
    _chat(response_format={"type": "json_object"}, logprobs=True, top_logprobs=2, logit_bias={"5": 1}),
    _chat(chat_template_kwargs={"enable_thinking": True}, separate_reasoning=False, stream_reasoning=False),
    _chat(messages=[ASK, {"role": "assistant", "content": "It"}], continue_final_message=True, regex="[a-z]{3}"),
    _messages(system="Be brief.", tools=[CLAUDE_TOOL], tool_choice={"type": "auto"}, messages=BLOCKS, stream=True),
    _messages(tools=[CLAUDE_TOOL], tool_choice={"type": "tool", "name": "get_weather"}, stop_sequences=["x"]),
    _messages(thinking={"type": "enabled", "budget_tokens": 1024}, temperature=1.0, top_k=3, metadata={"user_id": "u"}),
    _messages(output_config={"format": {"type": "json_schema", "schema": PERSON}}, stream=True),
    ("/v1/messages/count_tokens", {"model": "m", "messages": BLOCKS, "tools": [CLAUDE_TOOL], "system": "s"}),
    ("/v1/messages/count_tokens", {"model": "m", "messages": [ASK], "thinking": {"type": "adaptive"}}),
    _responses(input=ITEMS, tools=[RESPONSES_TOOL], instructions="Be brief.", reasoning={"effort": "low"}, store=True),
    _responses(tools=[RESPONSES_TOOL], tool_choice="required", stream=True, metadata={"a": "b"}, store=False),
    _responses(text={"format": {"type": "json_schema", "name": "p", "schema": PERSON}}, previous_response_id=None),
    ("/v1/tokenize", {"messages": LOOP, "tools": [TOOL], "add_generation_prompt": True}),
    ("/v1/tokenize", {"prompt": ["a", "b c"], "add_special_tokens": False}),
    ("/v1/detokenize", {"tokens": [[2, 105], [7]], "skip_special_tokens": False}),
    _generate(json_schema=PERSON, temperature=0),
    _generate(json_schema=json.dumps(TREE), sampling_seed=3),
    _generate(json_schema={"allOf": [{"type": "object"}, {"properties": {"a": {"const": 1}}}], "minProperties": 1}),
    _generate(regex="[0-9]{2,4} (apples|pears)?", top_p=0.9, stop=["s"]),
    _generate(ebnf='root ::= word (" " word){0,2}\nword ::= [a-z]{1,3} | "(" root ")"'),
    ("/generate", {"input_ids": [[2, 5], [7, 9]], "sampling_params": [{"max_new_tokens": 3}, {"regex": "a+"}]}),
    ("/v1/completions", {"prompt": ["a", "b c"], "echo": True, "logprobs": 2, "max_tokens": 3, "json_schema": PERSON}),
]  # fmt: skip

EXPECTED = (200, 400, 404)  # 404: previous_response_id
OWN_FAULTS = ("internal error", '"status_code":500', "Internal Server Error")  # in the events of a stream
LONG = "a" * 70_000
DEEP = json.loads("[" * 90 + "1" + "]" * 90)
NASTY = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-9, 1e308, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40,
    "", " ", "0", "auto", "none", "null", "x" * 300, LONG, "\0", "\u2028\x1b[2J\r\n", "🙂", '<|"|>',
    "<|tool_call>call:f{", "<turn|>", "<|channel>", "#/$defs/node", "(a", "[z-a]", "(?<a>b)\\1", "root ::= root",
    "function", "object", [], {}, [None], [[]], [{}], {"": ""}, {"type": "object"}, {"$ref": "#"},
    {"type": ["string", "null"]},
    {"not": {}},
    {"enum": []}, {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"minLength": 10**9}, {"minItems": 10**6}, DEEP,
    ["a"] * 40, list(range(300)), {str(i): i for i in range(300)},
]  # fmt: skip
NAMES = ["type", "name", "content", "role", "text", "id", "$ref", "properties", "items", "required", "n", "stream", "é"]


def body(number: int) -> tuple[str, bytes]:
    """Path and body of that number."""
    rng = random.Random(number)
    kind = rng.random()
    if kind < 0.2:
        path = rng.choice(list(TYPES))
        value: Any = _typed(rng, TYPES[path])
        if isinstance(value, dict) and rng.random() < 0.95:
            _bound(path, value)
    else:
        path, valid = rng.choice(VALID)
        value = _copy(valid)
        _bound(path, value)
        for _ in range(min(8, 1 + int(rng.expovariate(1.5)))):
            value = _mutated(rng, value)
    data = json.dumps(value).encode()
    return path, _broken(rng, data) if kind > 0.93 else data


def _bound(path: str, value: dict) -> None:
    """Few tokens, for speed."""
    if path in LIMITS:
        value[LIMITS[path]] = MAX_NEW
    elif path == "/generate" and isinstance(value.get("sampling_params") or {}, dict):
        value["sampling_params"] = {"max_new_tokens": MAX_NEW} | (value.get("sampling_params") or {})


def _nasty(rng: random.Random) -> Any:
    return _copy(rng.choice(NASTY))


def _copy(value: Any) -> Any:
    """Of a JSON value: each may be changed by itself."""
    return json.loads(json.dumps(value))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found, left = [], [value]
    while left:
        at = left.pop()
        keys = at.keys() if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
        found += [(at, key) for key in keys]
        left += [at[key] for key in keys]
    return found


def _mutated(rng: random.Random, value: Any) -> Any:
    places = _places(value)
    if not places:
        return _nasty(rng)
    at, key = rng.choice(places)
    match rng.randrange(8):
        case 0 | 1 | 2:
            at[key] = _nasty(rng)
        case 3:
            del at[key]
        case 4:  # from somewhere else
            other, name = rng.choice(places)
            at[key] = _copy(other[name]) if _holds(other, name) else None
        case 5:
            at[key] = rng.choice([[at[key]], {rng.choice(NAMES): at[key]}, str(at[key]), [at[key], _copy(at[key])]])
        case 6 if isinstance(at, dict):
            at[rng.choice([*NAMES, key + "x"])] = _nasty(rng)
        case _:
            if isinstance(at, list):
                at.insert(key, rng.choice([at[key], _nasty(rng)]))
            else:
                at[rng.choice(NAMES)] = at.pop(key)
    return value


def _holds(at: Any, key: Any) -> bool:
    return key in at if isinstance(at, dict) else key < len(at)


def _typed(rng: random.Random, struct: type) -> dict:
    """Some of the struct's fields, the required ones mostly, with values of their types, mostly."""
    fields = msgspec.structs.fields(struct)
    chosen = [f for f in fields if rng.random() < (0.95 if f.required else 4 / len(fields))]
    return {f.encode_name: _of_type(rng, inspect.type_info(f.type)) for f in chosen}


def _of_type(rng: random.Random, type: inspect.Type, depth: int = 0) -> Any:
    if rng.random() < 0.05 or depth > 3:
        return _nasty(rng)
    match type:
        case inspect.UnionType():
            return _of_type(rng, rng.choice(type.types), depth)
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.IntType():
            return rng.choice([0, 1, 2, 5, 7, 20, -1])
        case inspect.FloatType():
            return rng.choice([0.0, 0.5, 1.0, 2, -1.5])
        case inspect.StrType():
            return rng.choice(["a", "user", "function", "auto", "json_object", "", "é🙂", "m" * 80])
        case inspect.LiteralType():
            return rng.choice(type.values)
        case inspect.ListType():
            return [_of_type(rng, type.item_type, depth + 1) for _ in range(rng.randrange(4))]
        case inspect.DictType():
            names = rng.sample(NAMES, rng.randrange(4))
            return {name: _of_type(rng, type.value_type, depth + 1) for name in names}
        case inspect.StructType():
            return {f.encode_name: _of_type(rng, f.type, depth + 1) for f in type.fields if rng.random() < 0.7}
        case inspect.NoneType():
            return None
    return _nasty(rng)  # any


def _broken(rng: random.Random, data: bytes) -> bytes:
    at, piece = rng.randrange(len(data)), rng.choice([b"", b'"', b"{", b"]", b"\\ud800", b"\xff", b"NaN", b"\0", b",,"])
    match rng.randrange(3):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + piece + data[at:]
    return data[:at] + piece + data[at + 1 + rng.randrange(4) :]


@dataclasses.dataclass
class Outcome:
    statuses: dict[str, collections.Counter] = dataclasses.field(default_factory=dict)  # by path
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> collections.Counter:
        return sum(self.statuses.values(), collections.Counter())


def fuzz(url: str, numbers: Iterable[int], threads: int = 8) -> Outcome:
    """Send the bodies of these numbers, some clients leaving before the answer has come. A failure is a status that is
    not expected, a stream that tells of an error of the server's own, or no answer at all."""

    def ask(client: httpx.Client, number: int) -> tuple[str, int, str]:
        """Path, status (0: none) and what is wrong, if anything is."""
        path, data = body(number)
        text = ""
        try:
            with client.stream("POST", path, content=data, headers={"Content-Type": "application/json"}) as reply:
                status = reply.status_code
                if number % 37:  # the others leave
                    text = reply.read().decode()
        except httpx.HTTPError as e:
            status, text = 0, repr(e)
        bad = status not in EXPECTED or any(mark in text for mark in OWN_FAULTS)
        return path, status, f"{number}: {path}: {status} {text[:300]} <- {data[:1000]!r}" if bad else ""

    outcome = Outcome()
    with ThreadPoolExecutor(threads) as pool, httpx.Client(base_url=url, timeout=120) as client:
        for path, status, failure in pool.map(lambda number: ask(client, number), numbers):
            outcome.statuses.setdefault(path, collections.Counter())[status] += 1
            if failure:
                outcome.failures.append(failure)
    return outcome
