"""Sampling parameters of one request: names, defaults and bounds as users of upstream know them."""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from sglang.srt.constrained.schema_check import check_schema
from sglang.srt.sampling.stop_regex import check_repeats, check_stop_regex
from sglang.srt.sampling.structural_tag import with_format
from sglang.srt.utils.shown import cut, shown

MAX_NEW_TOKENS = 1 << 30
MAX_STOP = 32
MAX_STOP_CHARS = 1024
MAX_STOP_REGEX_CHARS = 256  # bounds what compiling one can cost; the matcher bounds the time of a search
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_N = 128
MAX_CUSTOM_PARAMS_BYTES = 65536
GREEDY_BELOW = 1e-6  # upstream: lower temperatures mean argmax
GRAMMAR_FIELDS = ("json_schema", "regex", "ebnf", "structural_tag")  # "" is none, as in upstream
MAX_GRAMMAR_BYTES = 65536
MAX_SCHEMA_DEPTH = 64  # of objects and lists in each other: the time to compile grows with its square


class SamplingParams(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a request asks of the sampler and of its stopping rules. From outside, null means the default; that of
    max_new_tokens alone, given as null, means as many as the context holds."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    stop_regex: list[str] = []
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1 = all
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] | None = None  # token id (as text, the JSON way) -> added to its logit
    n: int = 1
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    stream_interval: int | None = None
    sampling_seed: int | None = None
    custom_params: dict | None = None
    json_schema: str | None = None  # what the output must match; at most one of the four
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    tools: str | None = None  # a grammar of calls, made here and never given; beside one of the four: either may come
    thinking_budget: int | None = None  # tokens of thoughts, after which one that is open is closed

    @classmethod
    def from_request(cls, given: dict | None, defaults: dict | None = None) -> "SamplingParams":
        """Parameters from a JSON object, `defaults` filling what it leaves out.

        Raises ValueError naming the field, the value and what is allowed, also for fields that do not exist.
        """
        if given is not None and not isinstance(given, dict):
            raise ValueError(f"sampling_params must be an object, got {shown(given)}")
        merged = {k: v for k, v in (defaults or {}).items() if v is not None}
        merged |= {k: v for k, v in (given or {}).items() if v is not None and not (k in GRAMMAR_FIELDS and v == "")}
        if given and given.get("max_new_tokens", 0) is None:
            merged["max_new_tokens"] = MAX_NEW_TOKENS
        for name in merged:
            if name not in CHECKS:
                raise ValueError(f"unknown sampling parameter {shown(name)}; known are {', '.join(sorted(CHECKS))}")
        params = cls(**{name: CHECKS[name](name, value) for name, value in merged.items()})
        if (
            params.thinking_budget is None
            and (budget := (params.custom_params or {}).get("thinking_budget")) is not None
        ):
            params.thinking_budget = CHECKS["thinking_budget"]("custom_params.thinking_budget", budget)
        if params.min_new_tokens > params.max_new_tokens:
            raise ValueError(f"min_new_tokens {params.min_new_tokens} is above max_new_tokens {params.max_new_tokens}")
        if len(grammars := [name for name in GRAMMAR_FIELDS if getattr(params, name) is not None]) > 1:
            raise ValueError(f"{' and '.join(grammars)} are both given; an output can have one grammar")
        if grammars and params.min_new_tokens:
            raise ValueError(
                f"min_new_tokens contradicts {grammars[0]}: a grammar says itself where the output may end"
            )
        if params.temperature < GREEDY_BELOW:
            params.temperature, params.top_k = 1.0, 1
        return params

    @property
    def grammar(self) -> tuple[str, str] | None:
        """What the output must match: kind and text, as GrammarBackend.compile() takes them."""
        given = {kind: text for kind in (*GRAMMAR_FIELDS, "tools") if (text := getattr(self, kind)) is not None}
        if len(given) > 1:
            return " or ".join(given), json.dumps(list(given.values()))
        return next(iter(given.items()), None)

    @property
    def form(self) -> str:
        """The name of what bars tokens, for messages."""
        return self.grammar[0] if self.grammar else "thinking_budget"

    def verify(self, vocab_size: int) -> None:
        """Raises ValueError for token ids outside the vocabulary."""
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", map(int, self.logit_bias or {}))):
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise ValueError(f"{name}: token id {token} must be from 0 to {vocab_size - 1}")


def _bad(name: str, value: Any, rule: str) -> ValueError:
    return ValueError(f"{name} must be {rule}, got {shown(value)}")


def _int(low: int, high: int, also: tuple[int, ...] = ()) -> Callable[[str, Any], int]:
    rule = f"an integer from {low} to {high}" + "".join(f" or {v}" for v in also)

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not (low <= value <= high or value in also):
            raise _bad(name, value, rule)
        return value

    return check


def _number(low: float, high: float, rule: str, open_low: bool = False) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        if not ok or not low <= value <= high or (open_low and value == low):  # NaN fails the comparison
            raise _bad(name, value, rule)
        return float(value)

    return check


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _bad(name, value, "true or false")
    return value


def _strings(most: int, chars: int) -> Callable[[str, Any], list[str]]:
    rule = f"a string or a list of at most {most} strings of 1 to {chars} characters"

    def check(name: str, value: Any) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list) and len(values) > most:
            raise ValueError(f"{name} holds {len(values)} strings, at most {most} are allowed")
        if not isinstance(values, list) or not all(isinstance(v, str) and 1 <= len(v) <= chars for v in values):
            raise _bad(name, value, rule)
        for text in values:
            try:
                text.encode()
            except UnicodeEncodeError:  # half a surrogate pair: JSON can spell it, UTF-8 can't
                raise _bad(name, text, "valid Unicode text") from None
        return values

    return check


