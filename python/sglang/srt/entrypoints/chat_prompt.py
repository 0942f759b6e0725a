"""From a turn of a conversation to its prompt: messages of OpenAI's wire form become what templates are written for.

On the wire a call's arguments are JSON text, a tool's answer names its call by id, and content may be a list of parts.
Templates read arguments as objects, and each reads names and lists its own way (utils/chat_template.py). No manager
and no event loop here: one function of the request and the template.
"""

import json
from typing import Any

import msgspec

from sglang.srt.entrypoints.tool_schemas import flat_tools
from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.chat_template import ChatTemplate
from sglang.srt.utils.shown import shown
from sglang.srt.utils.special_text import SpecialText

ROLES = ("system", "developer", "user", "assistant", "tool")
RENDER_NAMES = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
TEXT_PARTS = ("text", "input_text")
UNTRUSTED = ("user", "tool")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # none: the model does not think


class Turn(msgspec.Struct, kw_only=True):
    """What is asked of the model, in any API: messages and tools in OpenAI's wire form. null means: not given."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is told of and may call."""
        return self.tools if self.tools and self.tool_choice != "none" else None


def chat_prompt(
    turn: Turn, template: ChatTemplate, variables: dict[str, Any], special: SpecialText | None = None
) -> str:
    """The prompt's text; `variables` are the template's, under those of the request. `special` hides special tokens in
    what is not trusted; without it they are what they look like. Raises RequestError."""
    variables = template_variables(turn, variables)
    if taken := set(variables) & set(RENDER_NAMES):
        raise RequestError(f"chat_template_kwargs must not hold {min(taken)!r}", param="chat_template_kwargs")
    messages, tools = template_messages(turn.messages, template), turn.offered_tools
    try:
        if tools is not None and not template.writes_whole_schemas:
            tools = flat_tools(tools)
        if special is not None:
            messages, tools = [_hide(message, special) for message in messages], special.hide(tools)
    except RecursionError as e:
        raise RequestError("the messages or tools are nested too deeply", param="messages") from e
    add_generation_prompt = turn.add_generation_prompt is not False
    begun = ""
    if turn.continue_final_message:
        if turn.add_generation_prompt:
            raise RequestError(
                "add_generation_prompt contradicts continue_final_message", param="add_generation_prompt"
            )
        begun = take_begun_answer(messages, template)
        add_generation_prompt = True  # of the turn that the message begins
    check_results(messages, add_generation_prompt)
    if add_generation_prompt and template.writes_content_after_results:
        messages = keep_turn_open(messages)
    try:
        return template.render(messages, tools, add_generation_prompt, variables) + begun
    except ValueError as e:
        raise RequestError(str(e) if special is None else special.show(str(e)), param="messages") from e


