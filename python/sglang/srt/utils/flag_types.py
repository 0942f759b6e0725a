"""argparse types of the tools' own flags. A server's flags have theirs in arg_fields.py."""

import argparse
from collections.abc import Callable


def at_least(low: int) -> Callable[[str], int]:
    """An integer of at least `low`."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    parse.__name__ = "integer"  # argparse names it in its messages
    return parse


def positive(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


positive.__name__ = "number"
