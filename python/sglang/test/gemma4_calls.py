"""Calls as Gemma 4's chat template writes them, for tests of parsers and grammars."""

from typing import Any

from sglang.srt.parser.events import Mark, Piece
from sglang.srt.parser.gemma4 import CALL, CALL_END, STRING
from sglang.srt.utils.tokenizer import Tokenizer


def call(name: str, arguments: dict[str, Any]) -> list[Piece]:
    return [CALL, f"call:{name}", *value(arguments), CALL_END]


def value(value_: Any) -> list[Piece]:
    """A value of a call's arguments."""
    if isinstance(value_, str):
        return [STRING, value_, STRING]
    if isinstance(value_, dict):
        pairs = sorted(value_.items(), key=lambda pair: pair[0].lower())
        return ["{", *_listed([[f"{name}:", *value(part)] for name, part in pairs]), "}"]
    if isinstance(value_, list):
        return ["[", *_listed([value(part) for part in value_]), "]"]
    if value_ is None or isinstance(value_, bool):
        return [{None: "null", True: "true", False: "false"}[value_]]
    return [str(value_)]


def _listed(parts: list[list[Piece]]) -> list[Piece]:
    return [piece for part in parts for piece in (",", *part)][1:]


def text_of(pieces: list[Piece]) -> str:
    return "".join(p.text if isinstance(p, Mark) else p for p in pieces)


def ids_of(pieces: list[Piece], tokenizer: Tokenizer) -> list[int]:
    """Letters that look like a mark are letters."""
    hide = tokenizer.special_text.hide
    return tokenizer.encode("".join(p.text if isinstance(p, Mark) else hide(p) for p in pieces), False)
