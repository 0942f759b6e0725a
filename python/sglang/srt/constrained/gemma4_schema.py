"""JSON schemas as grammars of the values that match them, in Gemma 4's own writing of a call's arguments.

    {city:<|"|>Oslo<|"|>,days:3,kinds:[true,null]}

Objects have their keys bare and in the order of the chat template: sorted, small and capital letters alike. There is no
space outside of strings. A name that is in `properties` is written with its own schema only, others follow
`additionalProperties`; left out beside `properties`, there are no others.

Not enforced, since no grammar of reasonable size can: `not`, `if`, `contains`, `uniqueItems`, `multipleOf`, the
exclusiveness of `oneOf`, `dependent...`, `propertyNames`, which of `patternProperties` a name belongs to, the number
of properties beside `properties`, lengths beside a `pattern`, patterns with look-around, back references or flags,
formats but date, time, date-time and uuid, bounds beyond what JSON numbers are exact in. Bounded numbers have at most
six decimals and no exponent.
"""

import json
import math
import re
from typing import Any
from urllib.parse import unquote

from sglang.srt.constrained.grammar import GrammarError
from sglang.srt.constrained.lark import (
    EMPTY,
    NEVER,
    JsonNumber,
    Literal,
    Node,
    Regex,
    Repeat,
    Rule,
    Token,
    choice,
    optional,
    sequence,
)
from sglang.srt.constrained.pattern import ANY_TEXT, META, whole_pattern
from sglang.srt.utils.shown import cut, shown

MAX_RULES = 4000  # of all schemas of a call
MAX_WRITTEN = 4 << 20  # characters of schemas that are looked at, those that references lead to each time
MAX_EXACT = 2.0**53
MAX_COUNT = 1_000_000  # characters, items or keys: longer than any answer

