"""Grammars of both libraries over the shipped tokenizer: what they let through, where they end, what they refuse."""

import json
import random
import re
import sys

import numpy as np
import pytest

from sglang.srt.constrained import compiling_backend
from sglang.srt.constrained.grammar import MAX_WHITESPACE, GrammarError, mask_words
from sglang.srt.constrained.llguidance_backend import LLGuidanceBackend
from sglang.srt.constrained.xgrammar_backend import XGrammarBackend
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_grammar import allowed

register_cpu_ci(est_time=20, suite="base-a-test-cpu")

FOLDER = model_folder(ServerArgs())
EOS = [1, 106, 50]
V = 2080  # more columns than the tokenizer has tokens


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(FOLDER)


BACKENDS = [XGrammarBackend, LLGuidanceBackend]


@pytest.fixture(scope="module", params=BACKENDS, ids=[backend.library for backend in BACKENDS])
def backend(request):
    return request.param(FOLDER, V, EOS)


def begin(backend, kind: str, text: str):
    compiled, _ = backend.compile(kind, text).result(120)
    return compiled.begin()


def next_tokens(grammar) -> set[int]:
    mask = np.zeros(mask_words(V), dtype=np.int32)
    grammar.fill(mask)
    return allowed(mask, V)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["a b", "ü"]}},
    "required": ["name", "age", "kind"],
}
LISTS = {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
CASES = [
    ("json_schema", json.dumps(PERSON), '{"name": "Zoë 😀", "age": 7, "kind": "ü"}', '{"name": 1'),
    ("json_schema", json.dumps(PERSON), '{"name":"","age":-7,"kind":"a b"}', '{"age"'),
    ("json_schema", '{"type": "object"}', '{"x": [1, {"y": null}], "z": "\\"q\\""}', "[1]"),
    ("json_schema", json.dumps(LISTS), "[[], [[]]]", "[1"),
    ("regex", "[0-9]{3}-[a-f]+", "123-abc", "12-"),
    ("regex", "ä+|x", "ää", "y"),
    ("ebnf", 'root ::= "yes" | "no" rest\nrest ::= " " [a-z]+', "no way", "maybe"),
]


@pytest.mark.parametrize("kind,text,good,bad", CASES)
def test_what_matches_and_what_does_not(backend, tokenizer, kind, text, good, bad):
    grammar = begin(backend, kind, text)
    for token in tokenizer.encode(good, False):
        assert token in next_tokens(grammar)
        assert grammar.accept(token) and not grammar.ended
    assert next_tokens(grammar) >= set(EOS)
    assert grammar.accept(EOS[1]) and grammar.ended

    grammar = begin(backend, kind, text)
    assert not all(grammar.accept(token) for token in tokenizer.encode(bad, False))
    before = next_tokens(grammar)
    assert not grammar.accept(tokenizer.special_ids_of(["<|tool_call>"])[0])
    assert next_tokens(grammar) == before, "a refused token changes nothing"


@pytest.mark.parametrize("kind,text,good,bad", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_any_walk_stays_inside(backend, tokenizer, kind, text, good, bad, seed):
    """Random tokens of each mask are accepted; none is special, but for the end tokens, or beyond the tokenizer."""
    rng = random.Random(seed)
    grammar = begin(backend, kind, text)
    for _ in range(60):
        tokens = next_tokens(grammar)
        others = tokens - set(EOS)
        assert not others & tokenizer.special_ids and max(tokens) < tokenizer.size
        token = rng.choice(sorted(others or tokens))
        assert grammar.accept(token)
        assert grammar.ended == (token in EOS)
        if grammar.ended:
            break


@pytest.mark.parametrize("kind,text,good,bad", CASES)
def test_tokens_taken_back_were_never_there(backend, tokenizer, kind, text, good, bad):
    """As drafts need it: any number of tokens, the end among them."""
    grammar = begin(backend, kind, text)
    tokens = [*tokenizer.encode(good, False), EOS[0]]
    masks = []
    for token in tokens:
        masks.append(next_tokens(grammar))
        assert grammar.accept(token)
    assert grammar.ended
    for mask in reversed(masks):
        grammar.rollback()
        assert not grammar.ended and next_tokens(grammar) == mask
    assert all(grammar.accept(token) for token in tokens) and grammar.ended


def test_whitespace_does_not_go_on_for_ever(backend, tokenizer):
    grammar = begin(backend, "json_schema", json.dumps(PERSON))
    assert grammar.accept(tokenizer.encode("{", False)[-1])
    newline = tokenizer.encode("\n", False)[-1]
    count = 0
    while grammar.accept(newline):
        count += 1
        assert count <= MAX_WHITESPACE
    assert count >= 8, "indenting must be possible"


@pytest.mark.parametrize(
    "kind,text,xgrammar,llguidance",  # places that messages name
    [
        ("json_schema", '{"type": "foo"}', 'Unsupported type "foo"', "Invalid type: foo"),
        ("json_schema", '{"$ref": "#/$defs/x"}', "in #/$defs/x", "#/$defs/x"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 1}', "minimum greater than maximum", "minimum"),
        ("json_schema", "false", "cannot accept any value", "schema is false"),
        # before 0.2.9, and since
        ("json_schema", '{"$ref": "#"}', "(no text matches it|Circular .ref chain)", "no text matches it"),
        ("json_schema", '{"type": "string", "pattern": "(a"}', "parenthesis is not closed", "unclosed group"),
        ("regex", "(a", "Regex parsing error at position 3: The parenthesis", "unclosed group"),
        ("regex", "(?=a)b", "Lookahead is not supported", "look-ahead"),
        ("ebnf", "root ::= x", 'EBNF parser error at line 1, column 10: Rule "x"', "Rule 'x' not found"),
        ("ebnf", 'root ::= root "a"', "no text matches it", "no text matches it"),
    ],
)
def test_what_cannot_be_compiled_says_where(backend, kind, text, xgrammar, llguidance):
    with pytest.raises(GrammarError) as error:
        begin(backend, kind, text)
    message = xgrammar if backend.library == "xgrammar" else llguidance
    assert str(error.value).startswith(f"{kind} cannot be compiled: ")
    assert message in str(error.value) or re.search(message, str(error.value))
    assert "\n" not in str(error.value) and ".cc" not in str(error.value)


def test_another_rank_reads_what_the_first_has_compiled(backend):
    compiled, data = backend.compile("json_schema", json.dumps(PERSON)).result(120)
    other = type(backend)(FOLDER, V, EOS)
    other.prepare()
    read = other.load("json_schema", json.dumps(PERSON), data)
    assert read.nbytes == compiled.nbytes > 0
    rng, one, two = random.Random(5), compiled.begin(), read.begin()
    for _ in range(60):
        tokens = next_tokens(one)
        assert next_tokens(two) == tokens
        token = rng.choice(sorted(tokens - set(EOS) or tokens))
        assert one.accept(token) and two.accept(token)
        if one.ended:
            break


@pytest.mark.parametrize("Backend", BACKENDS)
def test_limits(Backend, monkeypatch):
    """Neither library can be interrupted, and both take minutes over these; others take what they take alone."""
    monkeypatch.setattr(Backend, "seconds", 3.0)
    monkeypatch.setattr(compiling_backend, "MAX_COMPILED_BYTES", 100_000)
    backend = Backend(FOLDER, V, EOS)
    begin(backend, "regex", "[0-9]")
    slow = [backend.compile("regex", ".*" * (n + 20000)) for n in range(3)]
    assert begin(backend, "regex", "[0-9]{3}") and not any(future.done() for future in slow)
    if Backend is XGrammarBackend:
        with pytest.raises(GrammarError, match="takes .* bytes when it is compiled, at most 100000"):
            begin(backend, "regex", ".*" * 50)
    for future in slow:
        with pytest.raises(GrammarError, match="regex cannot be compiled: it takes more than 3 s"):
            future.result(60)


def test_llguidance_reads_its_own_grammars(tokenizer):
    lark = 'start: "yes" | "no" REST\nREST: /[a-z]+/'
    grammar = begin(LLGuidanceBackend(FOLDER, V, EOS), "ebnf", lark)
    assert all(grammar.accept(token) for token in tokenizer.encode("nobody", False))


def test_without_eos_the_end_is_the_end():
    grammar = begin(XGrammarBackend(FOLDER, V, []), "regex", "[0-9]")
    assert grammar.accept(min(next_tokens(grammar))) and grammar.ended


@pytest.mark.parametrize("Backend", BACKENDS)
def test_without_the_library(Backend, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"--grammar-backend {Backend.library}: .* --grammar-backend none"):
        Backend(FOLDER, V, EOS)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
