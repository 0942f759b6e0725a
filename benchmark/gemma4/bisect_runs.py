"""Runs a test over commits, or over sets of switches and server flags, and tables what each does to its score.

    python benchmark/gemma4/bisect_runs.py --commits GOOD..BAD test/registered/eval/test_x.py
    python benchmark/gemma4/bisect_runs.py --set "all on:" --set "no moe: SGLANG_DISABLE_MOE_CONFIGS=1" \\
        --set "eager: --disable-cuda-graph" --repeats 3 --output-md table.md --output-png chart.png test/registered/...
    python benchmark/gemma4/bisect_runs.py --commits GOOD..BAD --bisect -- bash check.sh

Each commit is checked out in a git worktree of its own in a temporary folder, where `sglang` is that commit's python/;
compiled parts are those installed. A set's NAME=VALUE words are exported, its flags reach the servers that a test
starts through sglang.test.server_process (SGLANG_EXTRA_SERVER_ARGS). The score comes from the answers that evaluations
write (SGLANG_EVAL_OUTPUT; several of one command count together), or else from the last match of --score-pattern.
A test that is not in a commit yet runs there when it is given after `--` by its full path.

Exit code 0; 1 when a run gave no result or --bisect found no answer, 2 for flags that can't be, 130 after Ctrl-C.
"""

import argparse
import re
import shlex
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from score_runs import Configuration, RunError, Runner, git
from score_table import Report

from sglang.benchmark import INSTALL
from sglang.srt.utils.flag_types import at_least

SCORE_PATTERN = r"(?:score|Accuracy:) (?P<score>[\d.]+) \(n = (?P<n>\d+)"  # what our evaluations print
NAME_CHARS = 60  # of a commit: its hash and the beginning of its subject
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def commits(repo: Path, text: str) -> list[Configuration]:
    """`GOOD..BAD`: GOOD and the commits after it up to BAD, along first parents, oldest first. Or a list: `A,B,C`."""

    def resolve(name: str) -> str:
        return git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")

    good, dots, bad = text.partition("..")
    try:
        if dots:
            first, last = resolve(good), resolve(bad)
            after = git(repo, "rev-list", "--reverse", "--first-parent", f"{first}..{last}").split()
            git(repo, "merge-base", "--is-ancestor", first, last)
            shas = [first, *after]
        else:
            shas = [resolve(name) for name in text.split(",")]
    except RunError:
        raise RunError(f"{text}: unknown commits, or the second does not come after the first") from None
    names = [git(repo, "show", "--no-patch", "--format=%h %s", sha)[:NAME_CHARS] for sha in shas]
    return [Configuration(name, commit=sha) for sha, name in zip(shas, names, strict=True)]


def parse_set(text: str) -> Configuration:
    """`name: FLAG=1 --server-flag x`, quoted as for a shell. An argparse type."""
    name, colon, rest = text.partition(":")
    try:
        words = shlex.split(rest)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: {e}") from None
    env = {}
    while words and ASSIGNMENT.match(words[0]):
        key, _, value = words.pop(0).partition("=")
        env[key] = value
    if not colon or not name.strip() or (words and not words[0].startswith("-")):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 'name: FLAG=1 --server-flag x'")
    return Configuration(name.strip(), env=env | {"SGLANG_EXTRA_SERVER_ARGS": shlex.join(words)})


def run_all(runner: Runner, configurations: list[Configuration], report: Report) -> None:
    for place, configuration in enumerate(configurations):
        runner.run(configuration, partial(report.add, place))
    missing = [outcome.name for outcome in report.outcomes if not outcome.has_result]
    if missing:
        raise RunError(f"no result of {', '.join(missing)}")


