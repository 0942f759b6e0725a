"""The process that tries grammars out with the llguidance library: `python -m` this module.

The library compiles while masks are made, within limits of its own, so what comes back is the grammar in the library's
form; but to read a large regular expression may take it minutes.
"""

import functools
import json
from collections.abc import Callable

import numpy as np

from sglang.srt.constrained.compile_process import CompilerSettings, serve
from sglang.srt.constrained.grammar import MAX_WHITESPACE, GrammarError, mask_words
from sglang.srt.utils.shown import cut

JSON_OPTIONS = {"whitespace_pattern": f"[\\x20\\x0A\\x0D\\x09]{{0,{MAX_WHITESPACE}}}"}
# Where one text alone may follow, the library would bar all its tokens but the ones that it holds canonical.
OPTIONS = '%llguidance {"no_forcing": true}\n'


class _Vocabulary:
    """A tokenizer as the library wants to see it. It needs tokens of a text only to force them."""

    def __init__(self, settings: CompilerSettings):
        from sglang.srt.utils.tokenizer import Tokenizer

        tokenizer = Tokenizer(settings.tokenizer_folder)
        self.eos_token_id, self.bos_token_id = settings.eos_token_ids[0], None
        size = min(settings.vocab_size, tokenizer.size)
        self.tokens = [bytes(tokenizer.token_bytes(i)) for i in range(size)]
        self.special_token_ids = sorted(i for i in tokenizer.special_ids if i < size)

    def __call__(self, text: str) -> list[int]:
        return []


def load_tokens(settings: CompilerSettings):
    """What the library knows of a tokenizer; the model's logits may have more columns, which no output gets. Raises
    GrammarError where no token ends an output."""
    import llguidance

    if not settings.eos_token_ids:
        raise GrammarError("--grammar-backend llguidance needs a model with an eos token")
    vocabulary = _Vocabulary(settings)
    eos, size = [i for i in settings.eos_token_ids if i < len(vocabulary.tokens)], len(vocabulary.tokens)
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), n_vocab=size, eos_token=eos)


def load(settings: CompilerSettings) -> tuple[bytes, Callable[[str, str], bytes]]:
    """See compile_process.serve()."""
    return b"", functools.partial(check_grammar, load_tokens(settings))


def check_grammar(tokens, kind: str, text: str) -> bytes:
    """A grammar in the library's form of Lark, which an ebnf may have already; `kind` as GrammarBackend has it. Raises
    GrammarError."""
    import llguidance

    try:
        lark = OPTIONS + _lark(kind, text)
    except ValueError as e:
        raise GrammarError(f"{kind} cannot be compiled: {_reason(str(e))}") from e
    matcher = llguidance.LLMatcher(tokens, lark, log_level=0)
    mask = np.zeros(mask_words(tokens.vocab_size), dtype=np.int32)
    if not matcher.is_error():
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    if matcher.is_error():
        error = matcher.get_error()
        if "NoExtension" in error:
            raise GrammarError(f"{kind} cannot be compiled: no text matches it")
        raise GrammarError(f"{kind} cannot be compiled: {_reason(error)}")
    return lark.encode()


def _lark(kind: str, text: str) -> str:
    """Raises ValueError."""
    import llguidance

    kinds = kind.split(" or ")
    if len(kinds) > 1:
        parts = map(_lark, kinds, json.loads(text))
        return "start: " + " | ".join(f"%lark {{\n{part}\n}}" for part in parts)
    match kind:
        case "json_schema":
            schema = json.loads(text)
            schema = schema if isinstance(schema, dict) else {"allOf": [schema]}
            return f"start: %json {json.dumps({'x-guidance': JSON_OPTIONS} | schema)}"
        case "regex":
            return json.loads(llguidance.LLMatcher.grammar_from_regex(text))["grammars"][0]["lark_grammar"]
        case "ebnf":
            return llguidance.grammar_from("ebnf", text).removeprefix("%llguidance {}")
        case "structural_tag":
            raise ValueError("only --grammar-backend xgrammar reads it")
        case "tools":
            return text
    raise ValueError(f"unknown kind {kind}")


def _reason(message: str) -> str:
    """The library's message in one line."""
    return cut(" ".join(message.split()) or "unknown reason", 300)


if __name__ == "__main__":
    serve(load)
