"""tools and tool_choice as requests have them: what may be called, and what is wrong with them, by its place."""

import sys

import pytest

from sglang.srt.entrypoints.chat_prompt import Turn
from sglang.srt.entrypoints.tool_choice import MAX_SCHEMA_BYTES, NO_PARAMETERS, read_tool_choice
from sglang.srt.managers.generation import RequestError
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


def tool(name: str, **fields) -> dict:
    return {"type": "function", "function": {"name": name} | fields}


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
F, G, STRICT = tool("f", parameters=SCHEMA), tool("g"), tool("s", parameters=SCHEMA, strict=True)


def read(tools, choice=None):
    return read_tool_choice(Turn(messages=[], tools=tools, tool_choice=choice))


@pytest.mark.parametrize(
    "choice,names,required,narrowed",
    [
        (None, ["f", "g"], False, False),
        ("auto", ["f", "g"], False, False),
        ("required", ["f", "g"], True, False),
        ({"type": "function", "function": {"name": "g"}}, ["g"], True, True),
        ({"type": "function", "name": "g"}, ["g"], True, True),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [G, F]}}, ["f", "g"], True, False),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}, ["g"], False, True),
    ],
)
def test_what_may_be_called(choice, names, required, narrowed):
    got = read([F, G], choice)
    assert ([t.name for t in got.tools], got.required, got.narrowed) == (names, required, narrowed)


def test_nothing_to_call():
    assert read([F], "none") is None
    assert read([], "auto") is None and read(None) is None


def test_schemas_that_a_grammar_follows():
    """Of strict tools always, of all where a call must come; without parameters there are none."""
    choice = read([F, G, STRICT])
    assert choice.strict and not read([F, G]).strict
    assert [f.parameters for f in choice.functions(all_strict=False)] == [None, None, SCHEMA]
    assert [f.parameters for f in choice.functions(all_strict=True)] == [SCHEMA, NO_PARAMETERS, SCHEMA]
    assert [f.place for f in choice.functions(True)] == [f"tools[{i}].function.parameters" for i in range(3)]


def test_schemas_of_any_size_that_no_grammar_follows():
    choice = read([tool("f", parameters={"description": "x" * MAX_SCHEMA_BYTES})])
    assert choice.functions(all_strict=False)
    with pytest.raises(RequestError, match="the tools' parameters have 2621.. bytes; at most 262144"):
        choice.functions(all_strict=True)


@pytest.mark.parametrize(
    "tools,choice,message",
    [
        ([F, F], None, "tools[1].function.name is 'f', as another tool's is"),
        ([tool("a b")], None, "tools[0].function.name is 'a b'; 1 to 128 characters"),
        ([tool("a:b")], "none", "tools[0].function.name is 'a:b'"),
        ([tool("")], None, "tools[0].function.name is ''"),
        ([tool("f" * 129)], None, "tools[0].function.name is 'fff"),
        ([{"type": "function"}], None, "tools[0].function must be an object"),
        ([{"type": "custom", "custom": {}}], None, "tools[0] is of type 'custom'"),
        ([tool("f", parameters=[])], None, "tools[0].function.parameters must be a JSON schema"),
        ([tool("f", strict="yes")], None, "tools[0].function.strict is 'yes'"),
        ([], "required", "tool_choice is 'required', but there are no tools"),
        ([F], "any", 'tool_choice is \'any\'; "auto", "none"'),
        ([F], {"type": "required"}, "tool_choice is {'type': 'required'}; "),
        ([F], "function", "tool_choice is 'function'; "),
        ([F], {"type": "function"}, "tool_choice names the tool None; there are 'f'"),
        ([F], {"type": "function", "function": {"name": "h"}}, "tool_choice names the tool 'h'; there are 'f'"),
        ([F], {"type": "allowed_tools", "tools": []}, "tool_choice of type allowed_tools has a mode"),
        ([F], {"type": "allowed_tools", "mode": "none", "tools": [F]}, "tool_choice of type allowed_tools has a mode"),
        ([F], {"type": "allowed_tools", "tools": [F, G]}, "tool_choice.tools[1] names the tool 'g'"),
    ],
)
def test_what_is_refused(tools, choice, message):
    with pytest.raises(RequestError) as error:
        read(tools, choice)
    assert error.value.message.startswith(message) and error.value.status == 400
    assert message.startswith(error.value.param)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
