"""Gemma 4's output as events: thoughts between channel marks, calls between their own, everything else the answer.

    <|channel>thought\\n ... \\n<channel|>answer        <|tool_call>call:NAME{arguments}<tool_call|>

Marks are special tokens, so an answer may speak of them in plain text. What a mark does depends on the state alone
(NEXT); text that may yet turn out to be of no account (spaces before a call, the newline that ends a thought, a label)
is held back until it is known.
"""

import enum
import re
import uuid
from collections.abc import Iterable, Iterator

from sglang.srt.constrained.gemma4_calls import CallMarks, Function, call_grammar
from sglang.srt.constrained.thoughts import ThoughtTracker, thought_start
from sglang.srt.managers.io_struct import ThoughtMarks
from sglang.srt.parser.events import CallArguments, CallEnd, CallStart, Event, Mark, Piece, Text, Thought
from sglang.srt.parser.gemma4_arguments import END, QUOTE, ArgumentReader, Item
from sglang.srt.utils.tokenizer import Tokenizer

CALL, CALL_END = Mark("<|tool_call>"), Mark("<tool_call|>")
CHANNEL, CHANNEL_END = Mark("<|channel>"), Mark("<channel|>")
STRING = Mark('<|"|>')
RESULT = Mark("<|tool_response>")
ENDS = {RESULT, Mark("<tool_response|>"), Mark("<turn|>"), Mark("<|turn>"), Mark("<eos>")}
MARKS = {CALL, CALL_END, CHANNEL, CHANNEL_END, STRING, *ENDS}

LABEL = "thought\n"
NAME = re.compile(r"[^\s:{}()\[\]\"']{1,128}")
MAX_HEAD = 256  # characters between a call's mark and its opening brace
TAIL = " \t\r\n})"  # what may stand between a call's closing brace and its mark


class State(enum.Enum):
    ANSWER = "answer"
    LABEL = "label"  # behind the mark of a channel
    THOUGHT = "thought"
    HEAD = "head"  # `call:NAME`
    ARGUMENTS = "arguments"
    TAIL = "tail"  # behind a call's closing brace


# Where a mark leads from any state. Those that end something are dropped where there is nothing to end.
NEXT = {CALL: State.HEAD, CHANNEL: State.LABEL, CHANNEL_END: State.ANSWER, CALL_END: State.ANSWER} | {
    mark: State.ANSWER for mark in ENDS
}


class Gemma4Parser:
    """An OutputParser. `open_thought`: the prompt ends inside a thought. With `calls` or `thoughts` false those marks
    are hidden and what they hold is part of the answer."""

    def __init__(self, open_thought: bool = False, calls: bool = True, thoughts: bool = True):
        self._state = State.THOUGHT if open_thought else State.ANSWER
        self._calls = calls
        self._thoughts = thoughts
        self._held = ""  # text of this state whose meaning is open
        self._index = -1  # of the latest call
        self._reader = ArgumentReader()
        self._events: list[Event] = []

    def push(self, pieces: Iterable[Piece], final: bool = False) -> list[Event]:
        for piece in pieces:
            if isinstance(piece, Mark):
                self._on_mark(piece)
            elif piece:
                self._on_text(piece)
        if final:
            self._leave(None)
        events, self._events = self._events, []
        return events

    # ---- marks -------------------------------------------------------------------------------------------------

    def _on_mark(self, mark: Mark) -> None:
        if mark == STRING:
            self._on_items(iter([QUOTE])) if self._state is State.ARGUMENTS else self._on_text('"')
        elif mark in NEXT:
            state = NEXT[mark]
            if (state is State.HEAD and not self._calls) or (state is State.LABEL and not self._thoughts):
                state = State.ANSWER
            self._leave(state)
        elif self._state is State.ARGUMENTS:  # a special token inside of a string
            self._on_items(iter(mark.text))

    def _leave(self, to: State | None) -> None:
        """End the state, with its successor or None for the end of all, which completes no call: say what was held back
        and is of account, drop what is not."""
        state, held = self._state, self._held
        if state is State.ANSWER:
            if to is State.ANSWER:
                return
            if to is State.LABEL or (to is None and self._index < 0):
                self._say(Text, held)
        elif state is State.THOUGHT:
            self._say(Thought, held.removesuffix("\n"))
        elif state is State.LABEL:
            self._say(Thought, "" if LABEL.startswith(held) else held)
        elif state is State.HEAD and not (name := _name(held)):
            self._say(Text, held)
        elif state is State.HEAD and to is not None:  # a call without braces has no arguments
            self._start_call(name)
            self._on_items(iter([END]))
        elif state is State.ARGUMENTS and to is not None:
            self._on_items(iter([END]))
        self._held = ""
        self._state = to or state

    # ---- text --------------------------------------------------------------------------------------------------

    def _on_text(self, text: str) -> None:
        text, self._held = self._held + text, ""
        if self._state is State.ARGUMENTS:
            self._on_items(iter(text))
        elif self._state is State.HEAD:
            self._on_head(text)
        elif self._state is State.LABEL:
            if LABEL.startswith(text) and text != LABEL:
                self._held = text
            else:  # a channel without this label is a thought all the same
                self._state = State.THOUGHT
                self._on_text(text.removeprefix(LABEL))
        elif self._state is State.THOUGHT:
            self._held = "\n" if text.endswith("\n") else ""
            self._say(Thought, text.removesuffix("\n"))
        elif self._state is State.TAIL and not text.strip(TAIL):
            self._held = text
        else:
            self._state = State.ANSWER  # a tail that goes on has no closing mark
            shown = text.rstrip()
            self._held = text[len(shown) :]
            self._say(Text, shown)

    def _on_head(self, text: str) -> None:
        head, brace, rest = text.partition("{")
        if not brace and len(head) <= MAX_HEAD:
            self._held = head
        elif brace and (name := _name(head)):
            self._start_call(name)
            self._on_items(iter(rest))
        else:  # it calls nothing: better shown than lost
            self._state = State.ANSWER
            self._on_text(text)

    def _start_call(self, name: str) -> None:
        self._index += 1
        self._reader = ArgumentReader()
        self._state = State.ARGUMENTS
        self._events.append(CallStart(self._index, f"call_{uuid.uuid4().hex[:24]}", name))

    def _on_items(self, items: Iterator[Item]) -> None:
        """Read on in a call's arguments; what follows them is answer again."""
        if text := self._reader.push(items):
            self._events.append(CallArguments(self._index, text))
        if self._reader.done:
            self._events.append(CallEnd(self._index))
            self._state = State.TAIL
            if rest := "".join(item for item in items if isinstance(item, str)):
                self._on_text(rest)

    def _say(self, kind: type[Text] | type[Thought], text: str) -> None:
        if text:
            self._events.append(kind(text))