def _patterns(name: str, value: Any) -> list[str]:
    patterns = _strings(MAX_STOP, MAX_STOP_REGEX_CHARS)(name, value)
    check_repeats(patterns)
    for pattern in patterns:
        check_stop_regex(pattern)
    return patterns


def _token_ids(name: str, value: Any) -> list[int]:
    values = [value] if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(values, list) and len(values) > MAX_STOP_TOKEN_IDS:
        raise ValueError(f"{name} holds {len(values)} ids, at most {MAX_STOP_TOKEN_IDS} are allowed")
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 2**31 for v in values):
        raise _bad(name, value, "a list of token ids")
    return values


def _logit_bias(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise _bad(name, value, "an object of token ids and numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise ValueError(f"{name} holds {len(value)} entries, at most {MAX_LOGIT_BIAS} are allowed")
    bound = _number(-100, 100, "a number from -100 to 100")
    result = {}
    for key, entry in value.items():
        text = str(key)
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise _bad(name, key, "keyed by token ids")
        token = str(int(text))
        if token in result:
            raise ValueError(f"{name} names token {token} more than once")
        result[token] = bound(f"{name}[{token}]", entry)
    return result


def _object(name: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise _bad(name, value, "an object")
    try:
        size = len(msgspec.msgpack.encode(value))  # as it travels to the scheduler
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise ValueError(f"{name} can't be sent to the scheduler: {e}") from None
    if size > MAX_CUSTOM_PARAMS_BYTES:
        raise ValueError(f"{name} takes {size} bytes, at most {MAX_CUSTOM_PARAMS_BYTES} are allowed")
    return value


def _grammar(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _bad(name, value, "text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:  # half a surrogate pair
        raise _bad(name, value, "valid Unicode text") from None
    if size > MAX_GRAMMAR_BYTES:
        raise ValueError(f"{name} has {size} bytes, at most {MAX_GRAMMAR_BYTES} are possible")
    if "\0" in value:
        raise ValueError(f"{name} holds a NUL character, at {value.index(chr(0))}")
    return value


def _json_schema(name: str, value: Any) -> str:
    """Text, as upstream has it, or the schema itself."""
    text, schema = _json(name, value, dict | bool, "a JSON schema, which is an object")
    check_schema(schema, name)
    return text


def _structural_tag(name: str, value: Any) -> str:
    """Text, or the object itself; as an object with a `format`."""
    tag = _json(name, value, dict, "an object")[1]
    try:
        text = json.dumps(with_format(tag), ensure_ascii=False)
    except ValueError as e:
        raise ValueError(f"{name} {e}") from None
    return _grammar(name, text)


def _json(name: str, value: Any, kinds: Any, rule: str) -> tuple[str, Any]:
    """A text, or what is of `kinds`, as JSON text and as what that says."""
    if isinstance(value, kinds):
        try:
            value = msgspec.json.encode(value).decode()
        except (TypeError, ValueError, RecursionError) as e:
            raise ValueError(f"{name} is no JSON: {cut(str(e))}") from None
    text = _grammar(name, value)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{name} is no JSON: {cut(str(e))}") from None
    if not isinstance(schema, kinds):
        raise _bad(name, value, rule)
    level, depth = [schema] if isinstance(schema, dict) else [], 0
    while level:
        depth += 1
        if depth > MAX_SCHEMA_DEPTH:
            raise ValueError(f"{name} is nested more than {MAX_SCHEMA_DEPTH} levels deep; name its parts in $defs")
        inner = [value for node in level for value in (node.values() if isinstance(node, dict) else node)]
        level = [value for value in inner if isinstance(value, dict | list)]
    return text, schema


CHECKS = {
    "max_new_tokens": _int(0, MAX_NEW_TOKENS),
    "min_new_tokens": _int(0, MAX_NEW_TOKENS),
    "stop": _strings(MAX_STOP, MAX_STOP_CHARS),
    "stop_token_ids": _token_ids,
    "stop_regex": _patterns,
    "temperature": _number(0, 1e4, "a number from 0 to 10000"),
    "top_p": _number(0, 1, "a number above 0 and at most 1", open_low=True),
    "top_k": _int(1, 1 << 30, also=(-1,)),
    "min_p": _number(0, 1, "a number from 0 to 1"),
    "frequency_penalty": _number(-2, 2, "a number from -2 to 2"),
    "presence_penalty": _number(-2, 2, "a number from -2 to 2"),
    "repetition_penalty": _number(0, 2, "a number above 0 and at most 2", open_low=True),
    "logit_bias": _logit_bias,
    "n": _int(1, MAX_N),
    "ignore_eos": _bool,
    "skip_special_tokens": _bool,
    "spaces_between_special_tokens": _bool,
    "no_stop_trim": _bool,
    "stream_interval": _int(1, 1 << 20),
    "sampling_seed": _int(-(2**63), 2**63 - 1),
    "custom_params": _object,
    "json_schema": _json_schema,
    "regex": _grammar,
    "ebnf": _grammar,
    "structural_tag": _structural_tag,
    "thinking_budget": _int(0, MAX_NEW_TOKENS),
}
