"""Values from outside as error messages and log lines show them: short, on one line, nothing in them that acts."""

import logging
import reprlib
from typing import Any

SHOWN_CHARS = 80

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = SHOWN_CHARS


def shown(value: Any) -> str:
    """repr() of a value in at most SHOWN_CHARS characters. Costs no more for a value of megabytes."""
    try:
        return cut(_short.repr(value))
    except ValueError:  # an integer of more digits than Python prints
        return "a number too long to print"


def cut(text: str, most: int = SHOWN_CHARS) -> str:
    """The text, or its beginning and three dots."""
    return text if len(text) <= most else text[: most - 3] + "..."


def printable(text: str) -> str:
    """The text with line ends, escape sequences and all else that is not printed written out as \\n, \\x1b, \\u2028."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LogFormatter(logging.Formatter):
    """One line a record, whatever is in its message; the lines of a traceback are indented, so that no text of a client
    can look like a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join("    " + printable(line) for line in super().formatException(ei).splitlines())

    def formatStack(self, stack_info: str) -> str:
        return "\n".join("    " + line for line in super().formatStack(stack_info).splitlines())
