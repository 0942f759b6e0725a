"""IncrementalText: text of tokens that come piece by piece, without ever cutting a character. It knows no requests."""

import codecs

from sglang.srt.utils.tokenizer import REPLACEMENT, Tokenizer

# A character has at most 4 bytes, so at most 3 tokens wait for their character's end. More than this many tokens that
# end in a replacement character are text that really is broken.
MAX_PENDING_TOKENS = 8
CONTEXT_TOKENS = 4


class IncrementalText:
    """`push` returns the text that new tokens add; `flush` what was still waiting for its last byte.

    A token's text may depend on the tokens before it (spaces, joined bytes), so each piece is decoded together with a
    few earlier tokens, whose own text is then taken off. Byte-fallback tokens are joined here: the library decodes a
    run of them as one, so a bad byte would change characters that were already sent.
    """

    __slots__ = ("_tokenizer", "_skip_special", "_window", "_context", "_emitted", "_utf8", "_in_bytes")

    def __init__(self, tokenizer: Tokenizer, prompt_tail: list[int], skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._window = [i for i in prompt_tail[-CONTEXT_TOKENS:] if tokenizer.byte_of(i) is None]
        self._context = len(self._window)  # tokens of the window whose text is out
        # Characters of the window's text that are out; a prompt may end within one, which the output then completes.
        self._emitted = len(self._decode(self._window).rstrip(REPLACEMENT))
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_bytes = False

    def copy(self) -> "IncrementalText":
        other = object.__new__(IncrementalText)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other._window = list(self._window)
        other._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        other._utf8.setstate(self._utf8.getstate())
        return other

    def push(self, ids: list[int]) -> str:
        text = ""
        run: list[int] = []  # consecutive tokens that are no single bytes
        for token_id in ids:
            byte = self._tokenizer.byte_of(token_id)
            if byte is None:
                if self._in_bytes:
                    text += self._end_bytes()
                run.append(token_id)
                continue
            if not self._in_bytes:
                text += self._push_run(run) + self._end_run()
                run = []
                self._in_bytes = True
            text += self._utf8.decode(bytes([byte]))
        return text + self._push_run(run)

    def flush(self) -> str:
        return self._end_bytes() if self._in_bytes else self._end_run()

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, self._skip_special) if ids else ""

    def _push_run(self, ids: list[int]) -> str:
        if not ids:
            return ""
        self._window += ids
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._context <= MAX_PENDING_TOKENS:
            whole = len(text.rstrip(REPLACEMENT))
            new = text[self._emitted : whole]
            self._emitted = max(self._emitted, whole)
            return new
        new = text[self._emitted :]
        self._slide()
        return new

    def _slide(self) -> None:
        """All text is out: the last tokens stay as context."""
        self._window = self._window[-CONTEXT_TOKENS:]
        self._context = len(self._window)
        self._emitted = len(self._decode(self._window))

    def _end_run(self) -> str:
        """Text still held back, as it stands."""
        if len(self._window) == self._context:
            return ""
        new = self._decode(self._window)[self._emitted :]
        self._slide()
        return new

    def _end_bytes(self) -> str:
        self._in_bytes = False
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text
