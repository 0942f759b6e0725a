"""Schemas that the library would read over are refused by their place; those of clients pass."""

import sys

import pydantic
import pytest

from sglang.srt.constrained.schema_check import check_schema
from sglang.test.body_fuzz import PERSON, TREE
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=2, suite="unit-test-cpu")


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "http://example.org/x.json"}, "$.$ref is 'http://example.org/x.json'"),
        ({"$ref": "#a\n\x1b[2J"}, r"$.$ref is '#a\n\x1b[2J'"),
        ({"properties": {"a": {"$dynamicRef": "#x"}}}, "$.properties.a.$dynamicRef"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "$.allOf holds 2 schemas"),
        ({"allOf": [{"type": "string"}], "minLength": 3}, "$.allOf stands beside minLength"),
        ({"$defs": {"a": {}}, "items": {"$ref": "#/$defs/a", "maxLength": 1}}, "$.items.$ref stands beside maxLength"),
        ({"anyOf": [{"type": "integer"}], "type": "string"}, "$.anyOf stands beside type"),
        ({"type": "object", "properties": {}, "anyOf": [{"required": ["a"]}]}, "$.anyOf stands beside properties"),
        ({"type": "string", "const": 5}, "$ has 5 among its values, which is no string"),
        ({"type": ["string", "null"], "enum": ["a", True]}, "$ has True among its values"),
        ({"type": "integer", "enum": [1, 2.5]}, "$ has 2.5 among its values"),
        ({"enum": ["a"], "const": "b"}, "$.const is 'b', which is not in enum"),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, "$.required names 'b'"),
        ({"type": "object", "required": ["a"]}, "$.required names 'a'"),
        ({"prefixItems": [{}, {"pattern": "^(?=a)b"}]}, "$.prefixItems[1].pattern looks ahead"),
        ({"pattern": r"\\(?<!a)b"}, "$.pattern looks"),
    ],
)
def test_what_is_refused(schema, place):
    with pytest.raises(ValueError) as caught:
        check_schema(schema, "$")
    assert str(caught.value).startswith(place)


class Inner(pydantic.BaseModel):
    kind: str = "a"


class Model(pydantic.BaseModel):
    """As clients make them."""

    name: str = pydantic.Field(max_length=3, pattern=r"^\(?=*\?$", description="d")
    inner: Inner = pydantic.Field(default=Inner(), description="d")
    others: dict[str, Inner] | None = None
    pair: tuple[int, str]
    kinds: set[bool]
    literal: int | float | None = None


@pytest.mark.parametrize(
    "schema",
    [
        PERSON,
        TREE,
        Model.model_json_schema(),
        True,
        {},
        {"allOf": [{"$ref": "#/$defs/a"}], "default": 5, "$defs": {"a": {"type": "integer"}}},
        {"type": "object", "oneOf": [{"type": "object"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {}}},
        {"type": "object", "required": ["a"], "additionalProperties": {"type": "integer"}},
        {"properties": {"enum": {"type": "string"}, "$ref": {"type": "string"}}, "required": ["enum"]},
        {"const": {"allOf": [1, 2], "pattern": "(?=a)"}},
        {"type": "number", "enum": [1, 2.5]},
        {"pattern": r"\(?=a"},
    ],
)
def test_what_passes(schema):
    check_schema(schema, "$")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
