"""Frames on a pipe between a process and a child of its own: a length in four bytes, then so many bytes."""

import struct
from typing import BinaryIO

HEAD = struct.Struct(">I")


def write_frame(file: BinaryIO, data: bytes) -> None:
    """Raises OSError where nobody reads any longer, ValueError for a closed file."""
    file.write(HEAD.pack(len(data)))
    file.write(data)
    file.flush()


def read_frame(file: BinaryIO) -> bytes | None:
    """The next frame, waited for; None at the end. Of a file without a buffer it takes no byte more."""
    head = _read(file, HEAD.size)
    return None if head is None else _read(file, *HEAD.unpack(head))


def _read(file: BinaryIO, size: int) -> bytes | None:
    parts = []
    while size:
        part = file.read(size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