def first_bad(runner: Runner, configurations: list[Configuration], report: Report) -> Configuration:
    """Binary search between a good first and a bad last commit. A commit is good when all its repeats pass."""

    def is_good(place: int) -> bool:
        outcomes = runner.run(configurations[place], partial(report.add, place))
        if not all(outcome.has_result for outcome in outcomes):
            raise RunError(f"no result of {configurations[place].name}, so it is neither good nor bad")
        return all(outcome.passed for outcome in outcomes)

    good, bad = 0, len(configurations) - 1
    if not is_good(good):
        raise RunError(f"the good commit fails already: {configurations[good].name}")
    if is_good(bad):
        raise RunError(f"the bad commit passes: {configurations[bad].name}")
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(middle):
            good = middle
        else:
            bad = middle
    return configurations[bad]


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def score_pattern(text: str) -> re.Pattern:
    try:
        pattern = re.compile(text)
    except re.error as e:
        raise argparse.ArgumentTypeError(f"{text!r}: {e}") from None
    if "score" not in pattern.groupindex:
        raise argparse.ArgumentTypeError(f"{text!r} has no group (?P<score>...)")
    return pattern


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] (TEST_FILE | -- COMMAND ...)",
        description="Runs a test over commits or over sets of switches and tables its scores.",
    )
    parser.add_argument("test_file", nargs="?", help="a registered test, relative to the repository")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--commits", metavar="GOOD..BAD", help="or a list A,B,C")
    what.add_argument("--set", type=parse_set, action="append", metavar="'NAME: FLAG=1 --flag x'", dest="sets")
    parser.add_argument("--bisect", action="store_true", help="find the first commit that fails; the first must pass")
    parser.add_argument("--repeats", type=at_least(1), default=1)
    parser.add_argument("--timeout-seconds", type=seconds, default=3600.0, help="of one run")
    parser.add_argument(
        "--score-pattern", type=score_pattern, default=score_pattern(SCORE_PATTERN), help="groups score (0 to 1) and n"
    )
    parser.add_argument("--score-n", type=at_least(1), help="n for a --score-pattern without a group n")
    parser.add_argument("--repo", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--output-md", type=Path, help="the table")
    parser.add_argument("--output-png", type=Path, help="a chart of the scores; needs matplotlib")
    parser.add_argument("--output-dir", type=Path, help="keep logs and answers here; new or empty")
    return parser


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the command: what stands after `--`, or python with the test file."""
    own, dashes, command = argv, "", []
    if "--" in argv:
        at = argv.index("--")
        own, dashes, command = argv[:at], "--", argv[at + 1 :]
    parser = make_parser()
    args = parser.parse_args(own)
    if bool(args.test_file) == bool(dashes) or bool(dashes) != bool(command):
        parser.error("give either a registered test file or a command after --")
    if args.bisect and not args.commits:
        parser.error("--bisect searches --commits")
    if args.sets and len({s.name for s in args.sets}) < len(args.sets):
        parser.error("each --set needs a name of its own")
    if not args.score_n and "n" not in args.score_pattern.groupindex:
        parser.error("a score needs its n: a group (?P<n>...) in --score-pattern, or --score-n")
    for path in filter(None, [args.output_md, args.output_png]):
        if not path.parent.is_dir():
            parser.error(f"{path.parent} is no folder")
    if (
        args.output_dir
        and args.output_dir.exists()
        and (not args.output_dir.is_dir() or any(args.output_dir.iterdir()))
    ):
        parser.error(f"{args.output_dir} is not an empty folder")
    if args.output_png:
        try:
            import matplotlib  # noqa: F401  (before hours of runs)
        except ImportError:
            parser.error(f"--output-png needs matplotlib: {INSTALL}")
    return args, command or [sys.executable, "-u", args.test_file]


def main(argv: list[str]) -> None:
    args, command = parse_arguments(argv)
    report = Report(f"`{shlex.join(['bisect_runs.py', *argv])}`", args.output_md, args.output_png)
    try:
        repo = Path(git(args.repo, "rev-parse", "--show-toplevel"))
        configurations = args.sets or commits(repo, args.commits)
        print(f"{len(configurations)} configurations, {args.repeats} runs each", flush=True)
        with tempfile.TemporaryDirectory(prefix="bisect_runs_") as scratch:
            worktrees, results = Path(scratch, "worktrees"), args.output_dir or Path(scratch, "results")
            for folder in (worktrees, results):
                folder.mkdir(parents=True, exist_ok=True)
            runner = Runner(
                repo=repo,
                command=command,
                is_test_file=bool(args.test_file),
                repeats=args.repeats,
                timeout=args.timeout_seconds,
                pattern=args.score_pattern,
                score_n=args.score_n,
                worktrees=worktrees,
                results=results.resolve(),
            )
            try:
                if args.bisect:
                    print(f"first bad commit: {first_bad(runner, configurations, report).name}")
                else:
                    run_all(runner, configurations, report)
            finally:
                report.finish()
    except (RunError, ValueError, OSError) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `finally`s, as Ctrl-C goes
    main(sys.argv[1:])
