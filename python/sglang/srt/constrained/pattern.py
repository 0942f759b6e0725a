"""The `pattern` of a JSON schema as a regular expression for whole strings, in what every grammar library knows.

Python's own parser reads it. Look-around, back references, word boundaries and flags have no such form.
"""

import re
import re._constants as sre  # what re itself is made of; there is no public parser of patterns
import re._parser as sre_parse
import sys

ANY_TEXT = r"(.|\n)*"
META = frozenset("\\.*+?()[]{}|^$/")
CLASS_META = frozenset("\\[]^-/")
SURROGATES = (0xD800, 0xDFFF)
CATEGORIES = {  # as ECMA-262 has them, ASCII alone but for spaces
    sre.CATEGORY_DIGIT: [(48, 57)],
    sre.CATEGORY_WORD: [(48, 57), (65, 90), (95, 95), (97, 122)],
    sre.CATEGORY_SPACE: [(9, 13), (32, 32), (0xA0, 0xA0), (0x2028, 0x2029), (0xFEFF, 0xFEFF)],
}
NEGATED = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
}
STARTS, ENDS = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING), (sre.AT_END, sre.AT_END_STRING)
OTHER_DIALECTS = ("bad escape", "unknown extension")  # of re.error: right elsewhere, as \p{L}

Ranges = list[tuple[int, int]]  # of code points, ends included


class _Unsupported(Exception):
    pass


def whole_pattern(pattern: str) -> str | None:
    """A regular expression for the strings in which `pattern` is found, all of each; None if it has no such form.
    Raises ValueError for what is no pattern."""
    try:
        parsed = sre_parse.parse(pattern)
        if parsed.state.flags & ~sre.SRE_FLAG_UNICODE:
            return None
        return _anchored(list(parsed), True, True)
    except re.error as e:
        if str(e).startswith(OTHER_DIALECTS):
            return None
        raise ValueError(str(e)) from None
    except (_Unsupported, RecursionError):
        return None
    except OverflowError as e:  # a repeat count
        raise ValueError(str(e)) from None


def _anchored(items: list, start: bool, end: bool) -> str:
    """`start`, `end`: the string begins, ends with these items, so that they are found anywhere but for anchors."""
    free_start = free_end = True
    while start and items and items[0][0] is sre.AT and items[0][1] in STARTS:
        items, free_start = items[1:], False
    while end and items and items[-1][0] is sre.AT and items[-1][1] in ENDS:
        items, free_end = items[:-1], False
    start, end = start and free_start, end and free_end
    if len(items) == 1 and items[0][0] in (sre.BRANCH, sre.SUBPATTERN):
        return _group(items[0], start, end)
    parts = []
    for i, item in enumerate(items):
        first, last = start and i == 0, end and i == len(items) - 1
        if item[0] in (sre.BRANCH, sre.SUBPATTERN):
            parts.append(_group(item, first, last))
        else:
            parts.append((ANY_TEXT if first else "") + _item(item) + (ANY_TEXT if last else ""))
    return "".join(parts) if items else ANY_TEXT if start or end else ""


def _group(item: tuple, start: bool, end: bool) -> str:
    op, value = item
    if op is sre.BRANCH:
        return f"({'|'.join(_anchored(list(branch), start, end) for branch in value[1])})"
    _, add_flags, del_flags, inner = value
    if add_flags or del_flags:
        raise _Unsupported
    return f"({_anchored(list(inner), start, end)})"


def _item(item: tuple) -> str:
    op, value = item
    if op is sre.LITERAL:
        return _class([(value, value)])
    if op is sre.NOT_LITERAL:
        return _class(_complement([(value, value)]))
    if op is sre.ANY:
        return "."
    if op is sre.IN:
        return _class(_ranges(value))
    if op in (sre.BRANCH, sre.SUBPATTERN):
        return _group(item, False, False)
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, inner = value
        return f"({_anchored(list(inner), False, False)}){{{low},{'' if high is sre.MAXREPEAT else high}}}"
    raise _Unsupported


def _ranges(members: list) -> Ranges:
    found: Ranges = []
    negated = False
    for op, value in members:
        if op is sre.NEGATE:
            negated = True
        elif op is sre.LITERAL:
            found.append((value, value))
        elif op is sre.RANGE:
            found.append(value)
        elif op is sre.CATEGORY and value in CATEGORIES:
            found += CATEGORIES[value]
        elif op is sre.CATEGORY and value in NEGATED:
            found += _complement(CATEGORIES[NEGATED[value]])
        else:
            raise _Unsupported
    return _complement(found) if negated else found


def _complement(ranges: Ranges) -> Ranges:
    result, at = [], 1  # without NUL, which the libraries do not take
    for low, high in sorted([*ranges, SURROGATES]):
        if low > at:
            result.append((at, low - 1))
        at = max(at, high + 1)
    return [*result, (at, sys.maxunicode)] if at <= sys.maxunicode else result


def _class(ranges: Ranges) -> str:
    if any(low == 0 or (low <= SURROGATES[1] and high >= SURROGATES[0]) for low, high in ranges):
        ranges = _complement(_complement(ranges))
    if not ranges:
        raise _Unsupported
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _char(ranges[0][0], META)
    return f"[{''.join(_span(low, high) for low, high in _joined(ranges))}]"


def _joined(ranges: Ranges) -> Ranges:
    """In order, without overlaps: `&&` or `--` would mean something else."""
    result: Ranges = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        else:
            result.append((low, high))
    return result


def _span(low: int, high: int) -> str:
    return _char(low, CLASS_META) if low == high else f"{_char(low, CLASS_META)}-{_char(high, CLASS_META)}"


def _char(code: int, meta: frozenset[str]) -> str:
    char = chr(code)
    if code < 32 or code == 127:
        return f"\\x{code:02x}"
    return f"\\{char}" if char in meta else char
