"""Tools' schemas in the plain form that templates like Gemma's can write: one type in each place, nothing to look up.

Such a template writes `type`, `description`, `properties`, `required`, `items`, `nullable` and an `enum` of texts, and
is silent about everything else, whole types included. So, for the prompt alone (grammars follow what was given):

    $ref                       what it leads to; a schema met again inside of itself keeps its type and description
    allOf                      all parts as one
    anyOf, oneOf, list types   null makes it nullable; objects, and arrays, become one; of other types the first stands,
                               and all are told in the description
    const, other enums         an enum of texts, or told in the description
    additionalProperties       told in the description where there are no properties
    no type                    the one that the other keys speak of

What has none of this stays as it is.
"""

import json
from typing import Any
from urllib.parse import unquote

import msgspec

from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.shown import shown

Schema = dict[str, Any]

MAX_FOLLOWED_BYTES = 1 << 20  # of JSON that the references of all tools lead to, each time anew: they multiply
# Not left for the template, which may write keys that it does not know.
REPLACED = {"$ref", "$defs", "definitions", "$schema", "anyOf", "oneOf", "allOf", "const", "prefixItems"}
TYPE_OF_VALUE = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
# Keys that only one type has, in the order in which they decide.
TYPE_OF_KEY = {
    "properties": "object", "additionalProperties": "object", "required": "object", "items": "array",
    "prefixItems": "array", "minItems": "array", "minimum": "number", "maximum": "number", "multipleOf": "number",
    "pattern": "string", "minLength": "string", "maxLength": "string", "format": "string",
}  # fmt: skip


def flat_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools of the chat's wire form, new ones where something had to change. Raises RequestError for a schema that
    can't be read, and RecursionError for one that is nested too deeply."""
    flattener = _Flattener()
    return [flattener.tool(tool) for tool in tools]