def _name(head: str) -> str | None:
    """The function's name in what stands before the brace, None if there is none."""
    name = head.strip().removeprefix("call").strip().removeprefix(":").strip()
    return name if NAME.fullmatch(name) else None


class Gemma4Format:
    """Gemma 4's marks as the ids of a tokenizer."""

    NAME = "gemma4"

    def __init__(self, ids: dict[Mark, int], label: list[int], newline: int | None):
        """`label`: tokens of LABEL; `newline`: the one of a newline, where it is one."""
        self._ids = ids
        self._label, self._newline = label, newline
        self._marks = {token_id: mark for mark, token_id in ids.items()}
        self.mark_ids = sorted(self._marks)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Gemma4Format | None":
        """None for a tokenizer that lacks one of the marks."""
        known = tokenizer.special_by_text
        if not all(mark.text in known for mark in MARKS):
            return None
        newline = tokenizer.encode("\n", add_special_tokens=False)
        return cls(
            {mark: known[mark.text] for mark in MARKS},
            tokenizer.encode(LABEL, add_special_tokens=False),
            newline[0] if len(newline) == 1 else None,
        )

    def ends_of_calls(self, parallel: bool) -> list[int]:
        """Tokens that end a turn with calls: one waits for results, and without `parallel` one call is enough."""
        return [self._ids[RESULT]] if parallel else [self._ids[RESULT], self._ids[CALL_END]]

    def call_grammar(self, functions: list[Function], *, many: bool, free: bool) -> str:
        """See gemma4_calls.call_grammar()."""
        marks = CallMarks(self._ids[CALL], self._ids[CALL_END], self._ids[STRING], self._ids[RESULT])
        return call_grammar(functions, marks, many=many, free=free)

    def thought_marks(self, thinks: bool = True) -> ThoughtMarks:
        """`thinks` false: with a grammar of the answer, the model may not begin with a thought."""
        others = [token_id for mark, token_id in self._ids.items() if mark not in (CHANNEL, CHANNEL_END, STRING)]
        ids = self._ids
        return ThoughtMarks(ids[CHANNEL], ids[CHANNEL_END], sorted(others), thinks, self._label, self._newline)

    def pieces(self, text: str, marks: list[tuple[int, int]]) -> list[Piece]:
        """Text and what stands in it: (characters before, token id)."""
        pieces: list[Piece] = []
        at = 0
        for place, token_id in marks:
            pieces += [text[at:place], self._marks[token_id]]
            at = place
        return [*pieces, text[at:]]

    def parser(self, prompt_ids: list[int], calls: bool = True, thoughts: bool = True) -> "Gemma4Parser":
        return Gemma4Parser(thought_start(self.thought_marks(), prompt_ids) is not None, calls, thoughts)

    def thoughts(self, prompt_ids: list[int]) -> ThoughtTracker:
        return ThoughtTracker(self.thought_marks(), prompt_ids)


def split_marks(text: str) -> list[Piece]:
    """Output as one text, special tokens written out, in pieces."""
    pattern = "|".join(re.escape(mark.text) for mark in MARKS)
    return [Mark(part) if Mark(part) in MARKS else part for part in re.split(f"({pattern})", text) if part]
