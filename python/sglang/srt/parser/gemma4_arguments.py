"""Gemma 4's arguments of a call, `{key:value,...}` with strings between quote tokens, as growing JSON text.

The grammar is the chat template's; models depart from it, so a reader here takes all of it and more: spaces and
newlines, quoted keys, JSON's strings, a string without its opening quote, quotes inside of strings, bare words. It is
one recursive descent, written as generators that wait for the next item, so that where a stream is cut cannot matter.
"""

import json
import re
from collections import deque
from collections.abc import Generator, Iterable


class _Sign:
    """An item that is no character."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


QUOTE = _Sign("QUOTE")  # the token that begins and ends a string
END = _Sign("END")  # nothing of this call follows

Item = str | _Sign
Steps = Generator[None, Item, None]

MAX_DEPTH = 64  # deeper values are taken as words
MAX_KEY = 64  # characters looked ahead for the colon of a key
MAX_AHEAD = 1024  # and for the closing quote of a string that has no opening one
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
SPACE = " \t\r\n"


class ArgumentReader:
    """Reads what follows the opening brace. `done` once the object is closed; the rest is not its own."""

    def __init__(self) -> None:
        self.done = False
        self._out: list[str] = []
        self._ahead: deque[Item] = deque()
        self._steps = self._object(0)
        next(self._steps)

    def push(self, items: Iterable[Item]) -> str:
        """The JSON text that items add, END the last of them. Items behind the end stay unread in the iterator."""
        for item in items:
            try:
                self._steps.send(item)
            except StopIteration:
                self.done = True
                break
        text = "".join(self._out)
        self._out.clear()
        return text

    # ---- items -------------------------------------------------------------------------------------------------

    def _peek(self, at: int = 0) -> Generator[None, Item, Item]:
        while len(self._ahead) <= at:
            self._ahead.append((yield))
        return self._ahead[at]

    def _take(self) -> Generator[None, Item, Item]:
        item = yield from self._peek()
        if item is not END:  # it ends every container that is open
            self._ahead.popleft()
        return item

    def _after_space(self, at: int = 0) -> Generator[None, Item, int]:
        """The first place from `at` on that is no space."""
        while _is_space((yield from self._peek(at))):
            at += 1
        return at

    def _skip(self, count: int) -> None:
        for _ in range(count):
            self._ahead.popleft()

    # ---- the grammar -------------------------------------------------------------------------------------------

    def _object(self, depth: int) -> Steps:
        self._out.append("{")
        separator = ""
        while True:
            yield from self._skip_separators()
            if (yield from self._take_if("}")):
                break
            key = yield from self._key()
            self._out.append(f"{separator}{_json(key)}: ")
            separator = ", "
            yield from self._value(depth, "}")
        self._out.append("}")

    def _array(self, depth: int) -> Steps:
        self._out.append("[")
        separator = ""
        while True:
            yield from self._skip_separators()
            if (yield from self._take_if("]")):
                break
            self._out.append(separator)
            separator = ", "
            yield from self._value(depth, "]")
        self._out.append("]")

    def _skip_separators(self) -> Steps:
        while True:
            item = yield from self._peek()
            if item != "," and not _is_space(item):
                return
            self._skip(1)

    def _take_if(self, closing: str) -> Generator[None, Item, bool]:
        item = yield from self._peek()
        if item is END:
            return True
        if item == closing:
            self._skip(1)
            return True
        return False

    def _key(self) -> Generator[None, Item, str]:
        """A key and its colon."""
        first = yield from self._take()
        text = "" if first is QUOTE or first == '"' else first
        while True:
            item = yield from self._peek()
            if item is END or item == "}":  # a key without a value, which will be null
                break
            self._skip(1)
            if item == ":":
                break
            if item is not QUOTE and not (item == '"' and first == '"'):
                text += item
        return _unquoted(text.strip(SPACE))

    def _value(self, depth: int, closing: str) -> Steps:
        """One value; `closing` ends what it is in."""
        self._skip((yield from self._after_space()))
        item = yield from self._peek()
        if item in ("{", "[") and depth < MAX_DEPTH:
            self._skip(1)
            yield from (self._object if item == "{" else self._array)(depth + 1)
        elif item is QUOTE:
            self._skip(1)
            yield from self._string(closing)
        elif item == '"':
            yield from self._json_string(closing)
        else:
            yield from self._bare(closing, "")

    def _string(self, closing: str) -> Steps:
        """A string behind its opening quote; it is passed on as it grows."""
        self._out.append('"')
        while True:
            item = yield from self._take()
            if item is END or (item is QUOTE and (yield from self._is_end_of_string(closing))):
                break
            self._out.append('\\"' if item is QUOTE else _json(item)[1:-1])
        self._out.append('"')

    def _is_end_of_string(self, closing: str) -> Generator[None, Item, bool]:
        """Whether the quote just taken ends the string: what follows must be able to follow a value. Else the model
        meant a quotation mark of the text itself."""
        at = yield from self._after_space()
        item = yield from self._peek(at)
        if item is END or item == closing:
            return True
        if item != ",":
            return False
        at = yield from self._after_space(at + 1)
        item = yield from self._peek(at)
        if item is END or item is QUOTE or item == closing or item == '"':
            return True
        if closing == "]":
            return item in "{[-0123456789tfnTFN"
        return (yield from self._is_key(at))

    def _is_key(self, at: int) -> Generator[None, Item, bool]:
        """Whether a bare key and its colon begin there."""
        for i in range(at, at + MAX_KEY):
            item = yield from self._peek(i)
            if item == ":":
                return i > at
            if not isinstance(item, str) or item in '{}[],"\n':
                return False
        return False

    def _json_string(self, closing: str) -> Steps:
        """A string as JSON writes it; whole, since only its end shows that it is one."""
        raw = '"'
        self._skip(1)
        while True:
            item = yield from self._take()
            if item is END:
                break
            raw += '"' if item is QUOTE else item
            if item == "\\":
                follower = yield from self._take()
                raw += follower if isinstance(follower, str) else ""
            elif item == '"':
                at = yield from self._after_space()
                if (yield from self._peek(at)) in (",", closing, END):
                    break
                yield from self._bare(closing, raw)
                return
        try:
            text = json.loads(raw, strict=False)
        except ValueError:
            text = raw.strip('"')
        self._out.append(_json(text))

    def _bare(self, closing: str, text: str) -> Steps:
        """A value without quotes, behind `text`: a number, a word of JSON, or a string that lost them."""
        while True:
            item = yield from self._peek()
            if item is END or item == closing:
                break
            if item == ",":
                more = (yield from self._to_lost_quote()) if closing == "}" else 0
                if not more:
                    break
                text += "".join(self._ahead.popleft() for _ in range(more))
                continue
            self._skip(1)
            if item is QUOTE:  # only its opening quote is missing
                self._out.append(_json(text))
                return
            text += item
        text = text.strip(SPACE)
        if NUMBER.fullmatch(text):
            self._out.append(text)
        else:
            self._out.append(WORDS.get(text) or _json(_unquoted(text)) if text else "null")

    def _to_lost_quote(self) -> Generator[None, Item, int]:
        """How many items from the comma ahead on belong to a string that lost its opening quote: a quote comes before
        any key. 0 if none do."""
        at = yield from self._after_space(1)
        if (yield from self._peek(at)) is QUOTE:  # that of a quoted key
            return 0
        for i in range(at, at + MAX_AHEAD):
            item = yield from self._peek(i)
            if item is QUOTE:
                return i
            if item is END or item in ":{}[]":
                break
        return 0


def _is_space(item: Item) -> bool:
    return isinstance(item, str) and item in SPACE


def _unquoted(text: str) -> str:
    """Without Python's quotes, which models write now and then."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == "'" else text


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
