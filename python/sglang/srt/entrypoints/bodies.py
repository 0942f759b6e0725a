"""Bodies of requests: JSON counted before it is decoded, decoded into structs, and what is wrong with it said shortly.

No endpoint is known here.
"""

import asyncio
import re
from typing import TypeVar

import msgspec
import numpy as np
from starlette.requests import Request

from sglang.srt.entrypoints.unknown_fields import known_part
from sglang.srt.managers.generation import RequestError
from sglang.srt.utils.shown import cut

T = TypeVar("T")

MAX_VALUES = 100_000  # of one body: objects, lists and texts, which become Python objects
MAX_COMMAS = 2_100_000  # numbers cost a tenth: 10 MB of ordinary ids have 1.7 million
UNKNOWN = "contains unknown field"  # in the decoder's words, of bodies whose type forbids them
INLINE_BYTES = 65536  # larger bodies are counted in a thread

QUOTE, COMMA, BRACE, BRACKET = b'",{['


async def read_body(request: Request, body_type: type[T]) -> T:
    """The JSON body as a struct. Raises RequestError that names the field which is wrong."""
    body = await request.body()
    values, commas = count_values(body) if len(body) <= INLINE_BYTES else await asyncio.to_thread(count_values, body)
    if values > MAX_VALUES:
        raise RequestError(
            f"the body holds {values} objects, lists and texts, at most {MAX_VALUES} are read: make it several requests"
        )
    if commas > MAX_COMMAS:
        raise RequestError(f"the body holds {commas} numbers and other entries, at most {MAX_COMMAS} are read")
    try:
        try:
            return msgspec.json.decode(body, type=body_type)
        except msgspec.ValidationError as e:
            if UNKNOWN not in str(e):
                raise
        return msgspec.json.decode(known_part(body, body_type), type=body_type)
    except msgspec.ValidationError as e:
        raise field_error(str(e)) from e
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise RequestError(f"the body is not valid JSON: {_complaint(body, str(e))}") from e
    except RecursionError as e:
        raise RequestError("the body is not usable: its JSON is nested too deeply") from e


def count_values(body: bytes) -> tuple[int, int]:
    """How many objects, lists and texts (keys too) a JSON body holds, and how many commas between its entries; 0 for
    both where neither can be above its limit. 10 MB take 0.05 s, the GIL free for most of it; decoding millions of
    small objects would stop everything for seconds."""
    marks = np.frombuffer(body, np.uint8)
    opened = np.count_nonzero(marks == BRACE) + np.count_nonzero(marks == BRACKET)
    values, commas = opened + np.count_nonzero(marks == QUOTE) // 2, np.count_nonzero(marks == COMMA)
    if values <= MAX_VALUES and commas <= MAX_COMMAS:  # those inside of texts included
        return 0, 0
    marks = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    quotes = marks == QUOTE
    outside = np.bitwise_xor.accumulate(quotes.view(np.uint8)) == 0
    opened = np.count_nonzero(((marks == BRACE) | (marks == BRACKET)) & outside)
    values = int(opened) + (int(np.count_nonzero(quotes)) + 1) // 2
    return values, int(np.count_nonzero((marks == COMMA) & outside))


def _complaint(body: bytes, text: str) -> str:
    """The decoder's own words, but for half of a surrogate pair, which it takes for the body's end near that end."""
    half_at_end = re.search(rb'\\u[dD][89abAB][0-9a-fA-F]{2}[^"]{0,5}"', body[-24:])
    if "surrogate" in text or ("truncated" in text and half_at_end):
        return "a text in it holds half of a surrogate pair"
    return text


def field_error(text: str) -> RequestError:
    """msgspec's `... - at `$.field[...]`` with the field in plain sight."""
    problem, _, path = text.rpartition(" - at `$")
    problem, field = cut(problem or text, 200), cut(path.rstrip("`").lstrip(".")) if problem else ""
    if missing := re.search(r"missing required field `(.+?)`", problem):
        field = f"{field}.{missing[1]}" if field else missing[1]
        return RequestError(f"field {field!r} is missing", param=field)
    return RequestError(f"{field}: {problem[0].lower()}{problem[1:]}" if field else problem, param=field or None)
