"""What the xgrammar library reads over in a JSON schema, refused: else an answer would look right and not match.

Keywords that only narrow an answer and that it does not follow are listed in docs/clients.md; those here change what an
answer is, or contradict each other. No grammar is made here.
"""

import re
from collections.abc import Iterator
from typing import Any

from sglang.srt.utils.shown import cut, shown

SCHEMA_KEYS = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
LIST_KEYS = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED_KEYS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
COMPOSING = ("$ref", "anyOf", "oneOf", "allOf")
# Beside one of those the library reads over these.
CONSTRAINTS = frozenset([
    *COMPOSING, "type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties",
    "propertyNames", "minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems", "pattern",
    "format", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
])  # fmt: skip
LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")


def check_schema(schema: Any, name: str) -> None:
    """Raises ValueError naming the place, in a schema of that name, of what can't be held to."""
    for place, part in _schemas(schema, name):
        _check_composition(part, place)
        _check_values(part, place)
        _check_required(part, place)
        pattern = part.get("pattern")
        if isinstance(pattern, str) and LOOK_AROUND.search(pattern):
            raise _wrong(f"{place}.pattern", "looks ahead or behind, which is not supported")


def _wrong(place: str, problem: str) -> ValueError:
    return ValueError(f"{cut(place, 200)} {problem}")


def _schemas(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema that is an object, itself included, and its place; what an instance may look like, as in
    `enum`, is none."""
    left = [(place, schema)]
    while left:
        place, part = left.pop()
        if not isinstance(part, dict):
            continue
        yield place, part
        for key, value in part.items():
            if key in SCHEMA_KEYS:
                left.append((f"{place}.{key}", value))
            elif key in LIST_KEYS and isinstance(value, list):
                left += [(f"{place}.{key}[{i}]", item) for i, item in enumerate(value)]
            elif key in NAMED_KEYS and isinstance(value, dict):
                left += [(f"{place}.{key}.{name}", item) for name, item in value.items()]


def _check_composition(part: dict[str, Any], place: str) -> None:
    ref = part.get("$ref")
    if isinstance(ref, str) and ref != "#" and not ref.startswith("#/"):  # the library would log it as it is
        raise _wrong(f"{place}.$ref", f"is {shown(ref)}; only places in the same schema, as #/$defs/name, are read")
    for key in ("$dynamicRef", "$recursiveRef"):
        if key in part:
            raise _wrong(f"{place}.{key}", "is not supported; use $ref")
    for key in COMPOSING:
        if key not in part:
            continue
        beside = sorted(name for name in part.keys() & CONSTRAINTS if name != key)
        if key in ("anyOf", "oneOf") and beside == ["type"] and _may_have(part[key], part["type"]):
            beside = []
        if beside:
            raise _wrong(f"{place}.{key}", f"stands beside {beside[0]}; one schema is expected that says both")
    parts = part.get("allOf")
    if isinstance(parts, list) and len(parts) > 1:
        raise _wrong(f"{place}.allOf", f"holds {len(parts)} schemas; one is expected that says all of them")


def _may_have(parts: Any, kind: Any) -> bool:
    """Whether schemas of a choice are all of that type, as far as they say."""
    given = [part.get("type", kind) for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return all(each == kind for each in given)


TYPES = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: not isinstance(v, bool) and (isinstance(v, int) or isinstance(v, float) and v.is_integer()),
    "number": lambda v: not isinstance(v, bool) and isinstance(v, int | float),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
}


def _kinds(part: dict[str, Any]) -> list[str]:
    given = part.get("type")
    return [kind for kind in (given if isinstance(given, list) else [given]) if isinstance(kind, str)]


def _check_values(part: dict[str, Any], place: str) -> None:
    """The values that are allowed by name are of the type, and the one that must be is among them."""
    kinds = _kinds(part)
    tests = [TYPES[kind] for kind in kinds if kind in TYPES]
    listed = part["enum"] if isinstance(part.get("enum"), list) else []
    for value in [*listed, part["const"]] if "const" in part else listed:
        if tests and not any(test(value) for test in tests):
            raise _wrong(place, f"has {shown(value)} among its values, which is no {' or '.join(kinds)}")
    if listed and "const" in part and part["const"] not in listed:
        raise _wrong(f"{place}.const", f"is {shown(part['const'])}, which is not in enum")


def _check_required(part: dict[str, Any], place: str) -> None:
    """Beside `properties` there are no others, so what is required is among them."""
    known, required, others = part.get("properties"), part.get("required"), part.get("additionalProperties", False)
    is_open = others is not False or "patternProperties" in part or part.keys() & {*COMPOSING}
    if is_open or not isinstance(required, list) or "object" not in (_kinds(part) or ["object"]):
        return
    for name in required:
        if isinstance(name, str) and not (isinstance(known, dict) and name in known):
            raise _wrong(f"{place}.required", f"names {shown(name)}, which is not in properties")
