"""PR #26588's own experiment for two settings side by side: 80 prompts of 1024 tokens, 256 out, 8 a second, 64 at once.

    python benchmark/gemma4/seed_table.py                                     # what it kept off (A) and on (B)
    python benchmark/gemma4/seed_table.py --a "off: SGLANG_DISABLE_MOE_CONFIGS=1" --b "on:" -- --cuda-graph-max-bs 64
    python benchmark/gemma4/seed_table.py --a-path ../before --b-path .       # two checkouts

The two take turns (A B A B), one server alive at a time, started anew for each turn; a repeat has the same prompts and
arrivals for both. What comes after `--` goes to both servers. Writes records.jsonl, table.md and chart.png into the
output folder. Exit codes: 0 measured, or the time budget ended it; 1 a server or a run failed; 2 wrong flags.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import study_charts
from optimizations import ALL_ON, KEPT_BY_PULL_REQUEST, PULL_REQUEST_OFF, switched_off
from serving_runs import Commands, Setting
from study import interleave
from study_cli import make_parser, package_of, parse, parse_setting, rate_workload, run_study
from study_tables import paired_ratios, seed_tables, serving_figures

NAME = "seed_table"


def make_arguments() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, NAME)
    form = "'[name:] [ENV=value ...] [--flag value ...]'"
    parser.add_argument("--a", metavar="SET", help=f"the first setting, {form} (what the pull request kept off)")
    parser.add_argument("--b", metavar="SET", help="the second (everything on)")
    parser.add_argument("--a-path", type=Path, metavar="DIR", help="checkout or installation that A runs")
    parser.add_argument("--b-path", type=Path, metavar="DIR", help="the same for B")
    parser.add_argument("--keep-alive", action="store_true", help="both servers alive at once, where memory allows")
    return parser


def two_settings(args: argparse.Namespace) -> tuple[Setting, Setting]:
    """Raises ValueError for flags that contradict each other."""
    if (args.a is None) != (args.b is None) or (args.a_path is None) != (args.b_path is None):
        raise ValueError("--a and --b go together, and so do --a-path and --b-path")
    if args.keep_alive and args.repeats_per_start:
        raise ValueError("--keep-alive starts each server once: leave --repeats-per-start out")
    if args.a is not None:
        a, b = parse_setting(args.a, "A"), parse_setting(args.b, "B")
    elif args.a_path:
        a, b = Setting("A"), Setting("B")
    else:
        a, b = Setting(PULL_REQUEST_OFF, switched_off(KEPT_BY_PULL_REQUEST)), Setting(ALL_ON)
    if a.name == b.name:
        raise ValueError(f"both settings are called '{a.name}'")
    if args.a_path:
        a, b = (
            dataclasses.replace(s, package=package_of(path)) for s, path in ((a, args.a_path), (b, args.b_path))
        )  # fmt: skip
    return a, b


def main(argv: list[str], commands: Commands = Commands()) -> int:  # noqa: B008
    parser = make_arguments()
    args = parse(parser, argv)
    try:
        a, b = two_settings(args)
    except ValueError as e:
        parser.error(str(e))
    workload = rate_workload(args)
    plan = interleave([a, b], [workload], args.repeats, args.repeats_per_start or 1, args.keep_alive)

    def write(records: list[dict]) -> str:
        text = "\n".join(seed_tables(records, a.name, b.name)) + "\n"
        (args.output_dir / "table.md").write_text(text, encoding="utf-8")
        if not args.no_chart:
            figures = serving_figures(workload.name)
            rows = {f.title: {b.name: paired_ratios(records, a.name, b.name, f)} for f in figures}
            study_charts.ratio_chart(args.output_dir / "chart.png", f"{b.name} / {a.name}", rows)
        return text

    return run_study(NAME, args, argv, plan, commands, write, args.keep_alive)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
