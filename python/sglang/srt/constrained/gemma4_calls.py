"""Calls of given functions as a grammar, in the marks of Gemma 4: `<|tool_call>call:NAME{...}<tool_call|>`."""

from dataclasses import dataclass
from typing import Any

from sglang.srt.constrained.gemma4_schema import SchemaGrammar
from sglang.srt.constrained.grammar import GrammarError
from sglang.srt.constrained.lark import (
    AnyTokenBut,
    Literal,
    Node,
    Repeat,
    Rule,
    Token,
    can_end,
    choice,
    ending_rules,
    lark,
    optional,
    sequence,
)

MAX_GRAMMAR_CHARS = 1 << 20


@dataclass(frozen=True)
class Function:
    """`parameters`: its JSON schema; None: any object is taken. `place`: where that was given, for messages."""

    name: str
    parameters: dict[str, Any] | bool | None
    place: str


@dataclass(frozen=True)
class CallMarks:
    """Token ids: around a call, around a string in it, and what ends a turn with calls."""

    begin: int
    end: int
    quote: int
    result: int


def call_grammar(functions: list[Function], marks: CallMarks, *, many: bool, free: bool) -> str:
    """Lark for an output of calls alone, one or with `many` more of them; with `free`, for text of any kind in which
    each call is one of these. Raises GrammarError naming the place in a schema that is wrong."""
    schemas = SchemaGrammar(marks.quote)
    calls: list[Node] = []
    for function in functions:
        schema = {"type": "object"} if function.parameters is None else function.parameters
        arguments = schemas.arguments(schema, function.place)
        calls.append(sequence(Literal(f"call:{function.name}"), arguments))
    try:
        ending = ending_rules(schemas.rules)
        for function, call in zip(functions, calls, strict=True):
            if not can_end(call, ending):
                raise GrammarError(f"{function.place}: no arguments satisfy it")
        schemas.rules["call"] = sequence(Token(marks.begin), choice(*calls), Token(marks.end))
        call = Rule("call")
        if free:
            start: Node = Repeat(choice(AnyTokenBut(marks.begin), call))
        else:
            start = sequence(Repeat(call, 1, None) if many else call, optional(Token(marks.result)))
        text = lark(start, schemas.rules)
    except RecursionError:
        raise GrammarError("the tools' schemas are nested too deeply") from None
    if text is None or len(text) > MAX_GRAMMAR_CHARS:
        raise GrammarError(f"the tools' schemas make a grammar of {len(text or '')} characters, at most "
                           f"{MAX_GRAMMAR_CHARS} are possible")  # fmt: skip
    return text
