"""Grammars of calls: what the chat template would write for arguments that satisfy a schema gets through and is read
back as it was, anything else does not; and what is wrong with a schema is said with its place."""

import copy
import json
import sys
from pathlib import Path

import jsonschema
import llguidance
import numpy as np
import pytest
import xgrammar
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglang.srt.constrained import gemma4_schema
from sglang.srt.constrained.compile_process import CompilerSettings
from sglang.srt.constrained.gemma4_calls import CallMarks, Function, call_grammar
from sglang.srt.constrained.grammar import Grammar, GrammarError, mask_words
from sglang.srt.constrained.llguidance_backend import LLGuidanceCompiled
from sglang.srt.constrained.llguidance_compile import check_grammar, load_tokens
from sglang.srt.constrained.xgrammar_backend import XGrammarCompiled
from sglang.srt.constrained.xgrammar_compile import read, tokenizer_info
from sglang.srt.parser.events import CallArguments, Mark, Piece
from sglang.srt.parser.gemma4 import CALL, CALL_END, STRING, Gemma4Parser
from sglang.srt.server_args import ServerArgs, model_folder
from sglang.srt.utils.tokenizer import Tokenizer
from sglang.test.ci.ci_register import register_cpu_ci
from sglang.test.fake_grammar import allowed
from sglang.test.gemma4_calls import call, ids_of, text_of

register_cpu_ci(est_time=60, suite="base-a-test-cpu")

FOLDER = model_folder(ServerArgs())
TOKENIZER = Tokenizer(FOLDER)
BEGIN, END, QUOTE, RESULT, TURN_END = TOKENIZER.special_ids_of(
    ["<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>", "<turn|>"]
)
MARKS = CallMarks(BEGIN, END, QUOTE, RESULT)
V = TOKENIZER.size + 7
SETTINGS = CompilerSettings(FOLDER, V, [TURN_END], 1 << 26, 30.0)
COMPILER = xgrammar.GrammarCompiler(tokenizer_info(SETTINGS))
TOKENS = load_tokens(SETTINGS)
OUTPUTS = json.loads((Path(__file__).parent.parent / "parser" / "gemma4_outputs.json").read_text(encoding="utf-8"))


LIBRARY = "xgrammar"


@pytest.fixture(autouse=True, scope="module", params=["xgrammar", "llguidance"])
def library(request):
    global LIBRARY
    LIBRARY = request.param


def compiled(kind: str, text: str) -> Grammar:
    if LIBRARY == "xgrammar":
        return XGrammarCompiled(COMPILER.compile_grammar(read(kind, text)), [TURN_END]).begin()
    lark = check_grammar(TOKENS, kind, text).decode()
    return LLGuidanceCompiled(llguidance.LLMatcher(TOKENS, lark, log_level=0), TOKENS).begin()


def grammar_of(schema, **options):
    functions = [Function("f", schema, "tools[0].function.parameters")]
    return compiled("tools", call_grammar(functions, MARKS, **{"many": False, "free": False} | options))


def takes(grammar, pieces: list[Piece]) -> bool:
    return all(map(grammar.accept, ids_of(pieces, TOKENIZER))) and grammar.accept(TURN_END)


def next_tokens(grammar) -> set[int]:
    mask = np.zeros(mask_words(V), dtype=np.int32)
    grammar.fill(mask)
    return allowed(mask, V)


def matches(schema, arguments) -> bool:
    return takes(grammar_of(schema), call("f", arguments))


@pytest.mark.parametrize("case", [c for c in OUTPUTS if c["class"] == "grammar"], ids=lambda case: case["note"])
def test_calls_are_written_as_the_template_does(case):
    """The recorded outputs were made by it."""
    for c in case["expected"]["tool_calls"]:
        assert text_of(call(c["name"], c["arguments"])) in case["raw"]


# ---- any schema, any value ---------------------------------------------------------------------------------------

NAMES = ["a", "ab", "b", "B2", "k-1", "x y", "ä", "a.long_name", "x'y", "1"]
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["", "}", "a,b:c", "true", '"', "\n\t", "<|tool_call>", '<|"|>x', "[1]", "日本"]
)
INTEGERS = st.integers(-(10**6), 10**6) | st.just(123456789012345678901234567890)
DECIMALS = st.integers(-4000, 4000).filter(lambda n: n % 8).map(lambda n: n / 8)
NUMBERS = INTEGERS | DECIMALS | st.sampled_from([1e-07, 1e20 + 2e5, -2.5e-9])
SCALARS = TEXTS | NUMBERS | st.booleans() | st.none()
ANY = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(NAMES), v, max_size=3), max_leaves=5
)
PATTERNS = {
    "^[a-c]{2,4}$": st.text("abc", min_size=2, max_size=4),
    "x\\d+$": st.from_regex("[yé\n]{0,2}x[0-9]{1,3}", fullmatch=True),
    "^(ab|c/d)": st.sampled_from(["ab", "abx", "c/d", "c/d\n"]),
}


