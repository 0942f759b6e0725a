"""IncrementalText: text of tokens that come piece by piece, without ever cutting a character. It knows no requests."""

import codecs

from sglang.srt.utils.tokenizer import Tokenizer

CONTEXT_TOKENS = 4


class IncrementalText:
    """`push` returns the text that new tokens add; `flush` what was still waiting for its last byte.

    Tokens that stand for bytes are joined here: the library decodes a run of byte-fallback tokens as one, so a bad byte
    would change characters already sent. Other tokens' text may depend on those before (spaces), so each piece is
    decoded together with a few earlier tokens, whose own text is then taken off.
    """

    __slots__ = ("_context", "_context_chars", "_in_bytes", "_skip_special", "_tokenizer", "_utf8")

    def __init__(self, tokenizer: Tokenizer, prompt_tail: list[int], skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_bytes = False
        self._set_context([i for i in prompt_tail if tokenizer.bytes_of(i) is None])

    def copy(self) -> "IncrementalText":
        other = object.__new__(IncrementalText)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        other._utf8.setstate(self._utf8.getstate())
        return other

    def push(self, ids: list[int]) -> str:
        text = ""
        run: list[int] = []  # consecutive tokens that are no bytes
        for token_id in ids:
            data = self._tokenizer.bytes_of(token_id)
            if data is None:
                text += self.flush()
                run.append(token_id)
            elif not (self._skip_special and token_id in self._tokenizer.special_ids):
                text += self._push_run(run)
                run = []
                text += self._utf8.decode(data)
                self._in_bytes = True
        return text + self._push_run(run)

    def flush(self) -> str:
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
