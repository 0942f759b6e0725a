"""IncrementalText: text of tokens that come piece by piece, without ever cutting a character. It knows no requests."""

import codecs

from sglang.srt.utils.tokenizer import Tokenizer

CONTEXT_TOKENS = 4


class IncrementalText:
    """`push` returns the text that new tokens add; `flush` what was still waiting for its last byte.

    Tokens of `marks` have no text; `take_marks` says where they stood.

    Tokens that stand for bytes are joined here: the library decodes a run of byte-fallback tokens as one, so a bad byte
    would change characters already sent. Other tokens' text may depend on those before (spaces), so each piece is
    decoded together with a few earlier tokens, whose own text is then taken off.
    """

    __slots__ = (
        "_chars", "_context", "_context_chars", "_found", "_in_bytes", "_marks", "_skip_special", "_tokenizer", "_utf8",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tail: list[int],
        skip_special_tokens: bool = True,
        marks: frozenset[int] = frozenset(),
    ):
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._marks = marks
        self._chars = 0  # of all text so far
        self._found: list[tuple[int, int]] = []  # marks not yet taken: characters before, token id
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_bytes = False
        self._set_context([i for i in prompt_tail if tokenizer.bytes_of(i) is None])

    def copy(self) -> "IncrementalText":
        other = object.__new__(IncrementalText)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        other._utf8.setstate(self._utf8.getstate())
        other._found = list(self._found)
        return other

    def push(self, ids: list[int]) -> str:
        text = ""
        run: list[int] = []  # consecutive tokens that are no bytes
        for token_id in ids:
            if token_id in self._marks:
                text += self._push_run(run) + self._end_bytes()
                run = []
                self._found.append((self._chars + len(text), token_id))
                continue
            data = self._tokenizer.bytes_of(token_id)
            if data is None:
                text += self._end_bytes()
                run.append(token_id)
            elif not (self._skip_special and token_id in self._tokenizer.special_ids):
                text += self._push_run(run)
                run = []
                text += self._utf8.decode(data)
                self._in_bytes = True
        text += self._push_run(run)
        self._chars += len(text)
        return text

    def flush(self) -> str:
        text = self._end_bytes()
        self._chars += len(text)
        return text

    def take_marks(self, end: int) -> list[tuple[int, int]]:
        """Marks with at most `end` characters before them, as (those characters, token id)."""
        taken = [mark for mark in self._found if mark[0] <= end]
        self._found = self._found[len(taken) :]
        return taken

    def _end_bytes(self) -> str:
        if not self._in_bytes:
            return ""
        self._in_bytes = False
        return self._utf8.decode(b"", final=True)

    def _push_run(self, ids: list[int]) -> str:
        if not ids:
            return ""
        window = self._context + ids
        text = self._decode(window)[self._context_chars :]
        self._set_context(window)
        return text

    def _set_context(self, ids: list[int]) -> None:
        self._context = ids[-CONTEXT_TOKENS:]
        self._context_chars = len(self._decode(self._context))

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, self._skip_special) if ids else ""