@st.composite
def bounded(draw, kind: str):
    """A number's schema, and its values."""
    low = draw(st.none() | st.integers(-500, 500))
    high = draw(st.none() | st.integers(low if low is not None else -500, 600))
    schema = {"type": kind}
    if low is not None:
        schema["minimum"] = low
    if high is not None:
        schema["maximum"] = high
    values = st.integers(low, high) if low is not None or high is not None else INTEGERS
    if kind == "number" and low is not None and high is not None and low < high:
        values |= st.integers(low * 8, high * 8).map(lambda n: n / 8).filter(lambda x: x != int(x))
    return schema, values


@st.composite
def strings(draw):
    match draw(st.integers(0, 3)):
        case 0:
            return {"type": "string"}, TEXTS
        case 1:
            low = draw(st.integers(0, 3))
            return {"minLength": low, "maxLength": low + 2, "type": "string"}, TEXTS.filter(
                lambda s: low <= len(s) <= low + 2
            )
        case 2:
            pattern = draw(st.sampled_from(list(PATTERNS)))
            return {"type": "string", "pattern": pattern}, PATTERNS[pattern]
    return {"type": "string", "format": "date"}, st.dates().map(str)


@st.composite
def objects(draw, inner):
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    parts = {name: draw(inner) for name in names}
    required = [name for name in names if draw(st.booleans())]
    schema = {"type": "object", "properties": {n: s for n, (s, _) in parts.items()}, "required": required}
    values = st.fixed_dictionaries(
        {n: parts[n][1] for n in required}, optional={n: v for n, (_, v) in parts.items() if n not in required}
    )
    if draw(st.booleans()):
        other, other_values = draw(inner)
        schema["additionalProperties"] = other
        others = st.dictionaries(st.sampled_from([n for n in NAMES if n not in names]), other_values, max_size=2)
        values = st.builds(lambda a, b: a | b, values, others)
    return schema, values


@st.composite
def arrays(draw, inner):
    schema, values = draw(inner)
    low = draw(st.integers(0, 2))
    high = draw(st.none() | st.integers(low, 3))
    heads = [draw(inner) for _ in range(draw(st.sampled_from([0, 0, 1, 2])))]
    if heads and (high is None or high >= len(heads)):
        whole = {"type": "array", "prefixItems": [s for s, _ in heads], "items": schema, "minItems": low}
        more = st.lists(values, min_size=max(0, low - len(heads)), max_size=None if high is None else high - len(heads))
        return whole | ({} if high is None else {"maxItems": high}), st.builds(
            lambda a, b: [*a, *b], st.tuples(*(v for _, v in heads)), more
        )
    bounds = {"minItems": low} | ({} if high is None else {"maxItems": high})
    return {"type": "array", "items": schema} | bounds, st.lists(
        values, min_size=low, max_size=3 if high is None else high
    )


@st.composite
def composed(draw, inner):
    (a, a_values), (b, b_values) = draw(inner), draw(inner)
    match draw(st.integers(0, 3)):
        case 0:
            return {"anyOf": [a, b]}, a_values | b_values
        case 1:
            return {"anyOf": [a, {"type": "null"}]}, a_values | st.none()
        case 2:
            return {"allOf": [a]}, a_values
    return {"$ref": "#/$defs/node"}, st.just([]) | st.just([[], [[]]])


NODE = {"type": "array", "items": {"$ref": "#/$defs/node"}}
LEAVES = st.one_of(
    bounded("integer"),
    bounded("number"),
    strings(),
    st.just(({"type": "boolean"}, st.booleans())),
    st.just(({"type": ["integer", "null", "string"]}, INTEGERS | st.none() | TEXTS)),
    st.just(({}, ANY)),
    st.lists(ANY, min_size=1, max_size=3).map(lambda values: ({"enum": values}, st.sampled_from(values))),
    SCALARS.map(lambda value: ({"const": value}, st.just(value))),
)
SCHEMAS = st.recursive(LEAVES, lambda s: objects(s) | arrays(s) | composed(s), max_leaves=6)
PARAMETERS = objects(SCHEMAS).map(lambda pair: ({**pair[0], "$defs": {"node": NODE}}, pair[1]))