def template_variables(turn: Turn, defaults: dict[str, Any]) -> dict[str, Any]:
    """The template's, `defaults` being the server's: an effort outranks those, and is outranked by what the request
    itself gives. Raises RequestError."""
    variables, effort = dict(defaults), turn.reasoning_effort
    if effort is not None:
        if effort not in EFFORTS:
            raise RequestError(
                f"the reasoning effort is {shown(effort)}; one of {', '.join(EFFORTS)} is expected",
                param="reasoning_effort",
            )
        variables |= {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return variables | (turn.chat_template_kwargs or {})


def template_messages(messages: list[dict[str, Any]], template: ChatTemplate) -> list[dict[str, Any]]:
    """Messages as templates expect them. Raises RequestError naming the place of what is wrong."""
    if not messages:
        raise RequestError("messages is empty", param="messages")
    names: dict[str, str] = {}  # of the functions called so far, by the call's id
    result = []
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        given = message.get("role")
        role = given.lower() if isinstance(given, str) else given
        if role not in ROLES:
            raise _wrong(f"{place}.role", f"is {given!r:.80}; one of {', '.join(ROLES)} is expected")
        # A client that sends an answer back may send its empty fields too; templates ask whether a field is there.
        clean = {k: v for k, v in message.items() if v is not None} | {"role": role}
        if role == "assistant":
            _take_thought(clean, place)
        clean["content"] = _content(message.get("content"), role, f"{place}.content", template)
        if "tool_calls" in clean:
            clean["tool_calls"] = _calls(clean["tool_calls"], f"{place}.tool_calls")
            names |= {call["id"]: call["function"]["name"] for call in clean["tool_calls"] if "id" in call}
        if not isinstance(call_id := clean.get("tool_call_id", ""), str):
            raise _wrong(f"{place}.tool_call_id", "must be text")
        if role == "tool" and "name" not in clean and call_id in names:
            clean["name"] = names[call_id]
        result.append(clean)
    return result


def check_results(messages: list[dict[str, Any]], answer_follows: bool) -> None:
    """Results follow their calls, and each call has one before anything else is said. Templates leave out what stands
    elsewhere, or have the model make it up. Raises RequestError."""
    called: set[str | None] = set()  # ids of the calls that may be answered here, None for one without
    waiting: dict[str | int, str] = {}  # those that have not been: id, or a number, -> place
    for i, message in enumerate([*messages, {"role": "end"}] if answer_follows else messages):
        if message["role"] == "tool":
            id = message.get("tool_call_id")
            if not called:
                raise _wrong(f"messages[{i}]", "is a tool's result, but no call stands before it: the assistant "
                                               "message with its tool_calls is missing")  # fmt: skip
            if id is not None and id not in called and None not in called:
                ids = ", ".join(shown(known) for known in sorted(called))
                raise _wrong(f"messages[{i}].tool_call_id", f"is {shown(id)}, but the calls before it are {ids}")
            waiting.pop(next(iter(waiting), None) if id is None or None in called else id, None)
            continue
        if waiting:
            id, place = next(iter(waiting.items()))
            raise _wrong(place, f"({shown(id)}) has no result: a tool message with its tool_call_id must follow")
        calls = message.get("tool_calls") or []
        called = {call.get("id") for call in calls}
        answered = message.get("tool_responses")  # in Gemma's own form
        waiting = (
            {} if answered else {call.get("id", k): f"messages[{i}].tool_calls[{k}]" for k, call in enumerate(calls)}
        )


def _take_thought(message: dict[str, Any], place: str) -> None:
    """What the model thought comes back by either of two names; templates know the longer one."""
    for name in ("reasoning", "reasoning_content"):
        if not isinstance(message.get(name, ""), str):
            raise _wrong(f"{place}.{name}", "must be text")
    thought = message.pop("reasoning", "")
    if thought and not message.get("reasoning_content"):
        message["reasoning_content"] = thought


def _hide(message: dict[str, Any], special: SpecialText) -> dict[str, Any]:
    """Special tokens in what users and tools wrote, and in a call's arguments, are their letters only. The answers of
    the model and the words of the system may hold marks."""
    if message["role"] in UNTRUSTED:
        return special.hide(message)
    return message | {"tool_calls": special.hide(message["tool_calls"])} if "tool_calls" in message else message


def _wrong(place: str, problem: str) -> RequestError:
    return RequestError(f"{place} {problem}", param=place)


def _content(content: Any, role: str, place: str, template: ChatTemplate) -> str | list | dict:
    if content is None:
        if role not in ("assistant", "tool"):
            raise _wrong(place, "is missing")
        return ""
    if role == "tool" and not isinstance(content, str | dict) and not _are_parts(content):
        return json.dumps(content, ensure_ascii=False)
    if isinstance(content, list):
        texts = [_part_text(part, f"{place}[{k}]", role) for k, part in enumerate(content)]
        if role in template.list_roles:
            return [{"type": "text", "text": text} for text in texts]
        return " ".join(texts)  # as upstream does, for tools' answers whatever the template
    if isinstance(content, dict) and role == "tool":
        return content if template.reads_mappings else json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        raise _wrong(place, "must be text or a list of parts")
    return content


def _are_parts(content: Any) -> bool:
    """Texts and parts, not some other list that a tool has returned."""
    if not isinstance(content, list):
        return False
    return all(isinstance(entry, str) or (isinstance(entry, dict) and "type" in entry) for entry in content)


def _part_text(part: Any, place: str, role: str) -> str:
    if isinstance(part, str) and role == "tool":
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in TEXT_PARTS:
        raise RequestError(f"{place}: only parts of type text are supported, not {kind!r:.80}", param=place)
    if not isinstance(part.get("text"), str):
        raise _wrong(f"{place}.text", "is missing")
    return part["text"]


def _calls(calls: Any, place: str) -> list[dict]:
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise _wrong(place, "must be a list of objects")
    return [_call(call, f"{place}[{k}]") for k, call in enumerate(calls)]


def _call(call: dict, place: str) -> dict:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _wrong(f"{place}.function.name", "is missing")
    if not isinstance(call.get("id", ""), str):
        raise _wrong(f"{place}.id", "must be text")
    arguments = _arguments(function.get("arguments"), f"{place}.function.arguments")
    return call | {"function": function | {"arguments": arguments}}


def _arguments(value: Any, place: str) -> dict:
    """A call's arguments as an object; on the wire they are JSON text, which may be empty."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_no_constant)
        except ValueError as e:
            raise _wrong(place, f"is not JSON: {e!s:.80}") from e
        except RecursionError as e:
            raise _wrong(place, "is nested too deeply") from e
    if not isinstance(value, dict):
        raise _wrong(place, f"must be a JSON object, not {type(value).__name__}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def take_begun_answer(messages: list[dict[str, Any]], template: ChatTemplate) -> str:
    """Take away the last message, an answer that is to be continued; its text, which follows the prompt as it is.

    Templates trim what they write, close it, and cut thoughts out: none of that may happen to a beginning.
    """
    last, place = messages[-1], f"messages[{len(messages) - 1}]"
    if last["role"] != "assistant":
        raise RequestError("continue_final_message needs an assistant message at the end", param="messages")
    for field in ("tool_calls", "reasoning", "reasoning_content"):
        if last.get(field):
            raise _wrong(
                f"{place}.{field}",
                "can't be continued: with continue_final_message the last message has content alone, with a thought "
                "written out in it as the model writes it",
            )
    messages.pop()
    content = last["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def keep_turn_open(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A running tool loop in the order in which the model spoke, for a template that writes content after results.

    Such a template ends the model's turn behind that content although an answer is still to come. So a message with
    content beside its calls becomes two, which it writes as one turn. Loops that have ended stay as they are.
    """
    if not messages or messages[-1]["role"] != "tool":
        return messages
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    result = messages[: last_user + 1]
    for message in messages[last_user + 1 :]:
        if message["role"] == "assistant" and message.get("tool_calls") and message["content"]:
            result.append({k: v for k, v in message.items() if k != "tool_calls"})
            message = {"role": "assistant", "content": "", "tool_calls": message["tool_calls"]}
        result.append(message)
    return result
