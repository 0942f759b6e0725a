"""Responses that clients may ask for again or go on from: the latest ones, in this process's memory."""

from collections import OrderedDict

import msgspec

from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.shown import shown

MAX_RESPONSES = 1024
MAX_BYTES = 64_000_000  # of all together


class Stored(msgspec.Struct):
    response: bytes  # JSON, as it was sent
    messages: bytes  # JSON of the conversation so far, without instructions

    @property
    def size(self) -> int:
        return len(self.response) + len(self.messages)


class ResponseStore:
    """The least recently used go first."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES):
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self.size = 0  # bytes

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, id: str, stored: Stored) -> None:
        self._kept[id] = stored
        self.size += stored.size
        while len(self._kept) > self._max_responses or self.size > self._max_bytes:
            self.size -= self._kept.popitem(last=False)[1].size

    def get(self, id: str, param: str | None = None) -> Stored:
        """Raises RequestError (404)."""
        if id not in self._kept:
            raise RequestError(
                f"no response {shown(id)} is kept here: it was not stored, was deleted, had to make room for later "
                "ones, or another server made it",
                status=404,
                param=param,
            )
        self._kept.move_to_end(id)
        return self._kept[id]

    def delete(self, id: str) -> None:
        """Raises RequestError (404)."""
        self.size -= self.get(id).size
        del self._kept[id]