def closed(schema):
    """The schema with what is left out said: beside its properties an object has no others."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    literal = {k: v for k, v in schema.items() if k in ("enum", "const")}
    return rest | {k: closed(v) for k, v in schema.items()} | literal


@st.composite
def changed(draw, value):
    """The value with something else in one place."""
    value = copy.deepcopy(value)
    holders = [value]
    for holder in holders:
        parts = holder.values() if isinstance(holder, dict) else holder
        holders += [part for part in parts if isinstance(part, dict | list)]
    holder = draw(st.sampled_from(holders))
    if isinstance(holder, list):
        if holder and draw(st.booleans()):
            holder[draw(st.integers(0, len(holder) - 1))] = draw(ANY)
        else:
            holder.append(draw(ANY))
    elif holder and draw(st.booleans()):
        del holder[draw(st.sampled_from(sorted(holder)))]
    else:
        holder[draw(st.sampled_from(NAMES))] = draw(ANY)
    return value


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_satisfies_a_schema_gets_through_and_nothing_else(data):
    schema, values = data.draw(PARAMETERS)
    arguments = data.draw(values)
    validator = jsonschema.Draft202012Validator(closed(schema), format_checker=jsonschema.FormatChecker())
    validator.validate(arguments)
    pieces = call("f", arguments)
    grammar = grammar_of(schema)
    for token in ids_of(pieces, TOKENIZER):
        assert token in next_tokens(grammar) and grammar.accept(token), (pieces, schema)
    assert next_tokens(grammar) == {TURN_END, RESULT}
    events = Gemma4Parser().push(pieces, final=True)
    assert json.loads("".join(e.text for e in events if isinstance(e, CallArguments))) == arguments
    other = data.draw(changed(arguments))
    assume(not has_odd_numbers(other))
    assert matches(schema, other) is validator.is_valid(other), (other, schema)


def has_odd_numbers(value) -> bool:
    """Those that a bounded schema takes only in another writing: with an exponent."""
    if isinstance(value, dict | list):
        return any(map(has_odd_numbers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and "e" in str(value)


# ---- chosen cases ------------------------------------------------------------------------------------------------

PAIR = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
MAP = {"type": "object", "additionalProperties": {"type": "integer"}}
TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["v", "next"],
}


@pytest.mark.parametrize(
    "schema,good,bad",
    [
        (PAIR, [{"b": 1}, {"a": "", "b": -2}], [{}, {"a": "x"}, {"b": 1.5}, {"b": 1, "c": 2}, {"b": None}]),
        (PAIR | {"additionalProperties": True}, [{"b": 1, "c": [2]}, {"B0": {}, "b": 1}], [{"c": 1}, {"b": "x"}]),
        (MAP, [{}, {"x y": 1, "日": 2}], [{"x": "1"}, {"x": 1.0}]),
        (MAP | {"minProperties": 1, "maxProperties": 2}, [{"x": 1}], [{}, {"x": 1, "y": 2, "z": 3}]),
        ({"type": "object"}, [{}, {"x": [1, {"y": None}], "z": 'a"b'}], []),
        ({"properties": {}}, [{}], [{"x": 1}]),
        (TREE, [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}}], [{"v": 1, "next": {}}]),
        ({"required": ["x"]}, [{"x": [1]}, {"x": "y", "z": 1}], [{}, {"z": 1}]),
        (
            {"properties": {"n": {"type": "integer", "exclusiveMinimum": 0, "maximum": 10.5}}},
            [{"n": 1}, {"n": 10}],
            [{"n": 0}, {"n": 11}, {"n": -1}],
        ),
        ({"properties": {"n": {"type": "number", "minimum": 0, "exclusiveMinimum": True}}}, [{"n": 0.5}], [{"n": 0}]),
        ({"properties": {"n": {"minimum": 5, "exclusiveMinimum": 5}}}, [{"n": 6}], [{"n": 5}]),
        ({"properties": {"n": {"type": "integer", "minimum": -(2**60)}}}, [{"n": -5}, {"n": 5}], [{"n": 0.5}]),
        ({"properties": {"s": {"type": "string", "nullable": True}}}, [{"s": None}, {"s": "x"}], [{"s": 1}]),
        ({"properties": {"s": {"enum": ["x", None, 1, [{}]]}}}, [{"s": [{}]}, {"s": None}], [{"s": "1"}, {"s": []}]),
        ({"properties": {"s": {"enum": ["x", 1], "type": "string"}}}, [{"s": "x"}], [{"s": 1}]),
        ({"properties": {"s": {"enum": ["x", "y"], "const": "y"}}}, [{"s": "y"}], [{"s": "x"}]),
        ({"properties": {"s": {"enum": ["\x1f0", "a\x7f\tf\x85b", "\xa00é1\u200b2"]}}},
         [{"s": "\x1f0"}, {"s": "a\x7f\tf\x85b"}, {"s": "\xa00é1\u200b2"}], [{"s": "\u01f0"}]),
        ({"properties": {"s": {"format": "uuid"}}}, [{"s": "123e4567-e89b-12d3-a456-426614174000"}], [{"s": "1-2"}]),
        ({"properties": {"s": {"format": "date-time"}}}, [{"s": "2026-01-31T23:59:59.5Z"}], [{"s": "2026-01-31"}]),
        ({"properties": {"s": {"format": "time"}}}, [{"s": "01:02:03+01:00"}], [{"s": "24:00:00Z"}]),
        ({"properties": {"s": {"type": "string", "format": "uri"}}}, [{"s": "not enforced"}], [{"s": 1}]),
        ({"properties": {"s": {"pattern": "^(?=a)"}}}, [{"s": "not enforced"}], [{"s": 1}]),
        ({"properties": {"s": {"pattern": "\\p{L}"}}}, [{"s": "not enforced"}], [{"s": 1}]),
        ({"properties": {"s": {"pattern": "^$"}}}, [{"s": ""}], [{"s": "a"}]),
        ({"properties": {"s": {"pattern": "^a|b$"}}}, [{"s": "ax"}, {"s": "xb"}], [{"s": "xa"}, {"s": "bx"}]),
        ({"properties": {"s": {"pattern": "^[^\\d\\s]\\W$"}}}, [{"s": "x!"}, {"s": "é "}], [{"s": "1!"}]),
        ({"properties": {"s": {"type": "string", "maxLength": 0}}}, [{"s": ""}], [{"s": "a"}]),
        ({"properties": {"l": {"type": "array", "maxItems": 0}}}, [{"l": []}], [{"l": [1]}]),
        (
            {"properties": {"l": {"type": "array", "items": {"type": "boolean"}, "maxItems": 1}}},
            [{"l": []}, {"l": [True]}],
            [{"l": [True, False]}],
        ),
        ({"maxProperties": 10**29, "properties": {"l": {"maxItems": 1e300}, "s": {"maxLength": 10**9}}},
         [{}, {"l": [1]}, {"s": "x"}], [{"s": 1}]),
        ({"properties": {"l": {"prefixItems": [{"type": "integer"}, {"const": 2}], "items": False}}},
         [{"l": []}, {"l": [5]}, {"l": [5, 2]}], [{"l": [5, 3]}, {"l": [5, 2, 1]}]),
        ({"properties": {"l": {"items": [{"type": "integer"}, {"const": 2}], "minItems": 2}}},
         [{"l": [5, 2]}, {"l": [5, 2, "x"]}], [{"l": [5]}]),
        ({"properties": {"x": False, "y": {"type": "null"}}}, [{}, {"y": None}], [{"x": 1}]),
        ({"properties": {"x": {"anyOf": [False, {"type": "boolean"}]}}}, [{"x": True}], [{"x": 1}]),
        ({"properties": {"x": {"$ref": "#/$defs/a~1b/0"}}, "$defs": {"a/b": [{"const": 1}]}}, [{"x": 1}], [{"x": 2}]),
        ({"properties": {"x": {"$ref": "#/$defs/n", "maximum": 3}}, "$defs": {"n": {"type": "integer", "minimum": 2}}},
         [{"x": 2}, {"x": 3}], [{"x": 1}, {"x": 4}]),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {"const": 1}, "b": {"const": 2}}},
         [{"a": 1}, {"b": 2}, {"a": 1, "b": 2}], [{}, {"a": 2}]),
        ({"allOf": [PAIR, {"properties": {"c": {"type": "null"}}, "required": ["c"]}]},
         [{"b": 1, "c": None}], [{"b": 1}, {"c": None}]),
        ({"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False}, [{"x": 1}], [{"x": "a"}]),
    ],
)  # fmt: skip
def test_what_matches_and_what_does_not(schema, good, bad):
    for arguments in good:
        assert matches(schema, arguments), arguments
    for arguments in bad:
        assert not matches(schema, arguments), arguments


def test_the_order_of_the_template_alone():
    def order(*names: str) -> bool:
        pairs = ",".join(f"{name}:1" for name in names)
        properties = dict.fromkeys(["b", "C", "a"], {"type": "integer"})
        return takes(grammar_of({"properties": properties}), [CALL, f"call:f{{{pairs}}}", CALL_END])

    assert order("a", "b", "C") and order("a", "C") and order()
    assert not order("b", "a") and not order("C", "b") and not order("a", "a")


def test_several_functions_and_calls():
    functions = [Function("f", {"properties": {}}, "f"), Function("ff", {"required": ["x"]}, "ff")]

    def taken(*calls, many: bool) -> bool:
        grammar = compiled("tools", call_grammar(functions, MARKS, many=many, free=False))
        return takes(grammar, [piece for c in calls for piece in c])

    f, ff = call("f", {}), call("ff", {"x": "a"})
    assert taken(f, many=False) and taken(ff, many=False) and taken(f, ff, f, many=True)
    assert not taken(f, f, many=False) and not taken(many=True) and not taken(call("f", {"x": "a"}), many=True)
    assert not taken(call("g", {}), many=True) and not taken([CALL, " call:f{}", CALL_END], many=True)
    assert not taken(f, ["x"], many=True) and not taken(["x"], f, many=True)


def test_the_letters_of_a_mark_are_no_mark():
    grammar = grammar_of(PAIR)
    assert next_tokens(grammar) == {BEGIN}
    assert not grammar.accept(TOKENIZER.encode("<", False)[-1])
    grammar.accept(BEGIN)
    for token in TOKENIZER.encode("call:f{a:", False):
        assert grammar.accept(token)
    assert next_tokens(grammar) == {QUOTE}
    assert grammar.accept(QUOTE)
    special = TOKENIZER.special_ids - {QUOTE}
    assert not next_tokens(grammar) & special and len(next_tokens(grammar)) > 1500


def test_free_text_around_calls():
    grammar = grammar_of(PAIR, free=True)
    everything = set(range(TOKENIZER.size))
    assert next_tokens(grammar) == everything
    assert all(
        map(grammar.accept, ids_of(["So ", Mark("<|channel>"), CALL_END, STRING, *call("f", {"b": 1})], TOKENIZER))
    )
    assert next_tokens(grammar) == everything and not grammar.ended
    assert grammar.accept(BEGIN) and next_tokens(grammar) < everything
    assert not takes(grammar, ["call:g{}"])


def test_others_than_strict_ones_are_well_formed():
    grammar = grammar_of(None, free=True)
    assert takes(grammar, call("f", {"x": [1, {"y": "z"}]}))
    assert not takes(grammar_of(None), [CALL, 'call:f{"x":1}', CALL_END])


def test_calls_or_an_answer_in_form():
    text = call_grammar([Function("f", PAIR, "f")], MARKS, many=True, free=False)
    kinds = {"json_schema": '{"type": "integer"}', "regex": "[a-z]+/", "ebnf": 'root ::= "a" "b"'}
    for (kind, form), answer in zip(kinds.items(), ("12", "abc/", "ab"), strict=True):
        both = json.dumps([form, text])
        assert takes(compiled(f"{kind} or tools", both), [answer])
        assert takes(compiled(f"{kind} or tools", both), call("f", {"b": 1}) * 2)
        assert not takes(compiled(f"{kind} or tools", both), [answer, *call("f", {"b": 1})])


def test_structural_tags():
    """White space in their JSON is bounded; beside one, calls may come."""
    content = {"type": "json_schema", "json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    tags = [{"type": "tag", "begin": "<f>", "content": content, "end": "</f>"}]
    form = {"type": "triggered_tags", "triggers": ["<f>"], "tags": tags, "at_least_one": True, "stop_after_first": True}
    tag = json.dumps({"type": "structural_tag", "format": form})
    if LIBRARY == "llguidance":
        with pytest.raises(GrammarError, match="only --grammar-backend xgrammar reads it"):
            compiled("structural_tag", tag)
        return
    assert takes(compiled("structural_tag", tag), ['<f>{"a": 1}</f>'])
    assert not takes(compiled("structural_tag", tag), ["<f>[]</f>"])
    assert not takes(compiled("structural_tag", tag), [f'<f>{{{chr(10) * 30}"a": 1}}</f>'])
    both = json.dumps([tag, call_grammar([Function("f", PAIR, "f")], MARKS, many=True, free=False)])
    assert takes(compiled("structural_tag or tools", both), ['<f>{"a": 1}</f>'])
    assert takes(compiled("structural_tag or tools", both), call("f", {"b": 1}))


@pytest.mark.parametrize(
    "schema,message",
    [
        ([], "tools[0].function.parameters must be an object, got []"),
        ({"type": "string"}, "tools[0].function.parameters: no arguments satisfy it"),
        ({"properties": {"a": {"type": "foo"}}}, ".properties.a.type is 'foo'; one of string, number"),
        ({"properties": {"a": {"type": []}}}, ".properties.a.type is an empty list"),
        ({"properties": {"a": 5}}, ".properties.a is 5; a schema is expected"),
        ({"properties": []}, ".properties must be an object of schemas"),
        ({"properties": {"a:b": {}}}, ".properties has the name 'a:b', which no call can hold"),
        ({"properties": {" a": {}}}, ".properties has the name ' a'"),
        ({"properties": {"'a'": {}}}, ".properties has the name \"'a'\""),
        ({"properties": {"": {}}}, ".properties has the name ''"),
        ({"properties": {"a" * 64: {}}}, "1 to 63 characters are possible"),
        ({"properties": {"a": {"minimum": 5, "maximum": 1}}}, '.a: no number satisfies {"minimum": 5, "maximum": 1}'),
        ({"properties": {"a": {"type": "integer", "minimum": 1.2, "exclusiveMaximum": 2}}}, "no integer satisfies"),
        ({"properties": {"a": {"minimum": "5"}}}, ".a.minimum is '5'; a number is expected"),
        ({"properties": {"a": {"minimum": 1e300}}}, ".a: numbers beyond"),
        ({"properties": {"a": {"minLength": 5, "maxLength": 1}}}, ".a: minLength 5 is above maxLength 1"),
        ({"properties": {"a": {"minItems": -1}}}, ".a.minItems is -1; a count is expected"),
        ({"properties": {"a": {"minItems": 10**9}}}, ".a.minItems is 1000000000; no answer has more than 1000000"),
        ({"properties": {"a": {"enum": []}}}, ".a.enum must be a list of values"),
        ({"properties": {"a": {"enum": [1], "type": "string"}}}, ".a: of enum and const no value is left"),
        ({"properties": {"a": {"enum": ["\0"]}}}, ".a holds a NUL character, at 0"),
        ({"properties": {"a": {"pattern": "(a"}}}, ".a.pattern is no regular expression: missing )"),
        ({"properties": {"a": {"pattern": 5}}}, ".a.pattern must be text"),
        ({"properties": {"a": {"anyOf": {}}}}, ".a.anyOf must be a list of schemas"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, ".a.$ref is '#/$defs/b', which is no place in the schema"),
        ({"properties": {"a": {"$ref": "http://x/y"}}}, ".a.$ref is 'http://x/y'; only places in the same schema"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}, ": no arguments satisfy it"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ": no arguments satisfy it"),
        ({"properties": {"a": {"allOf": [{"type": "string"}, {"type": "null"}]}}}, ".a.allOf[1] contradicts"),
        ({"properties": {"a": {"allOf": [{"pattern": "a"}, {"pattern": "b"}]}}}, ".a.allOf[1]: pattern is said twice"),
        ({"properties": {"a": {}}, "required": ["b"], "additionalProperties": False}, ".required has 'b'"),
        ({"required": "a"}, ".required must be a list of names"),
        ({"properties": {str(i): {"enum": [i]} for i in range(4001)}}, "the schema is too large"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(schema, message):
    with pytest.raises(GrammarError) as error:
        grammar_of(schema)
    assert message in str(error.value) and str(error.value).startswith("tools[0].function.parameters")
    assert "\n" not in str(error.value)


def schema_like(values):
    keys = sorted(gemma4_schema.CONSTRAINTS)
    known = st.sampled_from([*gemma4_schema.TYPES, "#", "#/properties/a", "#/anyOf/0", ["a"], ["null", "string"]])
    return st.dictionaries(st.sampled_from([*keys, "a"]), values | known, max_size=3)


JSON = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | schema_like(v), max_leaves=12)


@settings(max_examples=300, deadline=None)
@given(schema_like(JSON))
def test_whatever_comes_is_a_grammar_or_refused(schema):
    try:
        grammar_of(schema)
    except GrammarError as e:
        assert "tools cannot be compiled" not in str(e), "what is wrong is found before the library"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
