"""What seed_table.py and ablation.py share: their flags, the checks before anything starts, and how a study ends."""

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import run_metadata
import study_charts
from optimizations import OPTIMIZATIONS
from run_metadata import REPOSITORY
from serving_runs import PYTHON, Commands, Setting
from study import Options, Outcome, Records, Step, Study, left_out_text
from workloads import Serving

import sglang
from sglang.srt.utils.flag_types import at_least, positive

RESULTS = REPOSITORY / "benchmark" / "results"
MODEL = REPOSITORY / "benchmark" / "gemma4" / "configs" / "26b-a4b"
OURS = ("--model-path", "--model", "--load-format", "--host", "--port", "--skip-tokenizer-init", "--api-key")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
INTERRUPTED = 130


def make_parser(doc: str, name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model-path", type=Path, default=MODEL, metavar="FOLDER", help="model of all servers (26B-A4B's config)")
    add("--load-format", default="dummy", help="its weights: dummy (random, the default) or those in the folder: auto")
    add("--repeats", type=at_least(1), default=3, metavar="N", help="of each setting (3)")
    add("--repeats-per-start", type=at_least(1), metavar="N", help="before the settings change their turn (1)")
    add("--num-prompts", type=at_least(1), default=80, metavar="N", help="of the rate workload (80)")
    add("--input-len", type=at_least(1), default=1024, metavar="N", help="tokens of each prompt, exact (1024)")
    add("--output-len", type=at_least(2), default=256, metavar="N", help="tokens of each answer, exact (256)")
    add("--request-rate", type=positive, default=8.0, metavar="R", help="arrivals a second, Poisson (8)")
    add("--max-concurrency", type=at_least(1), default=64, metavar="N", help="of the rate workload (64)")
    add("--warmup-prompts", type=at_least(0), default=16, metavar="N", help="unrecorded, after each start (16)")
    add("--seed", type=at_least(0), default=1, help="of the first repeat's prompts; the next count on (1)")
    add("--timeout-seconds", type=positive, default=900.0, metavar="S", help="for a start and for a run (900)")
    add("--time-budget-seconds", type=positive, metavar="S", help="begin nothing that would probably end later")
    add("--output-dir", type=Path, default=RESULTS / name, metavar="DIR", help=f"(benchmark/results/{name})")
    add("--resume", action="store_true", help="keep what the output folder has of this configuration, do the rest")
    add("--no-chart", action="store_true", help="no chart.png, which needs matplotlib")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The flags, with those after `--` as `server_flags`. Exits with 2 for what can't be right."""
    own, _, server = (argv[: argv.index("--")], "--", argv[argv.index("--") + 1 :]) if "--" in argv else (argv, "", [])
    args = parser.parse_args(own)
    try:
        args.server_flags = checked_flags(server)
        _check(args)
    except ValueError as e:
        parser.error(str(e))
    return args


def checked_flags(words: list[str]) -> list[str]:
    """Server flags as they are. Raises ValueError for a stray word or a flag that the study gives itself."""
    if words and not words[0].startswith("--"):
        raise ValueError(f"{words[0]} is neither NAME=value nor a --flag")
    for word in words:
        if word.partition("=")[0] in OURS:
            raise ValueError(f"{word.partition('=')[0]} is given to the servers by this script, not as a server flag")
    return words


def _check(args: argparse.Namespace) -> None:
    if not args.no_chart and not study_charts.can_draw():
        raise ValueError(study_charts.MISSING)
    if not (args.model_path / "config.json").is_file():
        raise ValueError(f"--model-path {args.model_path} has no config.json")
    if is_set := sorted({name for o in OPTIMIZATIONS for name in o.env} & os.environ.keys()):
        raise ValueError(f"{', '.join(is_set)} is set here and would reach every server: unset it")
    records = args.output_dir / "records.jsonl"
    if records.exists() and not args.resume:
        raise ValueError(f"{records} exists: go on with --resume, or choose another --output-dir")


def parse_setting(text: str, default_name: str) -> Setting:
    """`[name:] [ENV=value ...] [--flag value ...]`. Raises ValueError."""
    found = re.match(r"\s*([^:=|-][^:=|]*):(?:\s+|$)", text)  # the first colon, with nothing like a flag before it
    name, rest = (found[1].strip(), text[found.end() :]) if found else (default_name, text)
    words = shlex.split(rest)
    env: dict[str, str] = {}
    while words and ASSIGNMENT.match(words[0]):
        variable, _, value = words.pop(0).partition("=")
        env[variable] = value
    return Setting(name, env, tuple(checked_flags(words)))


def package_of(root: Path) -> Path:
    """The sglang folder of a checkout or an installation. Raises ValueError if there is none, or if it is not the one
    that servers would import."""
    package = next((p for p in (root / "python" / "sglang", root / "sglang") if (p / "__init__.py").is_file()), None)
    if package is None:
        raise ValueError(f"{root} has neither python/sglang nor sglang")
    package = package.resolve()
    ask = [PYTHON, "-c", "import sglang; print(sglang.__file__)"]
    done = subprocess.run(ask, capture_output=True, text=True, env=Setting("", package=package).environment())
    if done.returncode or Path(done.stdout.strip()).parent.resolve() != package:
        raise ValueError(f"sglang comes from {done.stdout.strip() or 'nowhere'} although {package} was asked for")
    return package


def rate_workload(args: argparse.Namespace) -> Serving:
    return Serving(args.num_prompts, args.input_len, args.output_len, args.request_rate, args.max_concurrency)


def run_study(
    name: str,
    args: argparse.Namespace,
    argv: list[str],
    plan: list[Step],
    commands: Commands,
    write: Callable[[list[dict]], str],
    keep_alive: bool = False,
) -> int:
    """Runs the plan; `write(records)` makes table and chart of what there is, however it ended. The exit code: 0 all
    was measured or the time budget ended it, 1 something failed, 2 it can't be run here, 130 it was interrupted."""
    settings = {step.setting.name: step.setting for step in plan}
    packages = {name: setting.package or Path(sglang.__file__).parent for name, setting in settings.items()}
    budget = args.time_budget_seconds
    options = Options(args.seed, args.warmup_prompts, args.timeout_seconds, budget, keep_alive)
    flags = ["--model-path", str(args.model_path.resolve()), "--load-format", args.load_format]
    flags += ["--skip-tokenizer-init", *args.server_flags]
    outcome = Outcome()
    code = 0
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        records = Records(args.output_dir / "records.jsonl")
        metas = {name: run_metadata.collect([sys.argv[0], *argv], package) for name, package in packages.items()}
        builds = sorted({meta["build"] for meta in metas.values()})
        metas = {name: meta | {"builds": builds} for name, meta in metas.items()}
        study = Study(name, flags, plan, records, metas, options, commands)
        with terminable():
            study.run(outcome)
    except KeyboardInterrupt:
        print("interrupted: what was measured so far is saved", file=sys.stderr)
        code = INTERRUPTED
    except (OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        code = 1
    if outcome.records:
        print(write(outcome.records))
    if outcome.left_out:
        print(f"The time budget of {budget:g} s is spent. Left out, for the same command with --resume:")
        print(left_out_text(outcome.left_out))
    if outcome.failure:
        print(f"error: {outcome.failure}", file=sys.stderr)
    return code or (2 if outcome.refused else 1 if outcome.failure else 0)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM interrupts as Ctrl-C does, so that servers are ended."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
