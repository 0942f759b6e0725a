"""Schemas of tools in the plain form that Gemma's template writes: no type is lost, and what was given stays as is."""

import copy
import sys
from typing import Literal, Optional

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.assets import shipped_model_path
from sglang.srt.entrypoints.chat_prompt import Turn, chat_prompt
from sglang.srt.entrypoints.tool_schemas import MAX_FOLLOWED_BYTES, flat_tools
from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.chat_template import ChatTemplate
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=6, suite="unit-test-cpu")

SHIPPED = ChatTemplate((shipped_model_path() / "chat_template.jinja").read_text(), {"bos_token": "<bos>"})
WHOLE = ChatTemplate("{{ tools | tojson }}{{ messages[0].content }}", {})


def tool(parameters) -> dict:
    return {"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}


def flat(parameters) -> dict:
    return flat_tools([tool(parameters)])[0]["function"]["parameters"]


def written(parameters, template: ChatTemplate = SHIPPED) -> str:
    turn = Turn(messages=[{"role": "user", "content": "x"}], tools=[tool(parameters)])
    return chat_prompt(turn, template, {})


TEXT, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "plain"),
    [
        # null is a property of the value
        ({"anyOf": [INTEGER, NULL]}, {"type": "integer", "nullable": True}),
        ({"oneOf": [NULL, TEXT], "description": "d"}, {"type": "string", "nullable": True, "description": "d"}),
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        ({"enum": ["a", None]}, {"enum": ["a"], "type": "string", "nullable": True}),
        # several types: the first, and all in words
        ({"type": ["string", "integer"]}, {"type": "string", "description": "STRING or INTEGER"}),
        (
            {"anyOf": [TEXT, {"type": "array", "items": TEXT}], "description": "d"},
            {"type": "string", "description": "d (STRING or ARRAY of STRING)"},
        ),
        ({"type": ["integer", "number"]}, {"type": "number"}),
        ({"anyOf": [INTEGER, INTEGER]}, INTEGER),
        ({"anyOf": [{"const": "a"}, {"const": "b"}]}, {"type": "string", "enum": ["a", "b"]}),
        ({"anyOf": [{"enum": ["a"]}, INTEGER]}, {"type": "string", "description": '"a" or INTEGER'}),
        ({"type": "string", "anyOf": [{"format": "date"}, {"format": "time"}]}, {"type": "string", "format": "date"}),
        # objects and arrays become one
        (
            {
                "anyOf": [
                    {"type": "object", "properties": {"a": TEXT, "b": TEXT}, "required": ["a", "b"]},
                    {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
                ]
            },
            {
                "type": "object",
                "properties": {"a": {"type": "string", "description": "STRING or INTEGER"}, "b": TEXT},
                "required": ["a"],
            },
        ),
        (
            {"anyOf": [{"type": "array", "items": TEXT}, {"type": "array", "items": NULL}]},
            {"type": "array", "items": TEXT | {"nullable": True}},
        ),
        (
            {"allOf": [{"properties": {"a": TEXT}, "required": ["a"]}, {"properties": {"b": INTEGER}}], "title": "t"},
            {"title": "t", "type": "object", "properties": {"a": TEXT, "b": INTEGER}, "required": ["a"]},
        ),
        (
            {"type": "array", "prefixItems": [INTEGER, TEXT]},
            {"type": "array", "items": {"type": "integer", "description": "INTEGER or STRING"}},
        ),
        # values
        ({"const": 5}, {"type": "integer", "description": "one of 5"}),
        ({"enum": [1, 2], "description": "d"}, {"type": "integer", "description": "d (one of 1, 2)"}),
        ({"enum": [True]}, {"type": "boolean", "description": "one of true"}),
        # the type that other keys speak of
        ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
        ({"items": {"minimum": 1}}, {"type": "array", "items": {"type": "number", "minimum": 1}}),
        ({"type": "object", "additionalProperties": INTEGER}, {"type": "object", "description": "values: INTEGER"}),
        # references
        ({"$ref": "#/$defs/A", "description": "here", "$defs": {"A": TEXT | {"description": "there"}}},
         TEXT | {"description": "here"}),
        ({"$ref": "#/$defs/A~1%20b", "$defs": {"A/ b": {"anyOf": [{"$ref": "#/$defs/B"}, NULL]}, "B": INTEGER}},
         INTEGER | {"nullable": True}),
        ({"properties": {"a": {"$ref": "#"}}, "description": "d"},
         {"properties": {"a": {"type": "object", "description": "d"}}, "description": "d", "type": "object"}),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}, {}),
        # nothing to do
        ({"type": "object", "properties": {"a": {"type": "string", "enum": ["x"], "default": "x", "title": "A"}},
          "required": ["a"], "additionalProperties": False}, ...),
        ({"type": "object", "properties": {}}, ...),
        ({}, ...),
    ],
)  # fmt: skip
def test_plain_forms(schema, plain):
    before = copy.deepcopy(schema)
    assert flat(schema) == (before if plain is ... else plain)
    assert schema == before, "grammars follow what was given"


class Leaf(pydantic.BaseModel):
    unit: Literal["C", "F"] = "C"
    limit: int | None = None


class Node(pydantic.BaseModel):
    """A model as clients derive tools from them."""

    name: str = pydantic.Field(description="Who")
    leaves: list[Leaf] = []
    child: Optional["Node"] = None
    score: int | float | None = None


