"""Command-line fields: a dataclass field carries its flag, help, group and check; this file turns such a
dataclass into an argument parser and validates values. It knows no flag by name.

Annotations understood: bool, int, float, str, dict, each also as `T | None` (None = filled in later or absent).
`bool` is a switch (`--x` means True). `bool | None` is a pair (`--x` True, `off_flag` False, neither None).
"""

import argparse
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable

Check = Callable[[typing.Any], str | None]  # returns what is wrong with the value, None when it is fine

SLIP = 0.75  # least share of letters in common of two words of which one is a slip for the other: prot, port
_KIND_NAMES = {int: "an integer", float: "a number", str: "text", dict: "a JSON object", bool: "true or false"}
_METAVARS = {int: "N", float: "X", str: "TEXT", dict: "JSON"}


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """What a field's metadata holds besides its dataclass default."""

    help: str
    group: str
    check: Check | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    off_flag: str | None = None  # only for `bool | None`
    metavar: str | None = None
    same: tuple[tuple[str, str], ...] = ()  # other spellings of values: (typed, meant)


def arg(
    default,
    *,
    help: str,
    group: str,
    check: Check | None = None,
    choices: Iterable[str] = (),
    aliases: Iterable[str] = (),
    off_flag: str | None = None,
    metavar: str | None = None,
    same: dict[str, str] | None = None,
    secret: bool = False,
):
    """Declare a field. `same`: other spellings of its values. `secret` keeps the value out of repr()."""
    spec = ArgSpec(help, group, check, tuple(choices), tuple(aliases), off_flag, metavar, tuple((same or {}).items()))
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={"arg": spec}, repr=not secret)
    return dataclasses.field(default=default, metadata={"arg": spec}, repr=not secret)


def at_least(low: float) -> Check:
    return lambda value: None if value >= low else f"must be at least {low}"


def between(low: float, high: float) -> Check:
    return lambda value: None if low <= value <= high else f"must be between {low} and {high}"


def non_empty(value: str) -> str | None:
    return None if value.strip() else "must not be empty"


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def name_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that looks most like `name`, None when none is close."""
    return next(iter(difflib.get_close_matches(name, sorted(valid), n=1)), None)


def slip_of(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` is a slip of the finger for: word for word alike, or the same but for dashes and
    underscores. None where the names merely resemble: such flags of other programs mean something else."""
    words = name.replace("_", "-").strip("-").split("-")

    def likeness(other: str) -> float:
        others = other.replace("_", "-").strip("-").split("-")
        if "".join(words) == "".join(others):
            return 1
        if len(words) != len(others):
            return 0
        return min(difflib.SequenceMatcher(None, a, b).ratio() for a, b in zip(words, others, strict=True))

    best = max(sorted(valid), key=likeness, default=None)
    return best if best is not None and likeness(best) >= SLIP else None


def specs(cls) -> dict[str, ArgSpec]:
    return {f.name: f.metadata["arg"] for f in dataclasses.fields(cls)}


def kinds(cls) -> dict[str, tuple[type, bool]]:
    """Field name -> (base type, may be None)."""
    out = {}
    for name, hint in typing.get_type_hints(cls).items():
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        base = [m for m in members if m is not type(None)]
        out[name] = (typing.get_origin(base[0]) or base[0], type(None) in members)
    return out


def all_flags(cls) -> set[str]:
    """Every spelling the parser takes."""
    flags = set()
    for name, spec in specs(cls).items():
        flags |= {flag_of(name), *spec.aliases}
        if spec.off_flag:
            flags.add(spec.off_flag)
    return flags


def meant(value, spec: ArgSpec):
    """The value in the spelling that the field holds."""
    return dict(spec.same).get(value, value) if isinstance(value, str) else value


def convert(name: str, kind: type, text: str):
    """Text from the command line -> a value of `kind`. Raises ValueError that names the flag."""
    try:
        if kind is dict:
            value = json.loads(text)
            if not isinstance(value, dict):
                raise ValueError
            return value
        return kind(text)
    except ValueError:
        raise ValueError(f"{flag_of(name)}: expected {_KIND_NAMES[kind]}, got {text!r}") from None


def validate(name: str, value, spec: ArgSpec, kind: type, optional: bool) -> None:
    """Raises TypeError for a wrong type, ValueError for a wrong value; the message names flag, value and limit."""
    if value is None and optional:
        return
    flag = flag_of(name)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{flag}: expected {_KIND_NAMES[kind]}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{flag}: expected a finite number, got {value!r}")
    if spec.choices and value not in spec.choices:
        close = nearest(str(value), spec.choices)
        hint = f"; did you mean {close}?" if close else ""
        raise ValueError(f"{flag}: {value!r} is not one of {', '.join(spec.choices)}{hint}")
    problem = spec.check(value) if spec.check else None
    if problem:
        raise ValueError(f"{flag}: {problem}, got {value!r}")


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line on stderr and exit code 2, without the usage text. What is in `problems` when
    an error comes is told with it, so that nobody mends a command flag by flag."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.problems: list[str] = []

    def error(self, message: str) -> typing.NoReturn:
        message = message.removeprefix("argument ").replace("ignored explicit argument", "takes no value, got")
        self.exit(2, f"error: {'. '.join(dict.fromkeys([*self.problems, message]))}\n")

    def stop_for_problems(self) -> None:
        """End with the problems, if there are any."""
        if self.problems:
            self.error(self.problems.pop())


class _SwitchAction(argparse.Action):
    """One half of an on/off pair; giving both halves is an error."""

    def __init__(self, option_strings, dest, const, **kwargs):
        super().__init__(option_strings, dest, nargs=0, const=const, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        if getattr(namespace, self.dest, self.const) != self.const:
            parser.error(f"{option_string} contradicts the opposite switch given before; keep one of them")
        setattr(namespace, self.dest, self.const)


def build_parser(cls, prog: str, description: str) -> OneLineParser:
    """A parser that leaves values as text and absent flags out of its namespace."""
    parser = OneLineParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s [flags]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    types_of = kinds(cls)
    for field in dataclasses.fields(cls):
        spec: ArgSpec = field.metadata["arg"]
        kind, optional = types_of[field.name]
        if spec.group not in groups:
            groups[spec.group] = parser.add_argument_group(spec.group)
        group = groups[spec.group]
        flags = [flag_of(field.name), *spec.aliases]
        text = spec.help.replace("%", "%%")
        if kind is bool and not optional:
            group.add_argument(*flags, dest=field.name, action="store_true", help=text)
        elif kind is bool:
            group.add_argument(*flags, dest=field.name, action=_SwitchAction, const=True, help=text)
            group.add_argument(
                spec.off_flag, dest=field.name, action=_SwitchAction, const=False, help=f"the opposite of {flags[0]}"
            )
        else:
            if spec.choices:
                text += f" One of: {', '.join([*spec.choices, *dict(spec.same)])}."
            if field.default not in (None, dataclasses.MISSING):
                text += f" (default: {field.default})"
            group.add_argument(*flags, dest=field.name, metavar=spec.metavar or _METAVARS[kind], help=text)
    return parser
