"""Request bodies of the Anthropic-compatible endpoints, and a turn's messages and tools out of them.

Blocks of a content stay dicts until here: each is read by its type, and what is wrong is named by its place.
"""

import re
from typing import Any, Literal

import msgspec

from sglang.srt.entrypoints.checks import unserved_fields
from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.shown import shown

NOT_SERVED = ("compaction", "container", "mcp_servers")
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


class MessageParam(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[dict[str, Any]]


class Tool(msgspec.Struct, kw_only=True):
    name: str
    type: str | None = None  # "custom", or a tool that Anthropic's servers run
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None  # its calls follow input_schema


class ToolChoice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "none", "any", "tool"]
    name: str | None = None  # that of "tool"
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None  # after which a thought is closed


class OutputConfig(msgspec.Struct, kw_only=True):
    effort: Any = None  # of no effect
    format: Any = None  # json_schema


class CountTokensRequest(unserved_fields(*NOT_SERVED), kw_only=True, forbid_unknown_fields=True):
    """What a prompt is made of. null means: not given."""

    model: str
    messages: list[MessageParam]
    system: str | list[dict[str, Any]] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Any = None  # the older name of output_config.format
    thread: Any = None  # state that a server keeps of a conversation; refused so that clients send all of it
    chat_template_kwargs: dict[str, Any] | None = None  # SGLang's own

    # Of no effect
    betas: Any = None
    billing_policy: Any = None
    diagnostics: Any = None
    fallbacks: Any = None
    fallback_credit_token: Any = None
    inference_geo: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
    metadata: Any = None
    service_tier: Any = None
    cache_control: Any = None
    context_management: Any = None


