"""Bodies of /v1/responses: a turn's messages and tools out of items, and items out of an answer's events."""

import uuid
from typing import Any

import msgspec

from sglang.srt.entrypoints.checks import unserved_fields
from sglang.srt.managers.generation import RequestError
from sglang.srt.parser.events import CallArguments, CallEnd, CallStart, Event, Text, Thought
from sglang.srt.utils.shown import shown

NOT_SERVED = ("background", "conversation", "moderation", "prompt", "top_logprobs", "priority")
ROLES = ("user", "assistant", "system", "developer")
TEXT_PARTS = ("input_text", "output_text", "text")


class Reasoning(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: Any = None  # of no effect: thoughts come as they are


class TextOptions(msgspec.Struct, kw_only=True):
    format: dict[str, Any] | None = None  # text, json_object or json_schema
    verbosity: Any = None  # of no effect


class ResponsesRequest(unserved_fields(*NOT_SERVED), kw_only=True, forbid_unknown_fields=True):
    """null means: not given."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None  # false: it is not kept
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None  # false: one call a turn
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    metadata: Any = None

    # Of no effect
    stream_options: Any = None
    truncation: Any = None
    service_tier: Any = None
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    access_programs: Any = None
    background_options: Any = None
    context_management: Any = None
    image: Any = None
    max_tool_calls: Any = None  # of tools that the server would run

    session_id: Any = None
    request_id: Any = None  # a response's id is made here

    # SGLang's own
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    extra_key: str | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    custom_params: dict | None = None
    cache_salt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_budget: int | None = None


def wire_messages(items: str | list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as messages of the chat's wire form, as a Turn takes them; `before` are those of the turns before.
    Raises RequestError."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    result: list[dict] = []
    called = {call["id"] for message in before for call in message.get("tool_calls", ())}
    for i, item in enumerate(items):
        place = f"input[{i}]"
        match item.get("type") or "message":
            case "message":
                role, content = item.get("role"), _texts(item.get("content"), f"{place}.content")
                if role not in ROLES:
                    raise _wrong(f"{place}.role", f"is {shown(role)}; one of {', '.join(ROLES)} is expected")
                if role == "assistant":
                    _assistant(result, "content")["content"] = content
                else:
                    result.append({"role": role, "content": content})
            case "reasoning":
                parts = item.get("content") or item.get("summary") or []
                _assistant(result, "reasoning_content")["reasoning_content"] = _texts(
                    parts, f"{place}.content", ("reasoning_text", "summary_text")
                )
            case "function_call":
                call_id, name = _string(item, "call_id", place), _string(item, "name", place)
                function = {"name": name, "arguments": _string(item, "arguments", place)}
                called.add(call_id)
                calls = _assistant(result, "tool_calls").setdefault("tool_calls", [])
                calls.append({"id": call_id, "type": "function", "function": function})
            case "function_call_output":
                call_id = _string(item, "call_id", place)
                if call_id not in called:
                    raise _wrong(f"{place}.call_id", f"is {shown(call_id)}, but no function_call before it has that id")
                content = _texts(item.get("output"), f"{place}.output")
                result.append({"role": "tool", "tool_call_id": call_id, "content": content})
            case kind:
                raise _wrong(f"{place}.type", f"is {shown(kind)}; message, function_call, function_call_output and "
                                              "reasoning are served")  # fmt: skip
    return result


ORDER = ("reasoning_content", "content", "tool_calls")  # of what one message holds


def _assistant(messages: list[dict], field: str) -> dict:
    """The message that the model's next item belongs to: a thought, then a text, then calls are one message."""
    last = messages[-1] if messages else {}
    later = () if field == "tool_calls" else ORDER[ORDER.index(field) :]
    if last.get("role") != "assistant" or any(last.get(name) for name in later):
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _texts(content: Any, place: str, kinds: tuple[str, ...] = TEXT_PARTS) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _wrong(place, "must be text or a list of parts")
    for k, part in enumerate(content):
        if part.get("type") not in kinds:
            raise _wrong(f"{place}[{k}].type", f"is {shown(part.get('type'))}; {', '.join(kinds)} are served")
    return "\n".join(_string(part, "text", f"{place}[{k}]") for k, part in enumerate(content))


def _string(item: dict, name: str, place: str) -> str:
    if not isinstance(item.get(name), str):
        raise _wrong(f"{place}.{name}", "must be text")
    return item[name]


def _wrong(place: str, problem: str) -> RequestError:
    return RequestError(f"{place} {problem}", param=place)


def refuse_unanswered(messages: list[dict]) -> None:
    """A call is followed by its result. Raises RequestError."""
    answered = {message["tool_call_id"] for message in messages if message["role"] == "tool"}
    for message in messages:
        for call in message.get("tool_calls", ()):
            if call["id"] not in answered:
                raise RequestError(
                    f"input: the function_call {shown(call['id'])} has no function_call_output", param="input"
                )


def wire_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools in the chat's wire form. Raises RequestError."""
    result: list[dict] = []
    names: set[str] = set()
    for i, tool in enumerate(tools):
        place = f"tools[{i}]"
        if tool.get("type") != "function":
            raise _wrong(place, f"is of type {shown(tool.get('type'))}: only type function is served; leave it out")
        function: dict[str, Any] = {"name": _string(tool, "name", place)}
        if function["name"] in names:
            raise _wrong(f"{place}.name", f"is {shown(function['name'])}, as another tool's is")
        if not isinstance(tool.get("description") or "", str):
            raise _wrong(f"{place}.description", "must be text")
        if not isinstance(tool.get("parameters") or {}, dict):
            raise _wrong(f"{place}.parameters", "must be an object")
        function |= {"description": tool.get("description") or "", "parameters": tool.get("parameters") or {}}
        if not isinstance(strict := tool.get("strict"), bool | None):
            raise _wrong(f"{place}.strict", f"is {shown(strict)}; true or false is expected")
        if strict:
            function["strict"] = True
        names.add(function["name"])
        result.append({"type": "function", "function": function})
    return result


PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


class OutputItems:
    """An answer's events as output items, of which one is open at a time, and as the events of their stream."""

    def __init__(self) -> None:
        self.items: list[dict] = []
        self._open: dict | None = None
        self._pieces: list[str] = []  # of the open one's text or arguments

    def of(self, event: Event) -> list[dict]:
        match event:
            case Text(text):
                begin = self._enter("message", role="assistant", content=[])
                self._pieces.append(text)
                return [*begin, self._part_event("response.output_text.delta", delta=text, logprobs=[])]
            case Thought(text):
                begin = self._enter("reasoning", summary=[], content=[])
                self._pieces.append(text)
                return [*begin, self._part_event("response.reasoning_text.delta", delta=text)]
            case CallStart(_, id, name):
                return self._enter("function_call", call_id=id, name=name, arguments="")
            case CallArguments(_, text):
                self._pieces.append(text)
                return [self._call_event("response.function_call_arguments.delta", delta=text)]
            case CallEnd():
                return self._close(complete=True)
        raise TypeError(f"unknown event {event!r}")

    def end(self, complete: bool) -> list[dict]:
        """Nothing follows. A call that is still open is incomplete whatever ended it."""
        return self._close(complete and self._open is not None and self._open["type"] != "function_call")

    def _enter(self, kind: str, **fields: Any) -> list[dict]:
        if self._open is not None and self._open["type"] == kind != "function_call":
            return []
        events = self.end(complete=True)
        self._open = {"id": f"{PREFIXES[kind]}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **fields}
        self._pieces = []
        self.items.append(self._open)
        events.append(self._event("response.output_item.added", item=dict(self._open)))
        if kind in PARTS:
            events.append(self._part_event("response.content_part.added", part=_part(kind, "")))
        return events

    def _close(self, complete: bool) -> list[dict]:
        if self._open is None:
            return []
        item, text = self._open, "".join(self._pieces)
        item["status"] = "completed" if complete else "incomplete"
        if (kind := item["type"]) == "function_call":
            item["arguments"] = text
            events = [self._call_event("response.function_call_arguments.done", name=item["name"], arguments=text)]
        else:
            part = _part(kind, text)
            item["content"] = [part]
            extra = {"logprobs": []} if kind == "message" else {}
            events = [
                self._part_event(f"response.{PARTS[kind]}.done", text=text, **extra),
                self._part_event("response.content_part.done", part=part),
            ]
        events.append(self._event("response.output_item.done", item=item))
        self._open = None
        return events

    def _event(self, name: str, /, **fields: Any) -> dict:
        return {"type": name, "output_index": len(self.items) - 1, **fields}

    def _call_event(self, name: str, /, **fields: Any) -> dict:
        return {**self._event(name), "item_id": self._open["id"], **fields}

    def _part_event(self, name: str, /, **fields: Any) -> dict:
        return {**self._call_event(name), "content_index": 0, **fields}


def _part(kind: str, text: str) -> dict:
    if kind == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}
