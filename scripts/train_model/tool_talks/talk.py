"""What a talk with tools, thoughts or JSON is, and how it is written: as training text and as API messages.

`spans` writes what the chat template makes of `messages`, piece by piece and many times faster; a test holds the two
equal. Pieces carry loss weights: only what the model writes itself counts. This file knows no kind of talk.
"""

from dataclasses import dataclass, field
from typing import Any

QUOTE = '<|"|>'
Span = tuple[str, float]  # text, loss weight of its tokens
Call = tuple[str, dict[str, Any]]  # name, arguments


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    properties: dict[str, dict]  # parameter name -> type, and maybe description, enum, items
    required: tuple[str, ...]

    def declaration(self) -> dict:
        """As OpenAI's API takes it."""
        parameters = {"type": "object", "properties": self.properties, "required": list(self.required)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Step:
    """Calls made together, and what they returned; `thought` is only said where thinking is on."""

    thought: str
    calls: list[Call]
    results: list[str]


@dataclass(frozen=True)
class Turn:
    question: str
    steps: list[Step]
    thought: str  # before the answer
    answer: str


@dataclass(frozen=True)
class Talk:
    turns: list[Turn]
    tools: list[Tool] = field(default_factory=list)
    thinking: bool = False
    system: str = ""


def value_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return QUOTE + value + QUOTE
    if isinstance(value, list):
        return "[" + ",".join(map(value_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{value_text(value[key])}" for key in in_order(value)) + "}"
    return str(value)


def in_order(mapping: dict) -> list[str]:
    return sorted(mapping, key=str.lower)


def schema_text(schema: dict) -> str:
    """One parameter's schema: description, enum, items, type in capitals."""
    parts = [f"description:{QUOTE}{schema['description']}{QUOTE}"] if schema.get("description") else []
    if schema.get("enum"):
        parts.append("enum:" + value_text(schema["enum"]))
    if schema.get("items"):
        parts.append("items:" + schema_text(schema["items"]))
    return "{" + ",".join([*parts, f"type:{QUOTE}{schema['type'].upper()}{QUOTE}"]) + "}"


def declaration_text(tool: Tool) -> str:
    properties = ",".join(f"{name}:{schema_text(tool.properties[name])}" for name in in_order(tool.properties))
    parts = [f"properties:{{{properties}}}"] if tool.properties else []
    if tool.required:
        parts.append("required:" + value_text(list(tool.required)))
    parameters = ",".join([*parts, f"type:{QUOTE}OBJECT{QUOTE}"])
    head = f"<|tool>declaration:{tool.name}{{description:{QUOTE}{tool.description}{QUOTE}"
    return f"{head},parameters:{{{parameters}}}}}<tool|>"


def call_text(call: Call) -> str:
    return f"<|tool_call>call:{call[0]}{value_text(call[1])}<tool_call|>"


def result_text(name: str, result: str) -> str:
    return f"<|tool_response>response:{name}{{value:{QUOTE}{result}{QUOTE}}}<tool_response|>"


def thought_text(thought: str) -> str:
    return f"<|channel>thought\n{thought}\n<channel|>"


def head_text(talk: Talk) -> str:
    """<bos> and the system turn, where there is one."""
    if not (talk.thinking or talk.system or talk.tools):
        return "<bos>"
    think = "<|think|>\n" if talk.thinking else ""
    return f"<bos><|turn>system\n{think}{talk.system}{''.join(map(declaration_text, talk.tools))}<turn|>\n"


def spans(talk: Talk, question_weight: float) -> list[Span]:
    """Where thinking is on, turns before the last are history: the template drops their thoughts, so they teach nothing."""
    out: list[Span] = [(head_text(talk), 0.0)]
    for turn in talk.turns:
        last = turn is talk.turns[-1]
        weight = 1.0 if last or not talk.thinking else 0.0
        thinks = talk.thinking and last
        out += [("<|turn>user\n", 0.0), (turn.question, question_weight), ("<turn|>\n<|turn>model\n", 0.0)]
        for step in turn.steps:
            thought = thought_text(step.thought) if thinks else ""
            # The model writes the mark of the first result too: it ends its part there.
            out.append((thought + "".join(map(call_text, step.calls)) + "<|tool_response>", weight))
            results = "".join(
                result_text(call[0], result) for call, result in zip(step.calls, step.results, strict=True)
            )
            out.append((results.removeprefix("<|tool_response>"), 0.0))
        thought = thought_text(turn.thought) if thinks else ""
        out += [(thought + turn.answer + "<turn|>", weight), ("\n", 0.0)]
    return out


def messages(talk: Talk) -> list[dict]:
    """The whole talk as a client would send it, thoughts of the last turn included."""
    out = [{"role": "system", "content": talk.system}] if talk.system else []
    for turn in talk.turns:
        thinks = talk.thinking and turn is talk.turns[-1]
        out.append({"role": "user", "content": turn.question})
        for step in turn.steps:
            calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in step.calls]
            message = {"role": "assistant", "content": "", "tool_calls": calls}
            out.append(message | ({"reasoning_content": step.thought} if thinks else {}))
            out += [
                {"role": "tool", "name": call[0], "content": result}
                for call, result in zip(step.calls, step.results, strict=True)
            ]
        out.append(
            {"role": "assistant", "content": turn.answer} | ({"reasoning_content": turn.thought} if thinks else {})
        )
    return out
