"""What stop strings and stop patterns may cost: patterns are judged before they are compiled, and time has a bound."""

import sys
import time

import pytest

from sglang.srt.managers import stop_matcher
from sglang.srt.managers.stop_matcher import StopMatcher
from sglang.srt.sampling import stop_regex
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.sampling.stop_regex import check_repeats, check_stop_regex, compile_stop_regex
from sglang.test.ci.ci_register import register_cpu_ci

register_cpu_ci(est_time=5, suite="unit-test-cpu")

LARGE = [
    "a{1000000000}", "a{1000000000,}", "a{,1000000000}", "a{0,1000000000}", "a{5,1000000000}", "a{1000}{1000000}",
    "a{1000000000}?", "a{1000000000}+", "(?:(?:a{1000}){1000}){1000}", "(?>a{1000000000})", "(?=a{1000000000})",
    "(?P<x>a{1000000000})", "(?V1)[[a-z]--[b]]{1000000000}", r"\p{L}{1000000000}", r"[{]\{}{1000000000}",
    "(?:abc){e<=2}{1000000000}", "(?x)a{1 000 000 000}", "(?x)a{ 1000\n000000 }", "(?ix: a{1000000 000})",
    "(?i-m+x)a{1000000 000}", "a{٣٠٠٠٠٠٠٠}", "a{000000001000000000}", "x{999999999999999999999}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", LARGE)
def test_counts_are_checked_before_anything_is_compiled(monkeypatch, pattern):
    monkeypatch.setattr(stop_regex.regex, "compile", None)
    for check in (check_stop_regex, lambda p: SamplingParams.from_request({"stop_regex": ["fine", p]})):
        with pytest.raises(ValueError, match="stop_regex.* more than 10000|stop_regex.*supported"):
            check(pattern)


def test_comments_cannot_hide_a_count():
    for pattern in ("(?x)a{10#c\n0000000}", "(?x)\\#a{10#c\n0000000}", "(?x)[#]a{10#}\n0000000}"):
        with pytest.raises(ValueError, match="# is not supported together with the flag x"):
            check_stop_regex(pattern)
    assert compile_stop_regex(r"#### \d{1,9}\n").pattern and compile_stop_regex("(?x) a b{2} [ ] c").pattern


def test_what_many_patterns_unroll_to_is_counted_together():
    """Each of them alone is allowed; 32 would be compiled to gigabytes."""
    one = "(?:" + "[a-z]?" * 4 + "){2500}z"
    check_repeats([one])
    with pytest.raises(ValueError, match="stop_regex unrolls to .*use lower repeat counts"):
        SamplingParams.from_request({"stop_regex": [one + str(i) for i in range(32)]})


def test_compiled_patterns_are_shared_while_they_are_used_and_gone_after():
    first, second = StopMatcher([], ["shared [0-9]"]), StopMatcher([], ["shared [0-9]"])
    assert first._patterns[0] is second._patterns[0]
    del first, second
    assert "shared [0-9]" not in stop_regex._in_use


HOSTILE = {
    "many": [f"[a-z ]+[a-z ]+[a-z ]+[0-9]{{{i}}}" for i in range(1, 33)],
    "held back": ["[^~]*[^~]*[~|]" + "a" * i for i in range(32)],
    "nested": ["(?:(?:x+)+)+y|(?:[a-z ]+)*~"],
    "recursive": ["(?:a|(?R)(?R))+b"],
}


@pytest.mark.parametrize("patterns", HOSTILE.values(), ids=HOSTILE)
def test_a_request_has_one_budget_for_all_patterns_and_all_tokens(patterns):
    matcher = StopMatcher([], patterns)
    begun = time.thread_time()
    with pytest.raises(TimeoutError):
        for _ in range(20_000):
            matcher.add("xx the apples ")
            matcher.take()
    # One second and a little for each call; 32 patterns took 31 s for 49 tokens when each search had its own limit.
    assert time.thread_time() - begun < 8


def test_ordinary_patterns_never_use_their_budget_up():
    """Whatever the length of the answer: what one call earns pays for it."""
    matcher = StopMatcher([], [r"#### \d+\n", r"\nQ:"])
    matcher._budget.request = 0.05
    for i in range(20_000):
        assert matcher.add(f" apple{i}") is None
        matcher.take()
    assert matcher.add("\nQ:").matched == r"\nQ:"


def test_a_copy_spends_the_same_budget(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(stop_matcher.time, "thread_time", lambda: next(ticks) * 0.04)
    matcher = StopMatcher([], ["b"])
    with pytest.raises(TimeoutError):
        for _ in range(40):
            matcher.copy().add("a")


class CountingStr(str):
    looks = 0

    def startswith(self, *args) -> bool:
        CountingStr.looks += 1
        return super().startswith(*args)


def test_long_stop_strings_pass_each_place_once(monkeypatch):
    """One string holds 1,000 characters back; the others must not look at them again for every token."""
    monkeypatch.setattr(CountingStr, "looks", 0)
    stops = [CountingStr("ab" + "c" * 1021 + chr(65 + i)) for i in range(31)] + [CountingStr("a" * 1023 + "x")]
    matcher = StopMatcher(stops, [])
    for _ in range(400):
        assert matcher.add("aaaa") is None
        matcher.take()
    assert matcher.shown == 1600 - 1023
    assert CountingStr.looks < 3 * 32 * 1600  # 12 million before


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-x", "-q"]))
