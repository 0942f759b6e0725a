"""Gemma 4's output as events: every known form of a call, cut anywhere, and nothing of an answer lost."""

import json
import string
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.parser.events import CallArguments, CallEnd, CallStart, Event, Mark, Piece, Text, Thought
from sglang.srt.parser.gemma4 import MARKS, Gemma4Parser, split_marks
from sglang.srt.parser.gemma4_arguments import MAX_DEPTH
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=4, suite="unit-test-cpu")

OUTPUTS = json.loads((Path(__file__).parent / "gemma4_outputs.json").read_text(encoding="utf-8"))
Q = '<|"|>'


def parse(pieces: list[Piece], sizes: list[int] | None = None, **options) -> list[Event]:
    """All events of an answer that comes `sizes` pieces at a time, those of one kind joined and without their ids."""
    parser, events, at = Gemma4Parser(**options), [], 0
    for size in sizes or [len(pieces)]:
        events += parser.push(pieces[at : at + size])
        at += size
    events += parser.push(pieces[at:], final=True)
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, CallStart):
            assert event.id.startswith("call_") and len(event.id) == 29
            joined.append(CallStart(event.index, "", event.name))
        elif isinstance(event, Text | Thought) and type(last) is type(event):
            joined[-1] = type(event)(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            joined[-1] = CallArguments(event.index, last.text + event.text)
        else:
            joined.append(event)
    return joined


def message(events: list[Event]) -> dict:
    """The answer in OpenAI's form."""
    text = "".join(e.text for e in events if isinstance(e, Text))
    thought = "".join(e.text for e in events if isinstance(e, Thought))
    names = {e.index: e.name for e in events if isinstance(e, CallStart)}
    arguments = {i: "".join(e.text for e in events if isinstance(e, CallArguments) and e.index == i) for i in names}
    complete = [e.index for e in events if isinstance(e, CallEnd)]
    calls = [{"name": names[i], "arguments": json.loads(arguments[i])} for i in complete]
    return {"content": text or None, "reasoning_content": thought or None, "tool_calls": calls}


def characters(pieces: list[Piece]) -> list[Piece]:
    return [p for piece in pieces for p in ([piece] if isinstance(piece, Mark) else piece)]


def call_of(arguments: str, **options) -> dict:
    """The arguments of the only call, as they come out of `{arguments}`."""
    (call,) = message(parse(split_marks(f"<|tool_call>call:f{{{arguments}}}<tool_call|>"), **options))["tool_calls"]
    return call["arguments"]


@pytest.mark.parametrize("case", OUTPUTS, ids=[case["note"] for case in OUTPUTS])
def test_recorded_outputs(case):
    pieces = split_marks(case["raw"])
    options = {"open_thought": case.get("options", {}).get("open_thought", False)}
    whole = parse(pieces, **options)
    expected = {name: case["expected"][name] for name in ("content", "reasoning_content")}
    calls = [{"name": c["name"], "arguments": c["arguments"]} for c in case["expected"]["tool_calls"]]
    assert message(whole) == {**expected, "tool_calls": calls}
    single = characters(pieces)
    assert parse(single, [1] * len(single), **options) == whole
    for at in range(len(single)):
        assert parse(single, [at], **options) == whole


# ---- arguments ----------------------------------------------------------------------------------------------------

KEYS = st.text(st.characters(exclude_characters=":{}[],'\"\n\r\t ", exclude_categories=["Cs"]), min_size=1, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def written(value: object) -> list[Piece]:
    """As the chat template writes it."""
    if isinstance(value, str):
        return [Mark(Q), value, Mark(Q)]
    if isinstance(value, dict):
        items = [[f"{key}:", *written(inner)] for key, inner in value.items()]
        return ["{", *_joined(items), "}"]
    if isinstance(value, list):
        return ["[", *_joined([written(inner) for inner in value]), "]"]
    return [{None: "null", True: "true", False: "false"}[value] if value is None or value is True or value is False
            else str(value)]  # fmt: skip


def _joined(items: list[list[Piece]]) -> list[Piece]:
    return [piece for i, item in enumerate(items) for piece in ([","] if i else []) + item]


@settings(max_examples=300, deadline=None)
@given(arguments=st.dictionaries(KEYS, VALUES, max_size=4), data=st.data())
def test_whatever_the_template_can_write_is_read_back_however_it_is_cut(arguments, data):
    pieces = [Mark("<|tool_call>"), "call:some.tool-1", *written(arguments), Mark("<tool_call|>")]
    events = parse(pieces)
    assert message(events) == {
        "content": None, "reasoning_content": None, "tool_calls": [{"name": "some.tool-1", "arguments": arguments}],
    }  # fmt: skip
    single = characters(pieces)
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=len(single)))
    assert parse(single, sizes) == events


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (f"a:one, two{Q},b:1", {"a": "one, two", "b": 1}),  # the opening quote is lost
        (f"a:one,{Q}b{Q}:1", {"a": "one", "b": 1}),
        ("a:'x',o:{'k': 'v'}", {"a": "x", "o": {"k": "v"}}),
        ('a:"x" and "y",b:2', {"a": '"x" and "y"', "b": 2}),
        ('a:"never closed', {"a": "never closed}"}),
        ("a:007,b:1.,c:+1,d:nan,e:1e5,f:-0", {"a": "007", "b": "1.", "c": "+1", "d": "nan", "e": 1e5, "f": 0}),
        ("a:True,b:None,c:", {"a": True, "b": None, "c": None}),
        ("a", {"a": None}),
        (",a:1,,b:2,", {"a": 1, "b": 2}),
        (f"a:{Q}{{[{Q}}}{Q}", {"a": "{["}),  # the rest is no part of this call
        (f"a:[{Q}x{Q}}}{Q}]", {"a": ['x"}']}),
        (f"a:{Q}x{Q} , b : [ 1 , {Q}y{Q} ] ", {"a": "x", "b": [1, "y"]}),
        (f"a:{Q}f({Q}x{Q}, end={Q}{Q}){Q}", {"a": 'f("x", end="")'}),
        (f"a:{Q}<turn|{Q}", {"a": "<turn|"}),
    ],
)
def test_what_models_make_of_the_grammar(text, arguments):
    assert call_of(text) == arguments


