"""Files that hold benchmark prompts: conversations (ShareGPT and the like) and custom prompts.

A file is read whole and checked before anything is sent; nothing is downloaded. Token counts are not known here.
"""

import re
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Turn(msgspec.Struct):
    """One turn of a conversation; ShareGPT calls its text `value`, other sets `content`."""

    value: str | None = None
    content: str | None = None

    @property
    def text(self) -> str:
        return self.value if self.value is not None else self.content or ""


class Conversation(msgspec.Struct):
    conversations: list[Turn] | None = None
    conversation: list[Turn] | None = None

    @property
    def turns(self) -> list[Turn]:
        return self.conversations or self.conversation or []


class CustomPrompt(Conversation):
    """A conversation, or a prompt (text or token ids) with the number of tokens to ask for."""

    prompt: str | list[int] | None = None
    output_len: int | None = None


def read_records(path: str, record_type: type[T]) -> list[T]:
    """The records of a JSON array or of JSON lines. Raises ValueError that names the file, the line or entry and what
    is wrong there."""
    if not path:
        raise ValueError(
            "this dataset is read from a file: give it with --dataset-path (nothing is downloaded); "
            "--dataset-name random-ids needs none"
        )
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise ValueError(f"--dataset-path {path}: {e.strerror}; nothing is downloaded") from e
    try:
        records = _read_array(data, record_type) if data.lstrip()[:1] == b"[" else _read_lines(data, record_type)
    except ValueError as e:
        raise ValueError(f"--dataset-path {path}: {e}") from e
    if not records:
        raise ValueError(f"--dataset-path {path}: it holds no records")
    return records


def _read_array(data: bytes, record_type: type[T]) -> list[T]:
    try:
        return msgspec.json.decode(data, type=list[record_type])
    except msgspec.ValidationError as e:
        raise ValueError(_located(str(e))) from e
    except msgspec.DecodeError as e:
        raise ValueError(f"not valid JSON: {e}") from e


def _located(problem: str) -> str:
    """msgspec's `... - at `$[3].question`` with the entry in words."""
    match = re.fullmatch(r"(.*) - at `\$\[(?:\.\.\.|(\d+))\](.*)`", problem)
    if match is None:
        return problem
    place = "an entry" if match[2] is None else f"entry {match[2]}"
    return f"{place}{f' ({match[3]})' if match[3] else ''}: {match[1]}"


def _read_lines(data: bytes, record_type: type[T]) -> list[T]:
    decode = msgspec.json.Decoder(record_type).decode
    records = []
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                records.append(decode(line))
            except msgspec.DecodeError as e:  # ValidationError is one too
                raise ValueError(f"line {number}: {e}") from e
    return records
