"""Tokenizer: text to ids and back, and chat messages to text, from a Hugging Face folder. No torch, no remote code.

It reads tokenizer.json with the `tokenizers` library and renders the folder's chat template with transformers' own
renderer. transformers' tokenizer classes would give the same ids but import torch, seconds that two processes of three
can do without.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
REPLACEMENT = "\ufffd"  # what decoding puts in place of bytes that are no UTF-8


class Tokenizer:
    """`folder` holds tokenizer.json and usually tokenizer_config.json; `chat_template` is a jinja file that outranks
    the folder's. Raises ValueError, in one line, for what is missing or unreadable."""

    def __init__(self, folder: str, chat_template: str | None = None):
        root = Path(folder)
        file = root / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"no tokenizer.json in {folder}; give its folder with --tokenizer-path")
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as e:  # the library raises bare Exception for a malformed file
            raise ValueError(f"{file} is not a readable tokenizer: {e}") from e
        self._backend.no_padding()
        self._backend.no_truncation()
        config = _read_json(root / "tokenizer_config.json")
        self.special_tokens = _special_tokens(config)
        self.chat_template = _read_template(root, config, chat_template)
        if "add_bos_token" in config or "add_eos_token" in config:
            self._backend.post_processor = self._affixes(config)
        self.size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self._bytes: dict[int, int] = {}  # byte-fallback tokens: id -> the byte
        for token, token_id in self._backend.get_vocab(with_added_tokens=False).items():
            if match := BYTE_TOKEN.fullmatch(token):
                self._bytes[token_id] = int(match[1], 16)
        self.token_text = functools.lru_cache(maxsize=65536)(self._token_text)

    def _affixes(self, config: dict) -> processors.PostProcessor:
        """What the config says to put around a text, which outranks tokenizer.json as it does in transformers."""
        left = self.special_tokens.get("bos_token") if config.get("add_bos_token") else None
        right = self.special_tokens.get("eos_token") if config.get("add_eos_token") else None
        used = [token for token in (left, right) if token is not None]
        return processors.TemplateProcessing(
            single=[*([left] if left else []), "$A", *([right] if right else [])],
            special_tokens=[(token, self._backend.token_to_id(token)) for token in dict.fromkeys(used)],
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence. Ids outside the vocabulary (a model may have more logits than tokens) add nothing."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def byte_of(self, token_id: int) -> int | None:
        """The byte a byte-fallback token stands for, None for all other tokens."""
        return self._bytes.get(token_id)

    def _token_text(self, token_id: int) -> str:
        """One token as it shows in log-probabilities: special tokens by name, its leading space kept."""
        if (byte := self._bytes.get(token_id)) is not None and byte >= 0x80:
            return REPLACEMENT
        text = self._backend.decode([token_id], skip_special_tokens=False)
        piece = self._backend.id_to_token(token_id) or ""
        # Some decoders strip the space before a sequence's first word, which here is not the first.
        return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> list[int]:
        byte = self._bytes.get(token_id)
        return [byte] if byte is not None else list(self.token_text(token_id).encode())

    def render_chat(
        self,
        messages: list[dict],
        tools: list[dict] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """Messages -> the prompt text, special tokens written out. Raises ValueError with the template's own complaint."""
        if self.chat_template is None:
            raise ValueError("this model's tokenizer has no chat template; give one with --chat-template, or use /v1/completions")
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=self.chat_template,
                continue_final_message=continue_final_message,
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **(variables or {})},
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as e:
            # Templates are programs of the checkpoint; what they raise is nearly always about these messages.
            raise ValueError(f"the chat template refuses these messages: {e}") from e
        return rendered[0]


def _read_json(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{file} is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds no JSON object")
    return value


def _special_tokens(config: dict) -> dict[str, str]:
    """bos_token and its like, as templates use them; an entry may be text or a description of an added token."""
    named = {k: v for k, v in config.items() if k.endswith("_token")}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= extra
    texts = {k: v.get("content") if isinstance(v, dict) else v for k, v in named.items()}
    return {k: v for k, v in texts.items() if isinstance(v, str)}


def _read_template(root: Path, config: dict, override: str | None) -> str | None:
    if override is not None:
        try:
            return Path(override).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"--chat-template {override}: {e}") from e
    file = root / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
