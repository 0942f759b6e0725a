"""The process that compiles grammars with the xgrammar library: `python -m sglang.srt.constrained.xgrammar_compile`."""

import functools
import json
import os
import re
from collections.abc import Callable

import numpy as np

from sglang.srt.constrained.compile_process import CompilerSettings, serve
from sglang.srt.constrained.grammar import MAX_WHITESPACE, GrammarError, mask_words
from sglang.srt.utils.shown import cut

COMPILE_THREADS = max(1, min(8, (os.cpu_count() or 1) // 4))  # for one grammar; other requests are being served
# What the library puts before its messages: time of day, source file, the check that failed.
_PREFIX = re.compile(r"^\[[0-9:]+\] \S+: (?:Check failed: \([^)]*\)\)? is false: )?")


def tokenizer_info(settings: CompilerSettings):
    """What the library knows of a tokenizer."""
    import xgrammar  # late: it takes seconds

    from sglang.srt.utils.tokenizer import Tokenizer

    tokenizer = Tokenizer(settings.tokenizer_folder)
    texts = [_token_text(tokenizer, i) for i in range(settings.vocab_size)]
    return xgrammar.TokenizerInfo(
        texts, xgrammar.VocabType.RAW, vocab_size=settings.vocab_size, stop_token_ids=settings.eos_token_ids
    )


def load(settings: CompilerSettings) -> tuple[bytes, Callable[[str, str], bytes]]:
    """See compile_process.serve()."""
    import xgrammar

    info = tokenizer_info(settings)
    compiler = xgrammar.GrammarCompiler(info, max_threads=COMPILE_THREADS, cache_enabled=False)
    return info.serialize_json().encode(), functools.partial(compile_grammar, compiler, settings)


def compile_grammar(compiler, settings: CompilerSettings, kind: str, text: str) -> bytes:
    """A grammar as the library writes it; `kind` as GrammarBackend has it. Raises GrammarError."""
    try:
        compiled = compiler.compile_grammar(read(kind, text))
    except (RuntimeError, ValueError) as e:  # the library's own errors are of both kinds
        raise GrammarError(f"{kind} cannot be compiled: {_reason(str(e))}") from e
    if compiled.memory_size_bytes > settings.max_bytes:
        raise GrammarError(
            f"{kind} takes {compiled.memory_size_bytes} bytes when it is compiled, at most {settings.max_bytes} "
            "are possible: use a simpler one"
        )
    first = np.zeros((1, mask_words(settings.vocab_size)), dtype=np.int32)
    new_matcher(compiled, settings.eos_token_ids).fill_next_token_bitmask(first)
    if not first.any():
        raise GrammarError(f"{kind} cannot be compiled: no text matches it")
    return compiled.serialize_json().encode()


def read(kind: str, text: str):
    """The library's Grammar."""
    from xgrammar import Grammar

    kinds = kind.split(" or ")
    if len(kinds) > 1:
        return Grammar.union(*map(read, kinds, json.loads(text)))
    match kind:
        case "json_schema":
            return Grammar.from_json_schema(text, max_whitespace_cnt=MAX_WHITESPACE)
        case "regex":
            return Grammar.from_regex(text)
        case "ebnf":
            return Grammar.from_ebnf(text)
        case "structural_tag":
            return Grammar.from_structural_tag(json.dumps(_with_bounded_space(json.loads(text))))
        case "tools":
            return Grammar.from_lark(text)
    raise ValueError(f"unknown kind {kind}")


def _with_bounded_space(node):
    """The parts of a structural tag, white space bounded in those that are JSON."""
    if isinstance(node, list):
        return [_with_bounded_space(part) for part in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "json_schema":
        return {"max_whitespace_cnt": MAX_WHITESPACE} | node
    return {key: _with_bounded_space(value) for key, value in node.items()}


def new_matcher(compiled, eos_token_ids: list[int]):
    """A matcher of the library at the beginning of a compiled grammar."""
    import xgrammar

    return xgrammar.GrammarMatcher(
        compiled, override_stop_tokens=eos_token_ids or None, terminate_without_stop_token=not eos_token_ids
    )


def _token_text(tokenizer, token_id: int) -> bytes:
    """A token's bytes. A special one has some that are no text: a grammar gets it by its id alone. One beyond the
    tokenizer has none, and can't be had."""
    if token_id >= tokenizer.size:
        return b""
    return b"\xff%d" % token_id if token_id in tokenizer.special_ids else bytes(tokenizer.token_bytes(token_id))


def _reason(message: str) -> str:
    """What of the library's message is of use to who wrote the grammar."""
    line = _PREFIX.sub("", message.strip().splitlines()[0]) if message.strip() else "unknown reason"
    return cut(line, 300)


if __name__ == "__main__":
    serve(load)
