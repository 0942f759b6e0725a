"""Stop patterns from outside: which may be compiled at all, checked on their text alone, and how they are compiled."""

import functools
import re
import weakref

import regex

from sglang.srt.utils.shown import cut, shown

MAX_REPEATS = 10_000  # of a pattern's counts, multiplied: nested ones multiply
MAX_UNROLLED_CHARS = 100_000  # of all patterns of a request: about 50 bytes of memory each
EMPTY_SECONDS = 0.05  # of processor time, for the search in the empty text

# In verbose mode, `(?x)`, the `regex` module skips spaces and comments even between the digits of a count.
_VERBOSE = re.compile(r"\(\?[A-Za-z0-9+-]*x")
_in_use: weakref.WeakValueDictionary[str, regex.Pattern] = weakref.WeakValueDictionary()  # n answers share one
_COUNTS = re.compile(r"\{(\d*)(,?)(\d*)")  # brackets and escapes are not looked at: what is no count is counted too


def check_repeats(patterns: list[str]) -> None:
    """Raises ValueError for patterns whose repeat counts would make them large. Nothing is compiled: compiling unrolls
    counts, so that `a{1000000000}` would take all memory before any limit of time could stop it."""
    unrolled = 0
    for pattern in patterns:
        least, most = _repeats(_readable(pattern))
        if max(least, most) > MAX_REPEATS:
            raise ValueError(
                f"stop_regex {shown(pattern)}: its repeat counts multiply to more than {MAX_REPEATS}; use lower ones"
            )
        unrolled += least * len(pattern)
    if unrolled > MAX_UNROLLED_CHARS:
        raise ValueError(
            f"stop_regex unrolls to {unrolled} characters, at most {MAX_UNROLLED_CHARS} are possible; use lower repeat "
            "counts, or * and +"
        )


def compile_stop_regex(pattern: str) -> regex.Pattern:
    """The pattern, compiled; it must have passed check_stop_regex. No clock is asked: what passed there works here."""
    if (known := _in_use.get(pattern)) is None:
        # `regex`, not `re`: it can tell that text so far may still become a match, and it takes a time limit. Its own
        # cache would keep hundreds of patterns after their requests.
        known = _in_use[pattern] = regex.compile(pattern, cache_pattern=False)
    return known


@functools.lru_cache(maxsize=1024)  # a batch repeats its patterns for each prompt
def check_stop_regex(pattern: str) -> None:
    """Raises ValueError for a pattern that is not safe to compile and to search with a time limit."""
    check_repeats([pattern])
    try:
        empty = compile_stop_regex(pattern).fullmatch("", timeout=EMPTY_SECONDS)
    except TimeoutError:
        raise ValueError(f"stop_regex {shown(pattern)} takes too long to match; use a simpler one") from None
    except (regex.error, ValueError, OverflowError, RecursionError) as e:
        raise ValueError(f"stop_regex {shown(pattern)} is no regular expression: {cut(str(e))}") from None
    if empty:
        raise ValueError(f"stop_regex {shown(pattern)} matches the empty text: it would stop at once")


def _readable(pattern: str) -> str:
    """The pattern with its counts as plain digits. Raises ValueError where comments could be in them."""
    if not _VERBOSE.search(pattern):
        return pattern
    if "#" in pattern:
        raise ValueError(f"stop_regex {shown(pattern)}: # is not supported together with the flag x; leave one out")
    return re.sub(r"\s", "", pattern)


def _repeats(pattern: str) -> tuple[int, int]:
    """The least and the largest counts, each multiplied as if all were nested."""
    least, most = 1, 1
    for low, comma, high in _COUNTS.findall(pattern):
        numbers = [int(n) for n in (low, high) if n]
        # {n}, {n,} and {n,m} are n copies at least; {,n} is none.
        least *= max(1, int(low or 0) if comma else max(numbers, default=1))
        most *= max(1, *numbers) if numbers else 1
    return least, most
