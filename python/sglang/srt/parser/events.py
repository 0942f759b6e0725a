"""What an answer is made of, whatever the model's own marks: events that grow an API's reply. No format, no API here.

A parser turns pieces of output into events. A piece is text, or a Mark: a special token, which the model's text cannot
forge. Events of one kind that follow each other may be joined: how a stream was cut changes their number, not what they
say together.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Mark:
    """A special token by its text, such as `<|tool_call>`."""

    text: str


Piece = str | Mark


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool is called: the `index`-th call of this answer, from 0. `id` is made here, the model has none."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of its arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is complete, its arguments are a JSON object. One without this was cut off and is no call."""

    index: int


Event = Text | Thought | CallStart | CallArguments | CallEnd


class OutputParser(Protocol):
    """The events of one answer."""

    def push(self, pieces: Iterable[Piece], final: bool = False) -> list[Event]:
        """What new pieces add. With `final` nothing follows, and what was held back comes out. It never raises:
        whatever a model writes is something."""