class _Flattener:
    def __init__(self) -> None:
        self._root: Schema = {}
        self._tool: Any = None
        self._followed = 0  # bytes

    def tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        nested = isinstance(tool.get("function"), dict)
        function = tool["function"] if nested else tool
        self._tool = function.get("name")
        flat = {}
        for field in ("parameters", "response"):
            if isinstance(root := function.get(field), dict):
                self._root = root
                flat[field] = self._flat(root, frozenset({"#"}))
        return tool | ({"function": function | flat} if nested else flat)

    def _wrong(self, problem: str) -> RequestError:
        return RequestError(f"the schema of the tool {shown(self._tool)} {problem}", param="tools")

    def _flat(self, schema: Any, open: frozenset[str]) -> Schema:
        """`open`: the references that lead to what this is a part of."""
        if isinstance(schema, bool):
            return {}
        if not isinstance(schema, dict):
            raise self._wrong(f"holds {shown(schema)} where a schema, which is an object, is expected")
        if (ref := schema.get("$ref")) is not None:
            target = self._target(ref)
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            if ref in open:
                kinds, said = _types(target), beside.get("description", target.get("description"))
                cut = {"type": kinds[0]} if kinds else {}
                return cut | ({} if said is None else {"description": said})
            return self._flat(target | beside, open | {ref})
        self._check_names(schema)
        flat = {key: value for key, value in schema.items() if key not in REPLACED}
        if (properties := schema.get("properties")) is not None:
            if not isinstance(properties, dict):
                raise self._wrong(f"has {shown(properties)} as properties; an object is expected")
            flat["properties"] = {name: self._flat(value, open) for name, value in properties.items()}
        self._set_items(flat, schema, open)
        self._set_enum(flat, schema)
        flat = _as_one([{**flat, "type": kind} for kind in _types(schema)] or [flat])
        for part in self._list(schema, "allOf"):
            flat = _both(flat, self._flat(part, open))
        for field in ("anyOf", "oneOf"):
            if options := self._list(schema, field):
                flat = _as_one([_both(flat, self._flat(option, open)) for option in options])
        if isinstance(values := schema.get("additionalProperties"), dict):
            del flat["additionalProperties"]
            kind = _told(self._flat(values, open))
            if kind and not flat.get("properties"):
                flat = dict(flat)
                _note(flat, f"values: {kind}")
        return flat

    def _check_names(self, schema: Schema) -> None:
        """`type` and `required` are used as names from here on."""
        kinds = schema.get("type", "object")
        if not kinds or not all(isinstance(kind, str) for kind in (kinds if isinstance(kinds, list) else [kinds])):
            raise self._wrong(f"has {shown(kinds)} as type")
        if not all(isinstance(name, str) for name in self._list(schema, "required")):
            raise self._wrong(f"has {shown(schema['required'])} as required; a list of names is expected")

    def _list(self, schema: Schema, field: str) -> list:
        value = schema.get(field)
        value = [] if value is None else value
        if not isinstance(value, list):
            raise self._wrong(f"has {shown(value)} as {field}; a list is expected")
        return value

    def _target(self, ref: Any) -> Schema:
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise self._wrong(f"refers to {shown(ref)}: only references into itself, like #/$defs/name, are followed")
        target: Any = self._root
        for step in unquote(ref[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isascii() and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            else:
                target = target.get(step) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise self._wrong(f"refers to {shown(ref)}, and there is no schema")
        self._check_names(target)
        self._followed += len(msgspec.json.encode(target))
        if self._followed > MAX_FOLLOWED_BYTES:
            raise self._wrong(f"has more than {MAX_FOLLOWED_BYTES} bytes when its references are written out")
        return target

    def _set_items(self, flat: Schema, schema: Schema, open: frozenset[str]) -> None:
        given = [*self._list(schema, "prefixItems")]
        items = schema.get("items")
        given += items if isinstance(items, list) else [] if items is None else [items]
        if given:
            flat["items"] = _as_one([self._flat(item, open) for item in given])

    def _set_enum(self, flat: Schema, schema: Schema) -> None:
        values = [schema["const"]] if "const" in schema else self._list(schema, "enum")
        if not values:
            return
        if None in values:
            values = [value for value in values if value is not None]
            flat["nullable"] = True
        if all(isinstance(value, str) for value in values):
            flat["enum"] = values
            return
        flat.pop("enum", None)
        _note(flat, "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in values))


def _types(schema: Schema) -> list[str]:
    """The types that a schema speaks of itself, without its parts."""
    given = schema.get("type")
    if isinstance(given, list):
        kinds = [kind for kind in given if isinstance(kind, str)]
        return ["number"] if set(kinds) == {"integer", "number"} else kinds
    if given is not None:
        return [given]
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values and isinstance(values, list):
        return list(dict.fromkeys(TYPE_OF_VALUE.get(type(value), "null") for value in values))
    return [TYPE_OF_KEY[key] for key in TYPE_OF_KEY if key in schema][:1]


def _as_one(options: list[Schema]) -> Schema:
    """One flat schema for several of which each may hold."""
    some = [option for option in options if option.get("type") != "null"]
    nullable = len(some) < len(options) or any(option.get("nullable") for option in some)
    some = list({json.dumps(option, sort_keys=True): option for option in some}.values())
    if not some:
        return options[0] if options else {}
    one = dict(some[0])
    if len(some) > 1:
        kinds = {option.get("type") for option in some}
        if kinds == {"object"}:
            one = _objects_as_one(some)
        elif kinds == {"array"} and all("items" in option for option in some):
            one["items"] = _as_one([option["items"] for option in some])
        elif len(kinds) == 1 and all(isinstance(option.get("enum"), list) for option in some):
            one["enum"] = list(dict.fromkeys(value for option in some for value in option["enum"]))
        else:
            one.pop("enum", None)
            told = list(dict.fromkeys(filter(None, map(_told, some))))
            _note(one, " or ".join(told) if len(told) > 1 else "")
    if nullable:
        one["nullable"] = True
    return one


def _objects_as_one(some: list[Schema]) -> Schema:
    found: dict[str, list[Schema]] = {}
    for option in some:
        for name, value in (option.get("properties") or {}).items():
            found.setdefault(name, []).append(value)
    required = [option.get("required") or [] for option in some]
    always = [name for name in required[0] if all(name in names for names in required)]
    return some[0] | {"properties": {name: _as_one(values) for name, values in found.items()}, "required": always}


def _both(schema: Schema, part: Schema) -> Schema:
    """A flat schema that says what both say; what is said twice is the first's."""
    both = part | schema
    if part.get("properties") and schema.get("properties"):
        both["properties"] = part["properties"] | schema["properties"]
    if part.get("required") and schema.get("required"):
        both["required"] = list(dict.fromkeys([*schema["required"], *part["required"]]))
    return both


def _told(schema: Schema) -> str:
    """Its type in words, in capitals as templates have them."""
    kind = schema.get("type")
    if not isinstance(kind, str):
        return ""
    inner = _told(schema["items"]) if kind == "array" and isinstance(schema.get("items"), dict) else ""
    enum = schema.get("enum")
    if enum and isinstance(enum, list):
        return " or ".join(json.dumps(value, ensure_ascii=False) for value in enum)
    return f"ARRAY of {inner}" if inner else kind.upper()


def _note(schema: Schema, note: str) -> None:
    """Add to the description of a schema that is nobody else's."""
    if note:
        said = schema.get("description")
        schema["description"] = f"{said} ({note})" if isinstance(said, str) and said else note