INTEGER = Regex("-?(0|[1-9][0-9]*)")
NUMBER = Regex(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
BOOLEAN = choice(Literal("true"), Literal("false"))
NULL = Literal("null")
# What the parser of calls reads back: it takes other names for parts of a value.
KEY_CHARS = 63
MIDDLE = r"""[^\x00-\x1f:{}\[\],\""""
FIRST = LAST = MIDDLE + " '"  # classes that are still open
ANY_KEY = Regex(f"{FIRST}]({MIDDLE}]*{LAST}])?")  # of any length: counting characters is dear over a large vocabulary
KEY = re.compile(rf"(?!'.*'\Z){MIDDLE} ]({MIDDLE}]{{0,{KEY_CHARS - 2}}}{MIDDLE} ])?")
YEAR_TO_DAY, CLOCK = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
TIME = rf"{CLOCK}(\.[0-9]{{1,9}})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
FORMATS = {
    "date": YEAR_TO_DAY,
    "time": TIME,
    "date-time": f"{YEAR_TO_DAY}T{TIME}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}

TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")
IMPLIED = {  # by a keyword, where no type is given
    "properties": "object", "required": "object", "additionalProperties": "object", "patternProperties": "object",
    "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "format": "string", "pattern": "string", "minLength": "string", "maxLength": "string",
    "minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
}  # fmt: skip
CONSTRAINTS = frozenset([*IMPLIED, "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "nullable",
                         "minProperties", "maxProperties"])  # fmt: skip
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")  # of two the larger holds
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
Schema = dict[str, Any] | bool


class SchemaGrammar:
    """Grammars of several schemas, in shared `rules`. `quote`: the id of the token around strings."""

    def __init__(self, quote: int):
        self.rules: dict[str, Node] = {}
        self._quote = Token(quote)
        self._root: Schema = True  # of the schema at hand, where its references start
        self._names: dict[str, str] = {}  # rules by the text of their schema
        self._own_names: dict[str, str] = {}  # of those with references, which mean the schema at hand
        self._written = 0
        self._any: Rule | None = None

    def arguments(self, schema: Schema, place: str) -> Node:
        """What stands behind a function's name: an object that matches. Raises GrammarError naming the place of what
        is wrong."""
        self._root, self._own_names = schema, {}
        if not isinstance(schema, dict | bool):
            raise GrammarError(f"{place} must be an object, got {shown(schema)}")
        try:
            merged = self._merged({"type": "object"}, schema, place)
            return self._value(merged, place)
        except RecursionError:
            raise GrammarError(f"{place} is nested too deeply") from None

    # ---- one schema --------------------------------------------------------------------------------------------

    def _value(self, schema: Any, place: str) -> Node:
        if not isinstance(schema, dict | bool):
            raise GrammarError(f"{place} is {shown(schema)}; a schema is expected, which is an object")
        if schema is False:
            return NEVER
        schema = {} if schema is True else {k: v for k, v in schema.items() if k in CONSTRAINTS}
        if not schema:
            return self._any_value()
        if schema.keys() == {"type"} and isinstance(schema["type"], str) and schema["type"] in SIMPLE:
            return SIMPLE[schema["type"]](self)
        text = json.dumps(schema, sort_keys=True)
        names = self._own_names if '"$ref"' in text else self._names
        if text not in names:
            name = names[text] = f"r{len(self.rules)}"
            self.rules[name] = NEVER  # until it is known; it may hold itself
            self._written += len(text)
            if len(self.rules) > MAX_RULES or self._written > MAX_WRITTEN:
                raise GrammarError(f"{place}: with all that its references lead to the schema is too large")
            self.rules[name] = self._composite(schema, place)
        return Rule(names[text])

    def _composite(self, schema: dict[str, Any], place: str) -> Node:
        if "$ref" in schema:
            rest = {k: v for k, v in schema.items() if k != "$ref"}
            target, at = self._resolved(schema["$ref"], f"{place}.$ref")
            return self._value(self._merged(target, rest, place) if rest else target, at)
        if schema.get("nullable") is not None:
            rest = {k: v for k, v in schema.items() if k != "nullable"}
            return choice(self._value(rest, place), *([NULL] if schema["nullable"] is True else []))
        if "allOf" in schema:
            merged: Schema = {k: v for k, v in schema.items() if k != "allOf"}
            for i, part in enumerate(self._schemas(schema, "allOf", place)):
                merged = self._merged(merged, part, f"{place}.allOf[{i}]")
                if merged is False:
                    raise GrammarError(f"{place}.allOf[{i}] contradicts what is beside it")
            return self._value(merged, place)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = {k: v for k, v in schema.items() if k != key}
                parts = self._schemas(schema, key, place)
                merged_parts = [self._merged(rest, part, f"{place}.{key}[{i}]") for i, part in enumerate(parts)]
                return choice(*(self._value(part, f"{place}.{key}[{i}]") for i, part in enumerate(merged_parts)))
        types = self._types(schema, place)
        if "enum" in schema or "const" in schema:
            return self._literals(schema, types, place)
        if types is None:
            types = list(dict.fromkeys(IMPLIED[k] for k in schema if k in IMPLIED))
            if not types:
                return self._any_value()
        return choice(*(BUILDERS[t](self, schema, place) for t in types))

    def _types(self, schema: dict[str, Any], place: str) -> list[str] | None:
        types = schema.get("type")
        if types is None:
            return None
        types = types if isinstance(types, list) else [types]
        for t in types:
            if t not in TYPES:
                raise GrammarError(f"{place}.type is {shown(t)}; one of {', '.join(TYPES)} is expected")
        if not types:
            raise GrammarError(f"{place}.type is an empty list")
        return [t for t in types if not (t == "integer" and "number" in types)]

    def _schemas(self, schema: dict[str, Any], key: str, place: str) -> list[Any]:
        parts = schema[key]
        if not isinstance(parts, list) or not parts:
            raise GrammarError(f"{place}.{key} must be a list of schemas")
        return parts

    def _resolved(self, pointer: Any, place: str) -> tuple[Any, str]:
        """The schema that a reference leads to, and its place."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise GrammarError(
                f"{place} is {shown(pointer)}; only places in the same schema, as #/$defs/name, are read"
            )
        node: Any = self._root
        for part in pointer.split("/")[1:]:
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict) and part in node:
                node = node[part]
            else:
                raise GrammarError(f"{place} is {shown(pointer)}, which is no place in the schema")
        return node, cut(pointer, 200)

    # ---- two schemas at once -----------------------------------------------------------------------------------

    def _merged(self, a: Any, b: Any, place: str) -> Schema:
        """A schema of what matches both; False if nothing does."""
        for schema in (a, b):
            if not isinstance(schema, dict | bool):
                raise GrammarError(f"{place} is {shown(schema)}; a schema is expected, which is an object")
        if a is False or b is False:
            return False
        result = {} if a is True else {k: v for k, v in a.items() if k in CONSTRAINTS}
        for key, value in ({} if b is True else b).items():
            if key not in CONSTRAINTS or key in ("$ref", "allOf", "anyOf", "oneOf"):
                continue
            if key not in result or result[key] == value:
                result[key] = value
            elif (both := self._both(key, result[key], value, place)) is None:
                return False
            else:
                result[key] = both
        if isinstance(b, dict):
            self._compose(result, b)
        return result

    def _compose(self, result: dict[str, Any], b: dict[str, Any]) -> None:
        """Add what is made of other schemas; of what both have, each holds."""
        for key in ("$ref", "anyOf", "oneOf", "allOf"):
            if key not in b:
                continue
            if key not in result:
                result[key] = b[key]
            elif key == "allOf" and isinstance(b[key], list) and isinstance(result[key], list):
                result[key] = [*result[key], *b[key]]
            elif result[key] != b[key]:
                before = result.get("allOf", [])
                result["allOf"] = [*(before if isinstance(before, list) else []), {key: b[key]}]

    def _both(self, key: str, a: Any, b: Any, place: str) -> Any:
        """Of one keyword's two values the one that stands for both; None if there is none."""
        if key == "type":
            mine, yours = ([t] if isinstance(t, str) else t for t in (a, b))
            if not (isinstance(mine, list) and isinstance(yours, list)):
                raise GrammarError(f"{place}.type must be text or a list")
            kept = [t for t in mine if t in yours or (t == "integer" and "number" in yours)]
            kept += [t for t in yours if t == "integer" and "number" in mine and t not in kept]
            return kept or None
        if key == "enum" and isinstance(a, list) and isinstance(b, list):
            texts = {_canonical(value) for value in b}
            return [value for value in a if _canonical(value) in texts] or None
        if key == "required" and isinstance(a, list) and isinstance(b, list):
            return [*a, *(name for name in b if name not in a)]
        if key in ("properties", "patternProperties") and isinstance(a, dict) and isinstance(b, dict):
            return a | {name: {"allOf": [a[name], s]} if name in a else s for name, s in b.items()}
        if key in ("items", "additionalProperties"):
            return False if a is False or b is False else {"allOf": [a, b]}
        if key in LOWER + UPPER and _is_number(a) and _is_number(b):
            return max(a, b) if key in LOWER else min(a, b)
        if key == "const":
            return a if _canonical(a) == _canonical(b) else None
        if key == "nullable":
            return False
        raise GrammarError(f"{place}: {key} is said twice, as {shown(a)} and {shown(b)}; say it once")

    # ---- values ------------------------------------------------------------------------------------------------

    def _any_value(self) -> Rule:
        if self._any is None:
            self._any = Rule("any")
            self.rules |= {
                "string": sequence(self._quote, Regex(ANY_TEXT), self._quote),
                "pair": sequence(ANY_KEY, Literal(":"), self._any),
                "object": sequence(Literal("{"), optional(_listed(Rule("pair"))), Literal("}")),
                "array": sequence(Literal("["), optional(_listed(self._any)), Literal("]")),
                "any": choice(Rule("string"), NUMBER, BOOLEAN, NULL, Rule("object"), Rule("array")),
            }
        return self._any

    def _any_of(self, kind: str) -> Rule:
        self._any_value()
        return Rule(kind)

    def _literals(self, schema: dict[str, Any], types: list[str] | None, place: str) -> Node:
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list) or not values:
            raise GrammarError(f"{place}.enum must be a list of values")
        if "enum" in schema and "const" in schema:
            values = [value for value in values if _canonical(value) == _canonical(schema["const"])]
        fitting = [value for value in values if types is None or any(_is_of(value, t) for t in types)]
        if not fitting:
            raise GrammarError(
                f"{place}: of enum and const no value is left that is of type {' or '.join(types or TYPES)}"
            )
        return choice(*(self._literal(value, place) for value in fitting))

    def _literal(self, value: Any, place: str) -> Node:
        """One value as the template writes it."""
        if isinstance(value, str):
            _check_text(value, place)
            return sequence(self._quote, *([Literal(value)] if value else []), self._quote)
        if isinstance(value, list):
            return _enclosed("[", [self._literal(part, place) for part in value], "]")
        if isinstance(value, dict):
            pairs = [
                sequence(Literal(f"{_checked_key(key, place)}:"), self._literal(value[key], place))
                for key in sorted(value, key=str.lower)
            ]
            return _enclosed("{", pairs, "}")
        if value is None or isinstance(value, bool):
            return Literal({None: "null", True: "true", False: "false"}[value])
        return Literal(str(value))

    def _string(self, schema: dict[str, Any], place: str) -> Node:
        low, high = self._counts(schema, "minLength", "maxLength", place)
        inner: Node
        pattern = None
        if "pattern" in schema:
            if not isinstance(schema["pattern"], str):
                raise GrammarError(f"{place}.pattern must be text")
            _check_text(schema["pattern"], f"{place}.pattern")
            try:
                pattern = whole_pattern(schema["pattern"])
            except ValueError as e:
                raise GrammarError(f"{place}.pattern is no regular expression: {e}") from None
        elif isinstance(schema.get("format"), str):
            pattern = FORMATS.get(schema["format"])
        if pattern is not None:
            inner = Regex(pattern) if pattern else EMPTY
        elif low or high is not None:
            inner = Regex(rf"(.|\n){{{low},{'' if high is None else high}}}") if high != 0 else EMPTY
        else:
            return self._any_of("string")
        return sequence(self._quote, inner, self._quote)

    def _counts(self, schema: dict[str, Any], least: str, most: str, place: str) -> tuple[int, int | None]:
        for key in (least, most):
            if not _is_count(schema.get(key, 0)):
                raise GrammarError(f"{place}.{key} is {shown(schema[key])}; a count is expected")
        low, high = int(schema.get(least, 0)), schema.get(most)
        if high is not None and low > high:
            raise GrammarError(f"{place}: {least} {low} is above {most} {high}")
        if low > MAX_COUNT:
            raise GrammarError(f"{place}.{least} is {shown(schema[least])}; no answer has more than {MAX_COUNT}")
        return low, None if high is None or high > MAX_COUNT else int(high)

    def _integer(self, schema: dict[str, Any], place: str) -> Node:
        return self._number(schema, place, "integer")

    def _number(self, schema: dict[str, Any], place: str, kind: str = "number") -> Node:
        low, low_open = self._bound(schema, "minimum", "exclusiveMinimum", place)
        high, high_open = self._bound(schema, "maximum", "exclusiveMaximum", place)
        if kind == "integer":  # the same in whole numbers
            if low is not None:
                low, low_open = math.floor(low) + 1 if low_open else math.ceil(low), False
            if high is not None:
                high, high_open = math.ceil(high) - 1 if high_open else math.floor(high), False
        if low is not None and high is not None and (low > high or (low == high and (low_open or high_open))):
            given = {key: schema[key] for key in (*LOWER[:2], *UPPER[:2]) if key in schema}
            raise GrammarError(f"{place}: no {kind} satisfies {json.dumps(given)}")
        bounds: dict[str, Any] = {}
        if low is not None and low > -MAX_EXACT:
            bounds["exclusiveMinimum" if low_open else "minimum"] = low
        if high is not None and high < MAX_EXACT:
            bounds["exclusiveMaximum" if high_open else "maximum"] = high
        if any(abs(bound) >= MAX_EXACT for bound in bounds.values()):
            raise GrammarError(
                f"{place}: numbers beyond {MAX_EXACT:.0f} are not told from each other; leave the bound out"
            )
        if not bounds:
            return INTEGER if kind == "integer" else NUMBER
        return self._new_rule(JsonNumber(json.dumps({"type": kind, **bounds})))

    def _bound(self, schema: dict[str, Any], key: str, open_key: str, place: str) -> tuple[float | None, bool]:
        """The sharper of two, and whether it is itself left out."""
        bound, open_bound = schema.get(key), schema.get(open_key)
        if isinstance(open_bound, bool):  # as in older drafts
            open_bound, bound = (bound, None) if open_bound else (None, bound)
        for name, value in ((key, bound), (open_key, open_bound)):
            if value is not None and not _is_number(value):
                raise GrammarError(f"{place}.{name} is {shown(value)}; a number is expected")
        if open_bound is None or bound is None:
            return (bound, False) if open_bound is None else (open_bound, True)
        is_open = open_bound >= bound if key == "minimum" else open_bound <= bound
        return (open_bound, True) if is_open else (bound, False)

    # ---- arrays and objects ------------------------------------------------------------------------------------

    def _array(self, schema: dict[str, Any], place: str) -> Node:
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        first_place = f"{place}.prefixItems"
        if isinstance(rest, list):  # as in older drafts
            first, rest, first_place = rest, True, f"{place}.items"
        if not isinstance(first, list):
            raise GrammarError(f"{first_place} must be a list of schemas")
        low, high = self._counts(schema, "minItems", "maxItems", place)
        heads = [self._value(part, f"{first_place}[{i}]") for i, part in enumerate(first)]
        if high is not None:
            heads = heads[:high]
        item = self._value(rest, f"{place}.items")
        more_low, more_high = max(0, low - len(heads)), None if high is None else high - len(heads)
        # From the last one on: behind i items may come none, where enough are there, or a comma and the next.
        if not heads:
            inner = _listed(item, max(1, more_low), more_high) if more_high != 0 else EMPTY
            inner = optional(inner) if low == 0 and more_high != 0 else inner
        else:
            inner = Repeat(sequence(Literal(","), item), more_low, more_high) if more_high != 0 else EMPTY
            for i in reversed(range(len(heads))):
                inner = sequence(*([Literal(",")] if i else []), heads[i], inner)
                inner = optional(inner) if low <= i else inner
        return sequence(Literal("["), inner, Literal("]"))

    def _object(self, schema: dict[str, Any], place: str) -> Node:
        properties, required = schema.get("properties"), schema.get("required", [])
        if properties is not None and not isinstance(properties, dict):
            raise GrammarError(f"{place}.properties must be an object of schemas")
        if not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
            raise GrammarError(f"{place}.required must be a list of names")
        others = self._others(schema, place)
        low, high = self._counts(schema, "minProperties", "maxProperties", place)
        if not properties and not required:
            return self._map(others, low, high)
        known: dict[str, Node] = {}
        for name, part in (properties or {}).items():
            _checked_key(name, f"{place}.properties")
            known[name] = self._value(part, f"{place}.properties.{cut(name, 64)}")
        for name in required:
            if name not in known:
                if schema.get("additionalProperties") is False:
                    raise GrammarError(f"{place}.required has {shown(name)}, which is not among the properties")
                known[_checked_key(name, f"{place}.required")] = others if others != NEVER else self._any_value()
        are_others = properties is None or "additionalProperties" in schema or "patternProperties" in schema
        return self._fields(known, set(required), others if are_others else NEVER)

    def _others(self, schema: dict[str, Any], place: str) -> Node:
        """Values of names that are not among the properties."""
        parts: list[Node] = []
        if (patterns := schema.get("patternProperties")) is not None:
            if not isinstance(patterns, dict):
                raise GrammarError(f"{place}.patternProperties must be an object of schemas")
            parts = [self._value(s, f"{place}.patternProperties.{cut(n, 64)}") for n, s in patterns.items()]
        default = "properties" not in schema and not parts  # beside neither, names are free
        additional = self._value(schema.get("additionalProperties", default), f"{place}.additionalProperties")
        return choice(*parts, additional) if additional != NEVER else choice(*parts)

    def _map(self, value: Node, low: int, high: int | None) -> Node:
        if high == 0 or value == NEVER:
            return Literal("{}") if low == 0 else NEVER
        pairs = _listed(self._new_rule(sequence(ANY_KEY, Literal(":"), value)), max(1, low), high)
        return sequence(Literal("{"), optional(pairs) if low == 0 else pairs, Literal("}"))

    def _fields(self, known: dict[str, Node], required: set[str], others: Node) -> Node:
        """An object's pairs in the template's order, the other names between them where they may be."""
        names = sorted(known, key=str.lower)
        other = self._new_rule(sequence(_key_but(names), Literal(":"), others)) if others != NEVER else NEVER
        more = self._new_rule(Repeat(sequence(Literal(","), other))) if other != NEVER else EMPTY
        first: Node = optional(sequence(other, more)) if other != NEVER else EMPTY  # from here on, nothing before
        rest: Node = more  # something before
        for name in reversed(names):
            pair = sequence(Literal(f"{name}:"), known[name])
            later, first = self._new_rule(rest), self._new_rule(first)
            begin = sequence(pair, later)
            if name in required:
                first = begin
                rest = sequence(Literal(","), begin)
            else:
                first = choice(begin, first)
                rest = sequence(optional(sequence(Literal(","), pair)), later)
            if other != NEVER:
                first = choice(first, sequence(other, self._new_rule(sequence(more, rest))))
                rest = sequence(more, rest)
        return sequence(Literal("{"), first, Literal("}"))

    def _new_rule(self, node: Node) -> Node:
        if node == EMPTY:
            return node
        name = f"r{len(self.rules)}"
        self.rules[name] = node
        return Rule(name)


def _listed(part: Node, low: int = 1, high: int | None = None) -> Node:
    """One or more, with commas between."""
    return sequence(part, Repeat(sequence(Literal(","), part), low - 1, None if high is None else high - 1))


def _enclosed(begin: str, parts: list[Node], end: str) -> Node:
    commas = [node for part in parts for node in (Literal(","), part)][1:]
    return sequence(Literal(begin), *commas, Literal(end))


def _key_but(names: list[str]) -> Regex:
    """ANY_KEY without these names, by their letters: where a key leaves the last of them, anything may follow."""

    def behind(prefix: str, among: list[str]) -> str:
        at = len(prefix)
        followers = sorted({name[at] for name in among if len(name) > at})
        barred = "".join(f"\\{char}" if char in "\\[]^-/" else char for char in followers)
        if not prefix:
            leaving = [f"{FIRST}{barred}]({MIDDLE}]*{LAST}])?"]
        else:
            leaving = [f"{LAST}{barred}]", f"{MIDDLE}{barred}]{MIDDLE}]*{LAST}]"]
        for char in followers:
            inner = behind(prefix + char, [name for name in among if name.startswith(prefix + char)])
            leaving.append((f"\\{char}" if char in META else char) + inner)
        ends = prefix and prefix not in among and prefix[-1] not in " '"
        return f"({'|'.join(leaving)}){'?' if ends else ''}"

    return Regex(behind("", names))


def _checked_key(name: str, place: str) -> str:
    if not KEY.fullmatch(name):
        raise GrammarError(
            f"{place} has the name {shown(name)}, which no call can hold: 1 to {KEY_CHARS} characters are possible, "
            'without : { } [ ] , " or line ends, and without spaces or quotes around them'
        )
    _check_text(name, place)
    return name


def _check_text(text: str, place: str) -> None:
    """Raises GrammarError for what no grammar can hold."""
    if "\0" in text:
        raise GrammarError(f"{place} holds a NUL character, at {text.index(chr(0))}")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise GrammarError(f"{place} holds half a surrogate pair, at {e.start}") from None


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_of(value: Any, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return _is_number(value) and value == int(value)
        case "number":
            return _is_number(value)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list)
    return isinstance(value, dict)


BUILDERS = {
    "string": SchemaGrammar._string,
    "integer": SchemaGrammar._integer,
    "number": SchemaGrammar._number,
    "boolean": lambda *_: BOOLEAN,
    "null": lambda *_: NULL,
    "array": SchemaGrammar._array,
    "object": SchemaGrammar._object,
}
SIMPLE = {
    "string": lambda self: self._any_of("string"),
    "integer": lambda self: INTEGER,
    "number": lambda self: NUMBER,
    "boolean": lambda self: BOOLEAN,
    "null": lambda self: NULL,
    "array": lambda self: self._any_of("array"),
    "object": lambda self: self._any_of("object"),
}
