"""StopMatcher: finds stop strings and stop regexes in growing text and tells how much text is safe to show."""

import math
import re
from dataclasses import dataclass

import regex

REGEX_SECONDS = 0.1  # for one search: a hostile pattern must not hold up the other requests
MAX_REPEATS = 10_000  # counted repeats are unrolled when a pattern is compiled, nested ones multiply


def compile_stop_regex(pattern: str) -> regex.Pattern:
    """A pattern that is safe to compile and to search with a time limit. Raises ValueError for any other."""
    # `regex`, not `re`: it can tell that text so far may still become a match, and it takes a time limit.
    counts = [max(int(n) for n in pair if n) for pair in re.findall(r"\{(\d*),?(\d*)", pattern) if any(pair)]
    if math.prod(max(1, n) for n in counts) > MAX_REPEATS:
        raise ValueError(f"stop_regex {pattern!r}: its repeat counts multiply to more than {MAX_REPEATS}")
    try:
        compiled = regex.compile(pattern)
        empty = compiled.fullmatch("", timeout=REGEX_SECONDS)
    except (regex.error, TimeoutError, RecursionError) as e:
        raise ValueError(f"stop_regex {pattern!r} does not work: {e}") from e
    if empty:
        raise ValueError(f"stop_regex {pattern!r} matches the empty text: it would stop at once")
    return compiled


@dataclass(frozen=True)
class StopMatch:
    """`text[start:end]` of the whole output is what matched; `matched` the stop string, or the matching pattern."""

    start: int
    end: int
    matched: str


class StopMatcher:
    """Keeps the request's whole output text. Raises TimeoutError when a pattern takes too long."""

    def __init__(self, stop: list[str], stop_regex: list[str]):
        self._stop = [s for s in stop if s]
        self._patterns = [compile_stop_regex(p) for p in stop_regex]
        self.text = ""
        self.shown = 0  # characters handed out so far; no match can begin before
        self._search_from = 0  # matches before are too early to count

    def copy(self) -> "StopMatcher":
        other = object.__new__(StopMatcher)
        other.__dict__.update(self.__dict__)
        return other

    def add(self, text: str, count_matches: bool = True) -> StopMatch | None:
        """Append text; the first match, if there is one. With `count_matches` false, those found are passed over."""
        self.text += text
        while (match := self._find()) and not count_matches:
            self._search_from = match.end
        return match

    def take(self, final: bool = False) -> str:
        """Text that may be shown now: all but what could be the beginning of a match; all of it when `final`."""
        end = len(self.text) if final else max(self.shown, self._safe_end())
        new = self.text[self.shown : end]
        self.shown = end
        return new

    def take_until(self, end: int) -> str:
        """The last text of a stopped request."""
        new = self.text[self.shown : end]
        self.shown = max(self.shown, end)
        return new

    def _start(self) -> int:
        return max(self.shown, self._search_from)

    def _find(self) -> StopMatch | None:
        found = []
        for stop in self._stop:
            if (at := self.text.find(stop, self._start())) >= 0:
                found.append(StopMatch(at, at + len(stop), stop))
        for pattern in self._patterns:
            match = pattern.search(self.text, pos=self._start(), timeout=REGEX_SECONDS)
            if match and match.end() > match.start():
                found.append(StopMatch(match.start(), match.end(), pattern.pattern))
        return min(found, key=lambda m: (m.start, -m.end), default=None)

    def _safe_end(self) -> int:
        end = len(self.text)
        for stop in self._stop:
            # The earliest suffix that is the beginning of this stop string.
            at = self.text.find(stop[0], max(self._start(), len(self.text) - len(stop) + 1))
            while 0 <= at < end:
                if stop.startswith(self.text[at:]):
                    end = at
                at = self.text.find(stop[0], at + 1)
        for pattern in self._patterns:
            match = pattern.search(self.text, pos=self._start(), timeout=REGEX_SECONDS, partial=True)
            if match and match.partial:
                end = min(end, match.start())
        return end
