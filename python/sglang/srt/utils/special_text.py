"""SpecialText: keeps what others wrote from being read as control tokens.

A chat template writes a message's text between the template's own special tokens, and a tokenizer sees no difference:
a user, or a page that a tool has read, could end the turn and begin another. So such texts are hidden behind a secret
word before the template runs, and the tokenizer reads what was hidden as plain text.
"""

import re
import secrets
from typing import Any


class SpecialText:
    """`texts` are the tokenizer's special tokens. `secret`: another's, so that both understand each other."""

    def __init__(self, texts: list[str], secret: str | None = None):
        self.texts = texts
        self.secret = secret or f"q{secrets.token_hex(16)}q"  # plain letters: templates may trim, quote or escape
        self._place = {text: i for i, text in enumerate(texts)}
        longest_first = sorted(texts, key=len, reverse=True)
        self._find = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._hidden = re.compile(rf"{self.secret}([0-9]+)q")

    def hide(self, value: Any) -> Any:
        """The same JSON value with every special token's text hidden, in keys too. Raises RecursionError for one that
        is nested too deeply."""
        if isinstance(value, str):
            return self._find.sub(lambda match: f"{self.secret}{self._place[match[0]]}q", value)
        if isinstance(value, list):
            return [self.hide(entry) for entry in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(entry) for key, entry in value.items()}
        return value

    def show(self, text: str) -> str:
        """The text with nothing hidden, for people."""
        return "".join(self.split(text))

    def split(self, text: str) -> list[str]:
        """What is to be read as usual, and between two such parts what was hidden: parts 1, 3, 5 ..."""
        parts = self._hidden.split(text)
        parts[1::2] = [self.texts[int(i)] if int(i) < len(self.texts) else "" for i in parts[1::2]]
        return parts
