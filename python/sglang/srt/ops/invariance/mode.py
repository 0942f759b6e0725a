"""The mode's one switch. It holds for the whole process: one server computes all rows in one way."""

from collections.abc import Iterator
from contextlib import contextmanager

_on = False


def enabled() -> bool:
    """Whether a row's bits must depend on nothing but the row."""
    return _on


def set_enabled(on: bool) -> None:
    """Called once, before the first step (tests: see batch_invariant)."""
    global _on
    _on = on


@contextmanager
def batch_invariant(on: bool = True) -> Iterator[None]:
    """The mode inside a `with`, for tests."""
    before = _on
    set_enabled(on)
    try:
        yield
    finally:
        set_enabled(before)
