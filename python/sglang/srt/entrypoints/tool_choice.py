"""Which tools a turn may call, and whether it must: `tools` and `tool_choice` of OpenAI's forms, read and checked.

Other APIs translate theirs into these. A tool's function may stand in a `function` object, as in chats, or beside the
type, as in Responses.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from sglang.srt.constrained.gemma4_calls import Function
from sglang.srt.entrypoints.chat_prompt import Turn
from sglang.srt.managers.generation import RequestError
from sglang.srt.parser.gemma4 import NAME
from sglang.srt.utils.shown import shown

MAX_SCHEMA_BYTES = 1 << 18  # of all tools, where a grammar is made of them: half a second of processor time
NO_PARAMETERS = {"type": "object", "properties": {}}
EXPECTED = ('"auto", "none", "required", {"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", '
            "...} is expected")  # fmt: skip


@dataclass
class Tool:
    name: str
    parameters: dict[str, Any]
    strict: bool
    place: str  # of the parameters


@dataclass
class ToolChoice:
    """`tools`: those that may be called, of which `required` is one at least."""

    tools: list[Tool]
    required: bool
    narrowed: bool  # the model is told of more

    @property
    def strict(self) -> bool:
        return any(tool.strict for tool in self.tools)

    def functions(self, all_strict: bool) -> list[Function]:
        """For a grammar; without `all_strict` the others' arguments are only well formed. Raises RequestError."""
        functions = [Function(t.name, t.parameters if t.strict or all_strict else None, t.place) for t in self.tools]
        size = len(msgspec.json.encode([f.parameters for f in functions]))
        if size > MAX_SCHEMA_BYTES:
            raise RequestError(
                f"the tools' parameters have {size} bytes; at most {MAX_SCHEMA_BYTES} can be followed, with "
                'tool_choice "auto" and without strict any number is possible',
                param="tools",
            )
        return functions


def read_tools(tools: list[dict[str, Any]], schemas_at: str = "function.parameters") -> list[Tool]:
    """`schemas_at`: where in a tool its schema was given. Raises RequestError naming the place of what is wrong."""
    result: list[Tool] = []
    names: set[str] = set()
    for i, tool in enumerate(tools):
        given_place = place = f"tools[{i}]"
        if tool.get("type", "function") != "function":
            raise _wrong(place, f"is of type {shown(tool['type'])}: only type function is served; leave it out")
        function = tool.get("function")
        place = f"{place}.function"
        if not isinstance(function, dict):
            raise _wrong(place, "must be an object with a name")
        name = function.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise _wrong(f"{place}.name", f"is {shown(name)}; 1 to 128 characters are expected, without spaces, "
                                          "quotes, colons or brackets")  # fmt: skip
        if name in names:
            raise _wrong(f"{place}.name", f"is {shown(name)}, as another tool's is")
        names.add(name)
        parameters, strict = function.get("parameters"), function.get("strict")
        if not isinstance(parameters, dict | None):
            raise _wrong(f"{place}.parameters", "must be a JSON schema, which is an object")
        if not isinstance(strict, bool | None):
            raise _wrong(f"{place}.strict", f"is {shown(strict)}; true or false is expected")
        result.append(Tool(name, parameters or NO_PARAMETERS, bool(strict), f"{given_place}.{schemas_at}"))
    return result


def read_tool_choice(turn: Turn, schemas_at: str = "function.parameters") -> ToolChoice | None:
    """None: nothing may be called. Raises RequestError."""
    tools, choice = read_tools(turn.tools or [], schemas_at), turn.tool_choice
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if choice == "none":
        return None
    if choice in (None, "auto"):
        return ToolChoice(tools, False, False) if tools else None
    if kind not in ("required", "function", "allowed_tools") or (kind == "required") != isinstance(choice, str):
        raise _wrong("tool_choice", f"is {shown(choice)}; {EXPECTED}")
    if not tools:
        raise _wrong("tool_choice", f"is {shown(choice)}, but there are no tools")
    if kind == "required":
        return ToolChoice(tools, True, False)
    if kind == "function":
        return ToolChoice([_named(choice, tools, "tool_choice")], True, len(tools) > 1)
    inner = choice.get("allowed_tools", choice)
    mode, listed = (inner.get("mode", "auto"), inner.get("tools")) if isinstance(inner, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
        raise _wrong("tool_choice", "of type allowed_tools has a mode, auto or required, and a list of tools")
    named = [_named(entry, tools, f"tool_choice.tools[{i}]") for i, entry in enumerate(listed)]
    kept = [tool for tool in tools if tool in named]
    return ToolChoice(kept, mode == "required", len(kept) < len(tools))


def _named(entry: Any, tools: list[Tool], place: str) -> Tool:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    for tool in tools:
        if tool.name == name:
            return tool
    raise _wrong(place, f"names the tool {shown(name)}; there are {', '.join(shown(tool.name) for tool in tools)}")


def _wrong(place: str, problem: str) -> RequestError:
    return RequestError(f"{place} {problem}", param=place)
