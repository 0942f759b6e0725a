"""The command line of a class of fields (arg_fields.py): words to values, and what is wrong with them.

All that is wrong is told at once, in one line: flags that are not taken, with what does the same here where there is
such a thing, and values. A hint "did you mean" is given only to what looks like a slip of the finger: names that merely
resemble one of ours mean something else.
"""

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from sglang.srt.arg_fields import (
    OneLineParser,
    build_parser,
    convert,
    flag_of,
    kinds,
    meant,
    name_of,
    slip_of,
    specs,
    validate,
)
from sglang.srt.unsupported_flags import UNSUPPORTED, means_what_is_done, refusal

MAX_CANDIDATES = 8  # shown of the flags that a beginning could mean
Fields = TypeVar("Fields")


def parse_fields(
    cls: type[Fields],
    argv: list[str],
    prog: str,
    description: str,
    add_flags: Callable[[OneLineParser], None],
    first: str | None = None,
) -> tuple[Fields, argparse.Namespace]:
    """An object of the class, and the values of the program's own flags, which `add_flags` gives to the parser. `first`
    is the field that a word which is no flag belongs to. A mistake ends the process with one line and exit code 2."""
    from sglang.version import __version__

    parser = build_parser(cls, prog, description)
    if first:
        parser.usage = f"%(prog)s [{first.partition('_')[0].upper()}] [flags]"
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file whose keys are flags without dashes; the command line goes first."
    )
    parser.argument_default = None  # build_parser leaves absent flags out of the result, which own flags need not
    add_flags(parser)
    typed, extra = parser.parse_known_args(known_words(parser, argv))
    types_of = kinds(cls)
    own = argparse.Namespace(**{k: v for k, v in vars(typed).items() if k not in types_of and k != "config"})
    given = {k: v for k, v in vars(typed).items() if k in types_of}
    if extra and not parser.problems:  # else it may be the value of a flag that is not taken
        if first and not extra[0].startswith("-"):
            if first in given:
                parser.error(f"{extra[0]!r} and {flag_of(first)} {given[first]} say the same; keep one of them")
            given[first] = extra.pop(0)
        if extra:
            parser.error(f"unexpected argument {extra[0]!r}; flags start with --")
    if getattr(typed, "config", None) is not None:
        given = from_file(parser, cls, typed.config) | given
    values = checked(parser, cls, given)
    parser.stop_for_problems()
    try:
        return cls(**values), own
    except (TypeError, ValueError) as e:
        parser.error(str(e))


def known_words(parser: OneLineParser, argv: list[str]) -> list[str]:
    """The words with flags written out, a unique beginning being enough; what is wrong with a flag is put into
    `parser.problems` and the flag left out."""
    words, at = [], 0
    while at < len(argv):
        typed, equals, value = argv[at].partition("=")
        value = value if equals else "".join(argv[at + 1 : at + 2])
        if typed.startswith("--") and means_what_is_done(name_of(typed), value):
            at += 1 if equals else 2
            continue
        try:
            words.append(whole_flag(parser, argv[at]))
        except ValueError as e:
            parser.problems.append(str(e))
        at += 1
    return words


def whole_flag(parser: OneLineParser, word: str) -> str:
    """A flag of the command line written out, if it is a unique beginning; anything else as it is. Raises ValueError
    for a flag that is not taken."""
    typed, equals, value = word.partition("=")
    actions = parser._option_string_actions
    if not typed.startswith("--") or typed in actions:
        return word
    if reason := refusal(name_of(typed)):
        raise ValueError(f"{typed} {reason}")
    known = {flag: action.dest for flag, action in actions.items()} | {flag_of(name): name for name in UNSUPPORTED}
    found = sorted(flag for flag in known if flag.startswith(typed)) if typed != "--" else []
    if not found:
        close = slip_of(typed, actions)
        raise ValueError(f"unknown flag {typed}; {f'did you mean {close}?' if close else '--help lists all flags'}")
    if len({known[flag] for flag in found}) > 1:
        more = f" and {len(found) - MAX_CANDIDATES} more" if len(found) > MAX_CANDIDATES else ""
        raise ValueError(f"{typed} could be {', '.join(found[:MAX_CANDIDATES])}{more}; write out the one you mean")
    if reason := refusal(name_of(found[0])):
        raise ValueError(f"{typed}: {found[0]} {reason}")
    return found[0] + equals + value


def checked(parser: OneLineParser, cls: type, given: dict[str, Any]) -> dict[str, Any]:
    """The fields' values, texts converted; each that is wrong goes into `parser.problems`."""
    types_of, spec_of, values = kinds(cls), specs(cls), {}
    for name, value in given.items():
        kind, optional = types_of[name]
        try:
            value = convert(name, kind, value) if isinstance(value, str) else value
            values[name] = meant(value, spec_of[name])
            validate(name, values[name], spec_of[name], kind, optional)
        except (TypeError, ValueError) as e:
            parser.problems.append(str(e))
    return values


def from_file(parser: OneLineParser, cls: type, path: str) -> dict[str, Any]:
    """Fields of --config's file. A key that is no flag of the class goes into `parser.problems`, as does a file that
    can't be read."""
    from sglang.srt.flags_file import read_flags

    try:
        entries = read_flags(path)
    except (OSError, ValueError) as e:
        parser.problems.append(f"--config {path}: {getattr(e, 'strerror', None) or e}")
        return {}
    types_of, given = kinds(cls), {}
    for key, value in entries.items():
        if means_what_is_done(key, value):
            continue
        try:
            flag = whole_flag(parser, flag_of(key))
            action = parser._option_string_actions[flag]
            if action.dest not in types_of:
                raise ValueError(f"{flag} is for the command line only")
            if action.dest in given:
                raise ValueError(f"{flag} stands there twice, under different names")
            optional = types_of[action.dest][1]
            given[action.dest] = switched(flag, action, value, optional) if action.nargs == 0 else value
        except ValueError as e:
            parser.problems.append(f"--config {path}: {e}")
    return {name: value for name, value in given.items() if value is not None}


def switched(flag: str, action: argparse.Action, value: Any, is_pair: bool) -> bool | None:
    """What a switch in a file means for its field; None: as if it were not there."""
    if value is None:
        return None
    if not isinstance(value, bool):
        raise ValueError(f"{flag}: true or false is expected, got {value!r}")
    if value:
        return action.const
    return not action.const if is_pair else None
