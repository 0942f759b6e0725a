"""Tokenizer: text to ids and back, from a Hugging Face folder, and the folder's ChatTemplate. No torch, no remote code.

tokenizer_files reads it with the `tokenizers` library; chat_template.py renders chats. Its
tokenizer classes would give the same ids but import torch, seconds that two processes of three can do without.
"""

import ctypes
import functools
import json
import re
import sys
from pathlib import Path

import tokenizers

from sglang.srt.utils.chat_template import ChatTemplate
from sglang.srt.utils.special_text import SpecialText
from sglang.srt.utils.tokenizer_files import FOR_TOOLS, read_tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where that is printable Latin-1, else the next from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


class Tokenizer:
    """`folder` holds tokenizer.json and usually tokenizer_config.json; `chat_template` is a jinja file that outranks
    the folder's. Raises ValueError, in one line, for what is missing or unreadable."""

    def __init__(self, folder: str, chat_template: str | None = None):
        files = read_tokenizer(Path(folder))
        self._backend, self.special_tokens = files.backend, files.special_tokens
        templates = {"default": _read_file(chat_template)} if chat_template is not None else files.templates
        self.chat_template: ChatTemplate | None = None
        if "default" in templates:
            self.chat_template = ChatTemplate(templates["default"], self.special_tokens, templates.get(FOR_TOOLS))
        self.size: int = self._backend.get_vocab_size(with_added_tokens=True)
        # Characters of the longest token: a text of n characters has n / longest_token tokens at least.
        self.longest_token = max(map(len, self._backend.get_vocab(with_added_tokens=True)))
        self.special_ids = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        self._bytes = self._byte_tokens(_is_byte_level(self._backend.decoder))
        self.token_text = functools.lru_cache(maxsize=65536)(self._token_text)

    def _byte_tokens(self, byte_level: bool) -> dict[int, bytes]:
        """Tokens that stand for bytes, which may be parts of characters: all tokens of a byte-level tokenizer, the
        byte-fallback tokens of any other."""
        found = {}
        for token, token_id in self._backend.get_vocab(with_added_tokens=True).items():
            if byte_level:
                is_mapped = all(char in BYTE_LEVEL_ALPHABET for char in token)
                found[token_id] = bytes(BYTE_LEVEL_ALPHABET[char] for char in token) if is_mapped else token.encode()
            elif match := BYTE_TOKEN.fullmatch(token):
                found[token_id] = bytes([int(match[1], 16)])
        return found

    @functools.cached_property
    def special_by_text(self) -> dict[str, int]:
        return {self.token_text(token_id): token_id for token_id in self.special_ids}

    def special_ids_of(self, texts: list[str]) -> list[int]:
        """Ids of those texts that are special tokens."""
        return [self.special_by_text[text] for text in texts if text in self.special_by_text]

    @functools.cached_property
    def special_text(self) -> SpecialText:
        """Hides special tokens' texts from encode(), which reads what it has hidden as plain text."""
        return SpecialText(sorted(self.special_by_text))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        parts = self.special_text.split(text)
        ids = self._backend.encode(parts[0], add_special_tokens=add_special_tokens).ids
        for hidden, part in zip(parts[1::2], parts[2::2], strict=True):
            ids = ids + self._plain_ids(hidden) + self._backend.encode(part, add_special_tokens=False).ids
        return ids

    def encode_all(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """encode() of each. For threads: the library lets go of the GIL, and uses all processors."""
        split = [self.special_text.split(text) for text in texts]
        firsts = self._backend.encode_batch_fast([parts[0] for parts in split], add_special_tokens=add_special_tokens)
        later = [part for parts in split for part in parts[2::2]]
        rest = iter(self._backend.encode_batch_fast(later, add_special_tokens=False))
        result = []
        for parts, first in zip(split, firsts, strict=True):
            ids = list(first.ids)
            for hidden in parts[1::2]:
                ids += self._plain_ids(hidden)
                ids += next(rest).ids
            result.append(ids)
        return result

    @functools.lru_cache(maxsize=1024)  # noqa: B019 (a process has one tokenizer)
    def _plain_ids(self, text: str) -> list[int]:
        """A special token's text as if it were none."""
        return self._plain_backend.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    def decode_all(self, lists: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        """decode() of each, as encode_all()."""
        return self._backend.decode_batch(lists, skip_special_tokens=skip_special_tokens)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence. Ids beyond the vocabulary (models may have more logits than tokens) add nothing."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def bytes_of(self, token_id: int) -> bytes | None:
        """The bytes of a token that may hold part of a character; None for a token whose text only decode() knows."""
        return self._bytes.get(token_id)

    def _token_text(self, token_id: int) -> str:
        """One token as it shows in log-probabilities: special tokens by name, its leading space kept."""
        if (data := self._bytes.get(token_id)) is not None:
            return data.decode("utf-8", errors="replace")
        text = self._backend.decode([token_id], skip_special_tokens=False)
        piece = self._backend.id_to_token(token_id) or ""
        # Some decoders strip the space before a sequence's first word, which here is not the first.
        return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> list[int]:
        data = self._bytes.get(token_id)
        return list(data if data is not None else self.token_text(token_id).encode())

    def require_chat_template(self) -> ChatTemplate:
        """Raises ValueError where the folder has none."""
        if self.chat_template is None:
            raise ValueError(
                "this model's tokenizer has no chat template; give one with --chat-template, or use /v1/completions"
            )
        return self.chat_template

    def render_chat(self, messages: list[dict], tools: list[dict] | None = None, **options) -> str:
        """ChatTemplate.render() of the folder's template. Raises ValueError, also where there is none."""
        return self.require_chat_template().render(messages, tools, **options)


def give_memory_back() -> None:
    """Hand what the tokenizer has freed back to the system: the C library keeps 80 times the size of a long text."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):  # glibc has it
        libc.malloc_trim(0)


def _is_byte_level(decoder: tokenizers.decoders.Decoder | None) -> bool:
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    return all(part["type"] == "ByteLevel" for part in state.get("decoders", [state]))


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"--chat-template {path}: {e}") from e
