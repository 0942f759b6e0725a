"""Bodies of requests: JSON counted before it is decoded, decoded into structs, and what is wrong with it said shortly.

No endpoint is known here.
"""

import asyncio
import difflib
import re
from typing import TypeVar

import msgspec
import numpy as np
from starlette.requests import Request

from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.shown import cut, shown

T = TypeVar("T")

# Of one body: objects, lists and texts, which become Python objects. Numbers cost a tenth and are not counted.
MAX_VALUES = 100_000
INLINE_BYTES = 65536  # larger bodies are counted in a thread

QUOTE, BRACE, BRACKET = b'"'[0], b"{"[0], b"["[0]


async def read_body(request: Request, body_type: type[T]) -> T:
    """The JSON body as a struct. Raises RequestError that names the field which is wrong."""
    body = await request.body()
    count = count_values(body) if len(body) <= INLINE_BYTES else await asyncio.to_thread(count_values, body)
    if count > MAX_VALUES:
        raise RequestError(
            f"the body holds {count} objects, lists and texts, at most {MAX_VALUES} are read: make it several requests"
        )
    try:
        return msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError as e:
        raise field_error(str(e), body_type) from e
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise RequestError(f"the body is not valid JSON: {_complaint(body, str(e))}") from e
    except RecursionError as e:
        raise RequestError("the body is not usable: its JSON is nested too deeply") from e


def count_values(body: bytes) -> int:
    """How many objects, lists and texts (keys too) a JSON body holds; 0 where it can't be more than MAX_VALUES. 10 MB
    take 0.05 s, the GIL free for most of it; decoding millions of small objects would stop everything for seconds."""
    marks = np.frombuffer(body, np.uint8)
    opened = np.count_nonzero(marks == BRACE) + np.count_nonzero(marks == BRACKET)
    if opened + np.count_nonzero(marks == QUOTE) // 2 <= MAX_VALUES:  # those inside of texts included
        return 0
    marks = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    quotes = marks == QUOTE
    outside = np.bitwise_xor.accumulate(quotes.view(np.uint8)) == 0
    opened = np.count_nonzero(((marks == BRACE) | (marks == BRACKET)) & outside)
    return int(opened) + (int(np.count_nonzero(quotes)) + 1) // 2


def _complaint(body: bytes, text: str) -> str:
    """The decoder's own words, but for half of a surrogate pair, which it takes for the body's end near that end."""
    half_at_end = re.search(rb'\\u[dD][89abAB][0-9a-fA-F]{2}[^"]{0,5}"', body[-24:])
    if "surrogate" in text or ("truncated" in text and half_at_end):
        return "a text in it holds half of a surrogate pair"
    return text


def field_error(text: str, body_type: type) -> RequestError:
    """msgspec's `... - at `$.field[...]`` with the field in plain sight."""
    if match := re.search(r"unknown field `(.*?)`", text, re.DOTALL):
        name = cut(match[1])
        close = difflib.get_close_matches(name, body_type.__struct_fields__, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return RequestError(f"unknown field {shown(name)}{hint}", param=name)
    problem, _, path = text.rpartition(" - at `$")
    problem, field = cut(problem or text, 200), cut(path.rstrip("`").lstrip(".")) if problem else ""
    if missing := re.search(r"missing required field `(.+?)`", problem):
        field = f"{field}.{missing[1]}" if field else missing[1]
        return RequestError(f"field {field!r} is missing", param=field)
    return RequestError(f"{field}: {problem[0].lower()}{problem[1:]}" if field else problem, param=field or None)