def test_depth_has_a_bound():
    deep = call_of("a:" + "[" * 5000)
    for _ in range(MAX_DEPTH):
        ((deep,),) = (deep.values(),) if isinstance(deep, dict) else (deep,)
    assert isinstance(deep, str | list)


def test_long_arguments_take_time_in_proportion():
    commas = "a:" + "x," * 50_000
    assert call_of(f"{commas}{Q}")
    assert call_of(f"b:{Q}" + f"y{Q} " * 50_000 + Q)["b"].count('"') == 50_000


def test_a_string_grows_as_it_comes():
    parser = Gemma4Parser()
    parser.push([Mark("<|tool_call>"), "call:f{a:", Mark(Q)])
    assert parser.push(["one "]) == [CallArguments(0, "one ")]
    assert parser.push(['"two"\n']) == [CallArguments(0, '\\"two\\"\\n')]
    assert parser.push([Mark(Q)]) == []  # it may be a quotation mark of the text
    assert parser.push(["}"]) == [CallArguments(0, '"}'), CallEnd(0)]


# ---- answers, thoughts, calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "content", "thought", "names"),
    [
        ("Let me look. \n<|tool_call>call:f{}<tool_call|>", "Let me look.", None, ["f"]),
        ("Only spaces behind \n<turn|>", "Only spaces behind \n", None, []),
        ("<|tool_call>call:f{}<tool_call|>\n<|tool_call>call:g{}<tool_call|>\n<turn|>", None, None, ["f", "g"]),
        ("<|tool_call>call:f{}}<tool_call|>Done.", "Done.", None, ["f"]),
        ("<|tool_call>call:f{a:1} and so on", " and so on", None, ["f"]),
        ("<|tool_call>:f{a:1}<tool_call|>", None, None, ["f"]),
        ("<|tool_call>f{a:1}<tool_call|>", None, None, ["f"]),
        ("<|tool_call>call:f<tool_call|>", None, None, ["f"]),
        ("<|tool_call>call:f(a=1)<tool_call|>", "call:f(a=1)", None, []),  # better shown than lost
        ("<|tool_call>call:f{a:[1,{b:2<tool_call|>ok", "ok", None, ["f"]),  # ended by its mark
        ("<|tool_call>call:f{a:1<|tool_call>call:g{}<tool_call|>", None, None, ["f", "g"]),
        (f"He said {Q}hi{Q}.", 'He said "hi".', None, []),
        ("a <tool_call|>b<channel|>c", "a bc", None, []),
        ("<|channel>thought\nHm.\n\n<channel|>Yes.", "Yes.", "Hm.\n", []),
        ("<|channel>thought<channel|>Yes.", "Yes.", None, []),
        ("<|channel>final\nYes.<channel|>", None, "final\nYes.", []),
        ("<|channel>thought\nI need f.<|tool_call>call:f{}<tool_call|>", None, "I need f.", ["f"]),
        ("<|channel>thought\nnever closed", None, "never closed", []),
        ("<|channel>thou", None, None, []),
        ("A literal &lt;tool_call&gt;", "A literal &lt;tool_call&gt;", None, []),
    ],
)  # fmt: skip
def test_answers_thoughts_and_calls(raw, content, thought, names):
    pieces = split_marks(raw)
    got = message(parse(pieces))
    assert (got["content"], got["reasoning_content"]) == (content, thought)
    assert [call["name"] for call in got["tool_calls"]] == names
    single = characters(pieces)
    assert parse(single, [1] * len(single)) == parse(pieces)


def test_marks_in_plain_text_are_text():
    text = "Write <|tool_call>call:f{}<tool_call|> to call f."
    assert parse([text]) == [Text(text)]


def test_without_tools_or_thoughts_their_marks_are_hidden():
    raw = split_marks("<|channel>thought\nHm.<channel|>So <|tool_call>call:f{}<tool_call|>.")
    assert message(parse(raw, calls=False))["content"] == "So call:f{}."
    assert message(parse(raw, thoughts=False))["content"] == "thought\nHm.So."


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(sorted(MARKS, key=str))
        | st.sampled_from(["call:f{", "thought\n", "}", ",", "a:", "[", "]", "\n"])
        | st.text(string.printable, max_size=6),
        max_size=30,
    ),
    sizes=st.lists(st.integers(1, 5), max_size=30), open_thought=st.booleans(),
)  # fmt: skip
def test_anything_is_something_and_cuts_do_not_matter(pieces, sizes, open_thought):
    whole = parse(pieces, open_thought=open_thought)
    message(whole)  # complete calls have JSON objects
    single = characters(pieces)
    assert parse(single, sizes or None, open_thought=open_thought) == whole
    starts = [e.index for e in whole if isinstance(e, CallStart)]
    assert starts == list(range(len(starts)))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
