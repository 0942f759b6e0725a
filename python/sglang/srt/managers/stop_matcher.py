"""StopMatcher: finds stop strings and stop regexes in growing text and tells how much text is safe to show."""

import time
from dataclasses import dataclass

import regex

from sglang.srt.sampling.stop_regex import compile_stop_regex

# Processor time that one request's patterns may take: a hostile one must not hold up the text of the other requests.
CALL_SECONDS = 0.1  # all patterns over new text once
REQUEST_SECONDS = 1.0  # all calls of a request ...
EARNED_SECONDS = 0.00025  # ... and this much more for each: ordinary patterns take less, however long the text


@dataclass(frozen=True)
class StopMatch:
    """`text[start:end]` of the whole output is what matched; `matched` the stop string, or the matching pattern."""

    start: int
    end: int
    matched: str


class Budget:
    """Seconds that are left to the patterns of one request."""

    def __init__(self) -> None:
        self.request = REQUEST_SECONDS
        self.call = CALL_SECONDS

    def begin_call(self) -> None:
        self.request += EARNED_SECONDS
        self.call = CALL_SECONDS

    def search(self, pattern: regex.Pattern, text: str, start: int, partial: bool = False) -> regex.Match | None:
        """Raises TimeoutError when what is left is not enough."""
        limit = min(self.call, self.request)
        if limit <= 0:
            raise TimeoutError
        begun = time.thread_time()
        try:
            return pattern.search(text, pos=start, timeout=limit, partial=partial)
        finally:
            spent = time.thread_time() - begun
            self.call -= spent
            self.request -= spent


class StopMatcher:
    """Keeps the request's whole output text. Raises TimeoutError when its patterns take too long."""

    def __init__(self, stop: list[str], stop_regex: list[str]):
        self._stop = [s for s in stop if s]
        self._patterns = [compile_stop_regex(p) for p in stop_regex]
        self._budget = Budget()
        self.text = ""
        self.shown = 0  # characters handed out so far; no match can begin before
        # Where each stop string and each pattern may still begin to match: what lies before has been looked at.
        self._stop_from = [0] * len(self._stop)
        self._pattern_from = [0] * len(self._patterns)

    def copy(self) -> "StopMatcher":
        """One that goes on from here by itself; the time that is left is shared."""
        other = object.__new__(StopMatcher)
        other.__dict__.update(self.__dict__)
        other._stop_from = list(self._stop_from)
        other._pattern_from = list(self._pattern_from)
        return other

    def add(self, text: str, count_matches: bool = True) -> StopMatch | None:
        """Append text; the first match, if there is one. With `count_matches` false, those found are passed over."""
        self.text += text
        self._budget.begin_call()
        while (match := self._find()) and not count_matches:
            self._stop_from = [max(start, match.end) for start in self._stop_from]
            self._pattern_from = [max(start, match.end) for start in self._pattern_from]
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

    def _find(self) -> StopMatch | None:
        found = []
        for stop, start in zip(self._stop, self._stop_from, strict=True):
            if (at := self.text.find(stop, start)) >= 0:
                found.append(StopMatch(at, at + len(stop), stop))
        for pattern, start in zip(self._patterns, self._pattern_from, strict=True):
            match = self._budget.search(pattern, self.text, start)
            if match and match.end() > match.start():
                found.append(StopMatch(match.start(), match.end(), pattern.pattern))
        return min(found, key=lambda m: (m.start, -m.end), default=None)

    def _safe_end(self) -> int:
        self._budget.begin_call()
        end = len(self.text)
        for i, stop in enumerate(self._stop):
            self._stop_from[i] = self._first_beginning(stop, self._stop_from[i])
            end = min(end, self._stop_from[i])
        for i, pattern in enumerate(self._patterns):
            match = self._budget.search(pattern, self.text, self._pattern_from[i], partial=True)
            self._pattern_from[i] = match.start() if match else len(self.text)
            if match and match.partial:
                end = min(end, match.start())
        return end

    def _first_beginning(self, stop: str, start: int) -> int:
        """The earliest place from `start` on at which the text ends in the beginning of this stop string; else its end.
        Each place is passed over once in a request, however long the string."""
        at = self.text.find(stop[0], max(start, len(self.text) - len(stop) + 1))
        while at >= 0 and not stop.startswith(self.text[at:]):
            at = self.text.find(stop[0], at + 1)
        return at if at >= 0 else len(self.text)