def test_a_pydantic_model_is_written_with_all_types():
    prompt = written(Node.model_json_schema())
    child = (
        'child:{description:<|"|>A model as clients derive tools from them.<|"|>,nullable:true,type:<|"|>OBJECT<|"|>}'
    )
    leaves = (
        'leaves:{items:{properties:{limit:{nullable:true,type:<|"|>INTEGER<|"|>},'
        'unit:{enum:[<|"|>C<|"|>,<|"|>F<|"|>],type:<|"|>STRING<|"|>}},type:<|"|>OBJECT<|"|>},type:<|"|>ARRAY<|"|>}'
    )
    score = 'score:{description:<|"|>INTEGER or NUMBER<|"|>,nullable:true,type:<|"|>INTEGER<|"|>}'
    name = 'name:{description:<|"|>Who<|"|>,type:<|"|>STRING<|"|>}'
    assert f"{{properties:{{{child},{leaves},{name},{score}}}" in prompt
    assert 'type:<|"|><|"|>' not in prompt and "[" not in prompt.split("required:")[0].replace('[<|"|>C', "")


def test_a_template_that_writes_schemas_whole_gets_them_whole():
    assert not SHIPPED.writes_whole_schemas and WHOLE.writes_whole_schemas
    assert '"anyOf": [{"type": "integer"}' in written({"properties": {"a": {"anyOf": [INTEGER, NULL]}}}, WHOLE)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "#/$defs/A"}, "the schema of the tool 'f' refers to '#/$defs/A', and there is no schema"),
        ({"$ref": "https://x/y.json"}, "only references into itself"),
        ({"$ref": 5}, "only references into itself"),
        ({"properties": {"a": 5}}, "holds 5 where a schema, which is an object, is expected"),
        ({"properties": ["a"]}, "has ['a'] as properties"),
        ({"anyOf": {}}, "has {} as anyOf; a list is expected"),
        ({"required": "a"}, "has 'a' as required"),
        ({"type": {"a": 1}}, "has {'a': 1} as type"),
        ({"anyOf": [{"type": "string"}, {"type": [[1]]}]}, "has [[1]] as type"),
        ({"type": []}, "has [] as type"),
        ({"allOf": [{"required": ["a"]}, {"required": [{}]}]}, "has [{}] as required; a list of names"),
        ({"properties": {"a": {"$ref": "#"}}, "type": [1]}, "has [1] as type"),
    ],
)
def test_schemas_that_cannot_be_read(schema, says):
    with pytest.raises(RequestError) as caught:
        written(schema)
    assert says in caught.value.message and (caught.value.status, caught.value.param) == (400, "tools")


def test_references_that_multiply_are_refused():
    level = {"properties": {"a": {"$ref": "#/$defs/0"}, "b": {"$ref": "#/$defs/0"}}}
    defs = {"0": {"type": "string", "description": "x" * 100}}
    for i in range(1, 40):
        defs[str(i)] = {"properties": {n: {"$ref": f"#/$defs/{i - 1}"} for n in "ab"}}
    with pytest.raises(RequestError, match=f"more than {MAX_FOLLOWED_BYTES} bytes"):
        flat({"$ref": "#/$defs/39", "$defs": defs})
    assert flat({**level, "$defs": defs})["properties"]["a"] == defs["0"]


def test_a_deep_schema_is_refused():
    deep: dict = {"type": "string"}
    for _ in range(3000):
        deep = {"anyOf": [deep]}
    with pytest.raises(RequestError, match="nested too deeply"):
        written(deep)


names = st.sampled_from(["a", "b", "$ref", "type"])
kinds = st.sampled_from(["string", "integer", "number", "array", "object", "null", "boolean"])
odd = st.sampled_from([None, 5, "x", [], {}, True, ["x"], {"a": {}}, [[]], [{}], "#", "#/$defs/a", {"a": []}])


def with_more(inner):
    keys = {
        "type": kinds | st.lists(kinds, max_size=3),
        "properties": st.dictionaries(names, inner, max_size=2),
        "required": st.lists(names, max_size=2),
        "items": inner | st.lists(inner, max_size=2),
        "anyOf": st.lists(inner, max_size=3),
        "allOf": st.lists(inner, max_size=2),
        "enum": st.lists(st.sampled_from(["a", "b", 1, None, 1.5, True, []]), max_size=3),
        "const": odd,
        "additionalProperties": inner,
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/properties/a", "#/anyOf/0"]),
        "$defs": st.dictionaries(names, inner, max_size=2),
        "description": st.sampled_from(["d", 5]),
    }
    right = st.fixed_dictionaries({}, optional=keys)
    wrong = st.fixed_dictionaries({}, optional=keys | {name: odd for name in ("type", "anyOf", "enum", "items")})
    return right | wrong


@settings(max_examples=300, deadline=None)
@given(st.recursive(st.booleans() | st.just({}), with_more, max_leaves=8))
def test_any_schema_is_made_plain_or_refused(schema):
    before = copy.deepcopy(schema)
    try:
        prompt = written(schema) if isinstance(schema, dict) else ""
    except RequestError as e:
        assert e.status == 400
        return
    assert schema == before and "anyOf" not in prompt and "allOf" not in prompt


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