class MessagesRequest(CountTokensRequest, kw_only=True, forbid_unknown_fields=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    # SGLang's own
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    custom_params: dict | None = None
    cache_salt: str | None = None


Placed = tuple[str, dict[str, Any]]  # where a block stands, and the block


def wire_messages(body: CountTokensRequest) -> list[dict[str, Any]]:
    """The messages in OpenAI's wire form, as a Turn takes them. Raises RequestError."""
    if body.thread is not None:
        raise RequestError(
            "thread is not supported: no conversation is kept here; send all of it, without thread",
            param="thread",
            details={"error_code": "thread_unsupported_request", "unsupported": []},
        )
    result: list[dict[str, Any]] = []
    if body.system:
        result.append({"role": "system", "content": _joined(_texts(body.system, "system", "system"))})
    waiting: dict[str, str] = {}  # calls of the turn before: id -> place
    for role, blocks in _turns(body.messages):
        if role == "assistant":
            result.append(_assistant_message(blocks, waiting))
            continue
        result += _user_messages(blocks, waiting)
        for id, place in waiting.items():
            raise _wrong(f"{place}.id", f"is {shown(id)}, but no tool_result in the next message has that id")
    return result


def _turns(messages: list[MessageParam]) -> list[tuple[str, list[Placed]]]:
    """By role; messages of one role that follow each other are one turn."""
    turns: list[tuple[str, list[Placed]]] = []
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        if message.role not in ("user", "assistant"):
            raise _wrong(f"{place}.role", f"is {shown(message.role)}; user or assistant is expected, a system prompt "
                                          "is given as `system`")  # fmt: skip
        if not message.content:
            raise _wrong(f"{place}.content", "is empty")
        if not turns or turns[-1][0] != message.role:
            turns.append((message.role, []))
        turns[-1][1].extend(_placed(message.content, f"{place}.content"))
    return turns


def _placed(content: str | list[dict], place: str) -> list[Placed]:
    if isinstance(content, str):
        return [(place, {"type": "text", "text": content})]
    return [(f"{place}[{k}]", block) for k, block in enumerate(content)]


def _user_messages(blocks: list[Placed], waiting: dict[str, str]) -> list[dict]:
    """Results first: they follow their calls."""
    messages: list[dict] = []
    texts: list[str] = []
    for place, block in blocks:
        if block.get("type") == "tool_result":
            messages.append(_tool_message(place, block, waiting))
        else:
            texts.append(_text(place, block, "text and tool_result"))
    if texts:
        messages.append({"role": "user", "content": _joined(texts)})
    return messages


def _tool_message(place: str, block: dict, waiting: dict[str, str]) -> dict:
    call_id = _string(block, "tool_use_id", place)
    if waiting.pop(call_id, None) is None:
        raise _wrong(f"{place}.tool_use_id", f"is {shown(call_id)}, but no tool_use before it has that id")
    content = block.get("content")
    texts = [] if content is None else _texts(content, f"{place}.content", "a tool_result")
    text = " ".join(texts)
    # A tool's answer may be an object; the failure is then told apart from a result that says the same.
    return {"role": "tool", "tool_call_id": call_id, "content": {"error": text} if block.get("is_error") else text}


def _assistant_message(blocks: list[Placed], waiting: dict[str, str]) -> dict:
    texts, thoughts, calls = [], [], []
    for place, block in blocks:
        match block.get("type"):
            case "thinking":
                thoughts.append(_string(block, "thinking", place))
            case "redacted_thinking":
                pass  # only its maker can read it
            case "tool_use":
                call_id, name = _string(block, "id", place), _string(block, "name", place)
                if not isinstance(block.get("input"), dict):
                    raise _wrong(f"{place}.input", "must be an object")
                waiting[call_id] = place
                function = {"name": name, "arguments": block["input"]}
                calls.append({"id": call_id, "type": "function", "function": function})
            case _:
                texts.append(_text(place, block, "text, thinking and tool_use"))
    message: dict[str, Any] = {"role": "assistant", "content": _joined(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _texts(content: Any, place: str, where: str) -> list[str]:
    """Of a text, or of a list of text blocks."""
    if not isinstance(content, str) and not (isinstance(content, list) and all(isinstance(b, dict) for b in content)):
        raise _wrong(place, "must be text or a list of blocks")
    return [_text(p, block, f"text (in {where})") for p, block in _placed(content, place)]


def _text(place: str, block: dict, served: str) -> str:
    if (kind := block.get("type")) != "text":
        raise RequestError(f"{place}: a block of type {shown(kind)} is not served here, only {served}", param=place)
    return _string(block, "text", place)


def _joined(texts: list[str]) -> str | list[dict]:
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _string(block: dict, name: str, place: str) -> str:
    if not isinstance(block.get(name), str):
        raise _wrong(f"{place}.{name}", "must be text")
    return block[name]


def _wrong(place: str, problem: str) -> RequestError:
    return RequestError(f"{place} {problem}", param=place)


def wire_tools(tools: list[Tool]) -> list[dict[str, Any]]:
    """Tools in OpenAI's wire form. Raises RequestError."""
    names: set[str] = set()
    result = []
    for i, tool in enumerate(tools):
        place = f"tools[{i}]"
        if tool.type not in (None, "custom"):
            raise _wrong(place, f"is of type {shown(tool.type)}: tools that the server runs are not served; leave it "
                                "out, or describe a tool of your own with input_schema")  # fmt: skip
        if not TOOL_NAME.fullmatch(tool.name):
            raise _wrong(f"{place}.name", f"is {shown(tool.name)}; 1 to 128 letters, digits, _ and - are possible")
        if tool.name in names:
            raise _wrong(f"{place}.name", f"is {shown(tool.name)}, as another tool's is")
        if tool.input_schema is None:
            raise _wrong(f"{place}.input_schema", "is missing")
        names.add(tool.name)
        function: dict[str, Any] = {"name": tool.name, "description": tool.description or "",
                                    "parameters": tool.input_schema}  # fmt: skip
        if tool.strict:
            function["strict"] = True
        result.append({"type": "function", "function": function})
    return result


def wire_tool_choice(body: CountTokensRequest) -> str | dict[str, Any] | None:
    """In OpenAI's wire form. Raises RequestError."""
    choice = body.tool_choice
    if choice is None or choice.type in ("auto", "none"):
        return choice and choice.type
    if not body.tools:
        raise _wrong("tool_choice", f"is of type {choice.type}, but there are no tools")
    if choice.type == "any":
        return "required"
    if choice.name not in [tool.name for tool in body.tools]:
        raise _wrong("tool_choice.name", f"is {shown(choice.name)}, which none of the tools has")
    return {"type": "function", "function": {"name": choice.name}}
