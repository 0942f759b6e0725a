"""Grammars as trees, and their text in Lark as xgrammar and llguidance read it: special tokens are named by their ids.

What nothing can match is taken out before it is written, and what is left can end: a rule that has to hold itself has
no finite text, and a model would follow it until its limit.
"""

import json
import re
from dataclasses import dataclass

RAW = re.compile(r"[\x7f-\x9f]")  # control characters that JSON leaves as they are
DIGIT_BEHIND = re.compile(r"(?<=[^ -~])(?=[0-9a-fA-F])")


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """A token by its id; no letters match it."""

    id: int


@dataclass(frozen=True, slots=True)
class AnyTokenBut:
    id: int


@dataclass(frozen=True, slots=True)
class Regex:
    """Of what both libraries know: literals, classes, groups, alternatives, repeats. It matches as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class JsonNumber:
    """The numbers of a JSON schema that has nothing but type and bounds."""

    schema: str


@dataclass(frozen=True, slots=True)
class Rule:
    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of them; of none, nothing matches."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: "Node"
    low: int = 0
    high: int | None = None


Node = Literal | Token | AnyTokenBut | Regex | JsonNumber | Rule | Sequence | Choice | Repeat

NEVER = Choice(())
EMPTY = Sequence(())


def sequence(*parts: Node) -> Node:
    kept: list[Node] = []
    for part in parts:
        if isinstance(part, Literal) and kept and isinstance(kept[-1], Literal):
            kept[-1] = Literal(kept[-1].text + part.text)
        elif part != EMPTY:
            kept.append(part)
    return kept[0] if len(kept) == 1 else Sequence(tuple(kept))


def choice(*parts: Node) -> Node:
    return parts[0] if len(parts) == 1 else Choice(parts)


def optional(part: Node) -> Node:
    return Repeat(part, 0, 1)


def lark(start: Node, rules: dict[str, Node]) -> str | None:
    """The text; `rules` are by lower-case names, none is `start`. None where no text matches."""
    ending = ending_rules(rules)
    pruned = _pruned(start, ending)
    if pruned == NEVER:
        return None
    lines = [f"start: {_text(pruned)}"]
    seen: set[str] = set()
    todo = _rule_names(pruned)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            rule = _pruned(rules[name], ending)
            lines.append(f"{name}: {_text(rule)}")
            todo += _rule_names(rule)
    return "\n".join(lines)


def ending_rules(rules: dict[str, Node]) -> set[str]:
    """The rules that some finite text matches."""
    users: dict[str, list[str]] = {}
    for name, node in rules.items():
        for used in _rule_names(node):
            users.setdefault(used, []).append(name)
    ending: set[str] = set()
    todo = list(rules)
    while todo:
        name = todo.pop()
        if name not in ending and can_end(rules[name], ending):
            ending.add(name)
            todo += users.get(name, ())
    return ending


def can_end(node: Node, ending: set[str]) -> bool:
    """Whether some finite text matches, `ending` being the rules of which that is true."""
    match node:
        case Rule(name):
            return name in ending
        case Sequence(parts):
            return all(can_end(part, ending) for part in parts)
        case Choice(parts):
            return any(can_end(part, ending) for part in parts)
        case Repeat(part, low):
            return low == 0 or can_end(part, ending)
    return True


def _pruned(node: Node, ending: set[str]) -> Node:
    if not can_end(node, ending):
        return NEVER
    match node:
        case Sequence(parts):
            return sequence(*(_pruned(part, ending) for part in parts))
        case Choice(parts):
            return choice(*(_pruned(part, ending) for part in parts if can_end(part, ending)))
        case Repeat(part, low, high):
            return Repeat(_pruned(part, ending), low, high) if high != 0 and can_end(part, ending) else EMPTY
    return node


def _rule_names(node: Node) -> list[str]:
    match node:
        case Rule(name):
            return [name]
        case Sequence(parts) | Choice(parts):
            return [name for part in parts for name in _rule_names(part)]
        case Repeat(part):
            return _rule_names(part)
    return []


def _text(node: Node) -> str:
    match node:
        case Literal(text):
            # Where XGrammar writes a character as its number, it takes a digit behind it for one more of the number's.
            pieces = (json.dumps(piece, ensure_ascii=False) for piece in DIGIT_BEHIND.split(text))
            return RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", " ".join(pieces))
        case Token(id):
            return f"<[{id}]>"
        case AnyTokenBut(id):
            return f"<[^{id}]>"
        case Regex(pattern):
            return f"/{pattern}/"
        case JsonNumber(schema):
            return f"%json {schema}"
        case Rule(name):
            return name
        case Sequence(parts):
            return " ".join(map(_text, parts)) if parts else '""'
        case Choice(parts):
            return f"({' | '.join(map(_text, parts))})"
        case Repeat(part, low, high):
            high_text = "" if high is None else high
            many = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((low, high))
            return f"({_text(part)}){many or f'{{{low},{high_text}}}'}"
    raise TypeError(f"unknown node {node!r}")
