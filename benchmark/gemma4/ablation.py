"""What is each optimization worth? Switches them off one at a time, under traffic, in static batches and alone.

    python benchmark/gemma4/ablation.py [--concurrency 1 8 32 64] [--one-batch 1 8 26 64] [--kernels] [--cold-start]
    python benchmark/gemma4/ablation.py --sets "all on" --concurrency 1 64    # the server as it is

Settings are all on, each of optimizations.py off, some off together; they take turns, one server alive at a time. The
workload of seed_table.py is always measured; the flags add others. What comes after `--` goes to all servers. Writes
records.jsonl, table.md and chart.png into the output folder. Exit codes: 0 measured, or the time budget ended it; 1 a
server or a run failed; 2 wrong flags.
"""

import argparse
import sys

import study_charts
from optimizations import ALL_ON, OPTIMIZATIONS, TOGETHER, switched_off
from serving_runs import Commands, Setting
from study import Step, interleave
from study_cli import make_parser, parse, rate_workload, run_study
from study_tables import ablation_figures, ablation_tables, paired_ratios, without
from workloads import ColdStart, KernelBench, OneBatch, Serving

from sglang.srt.utils.flag_types import at_least

NAME = "ablation"
BATCH_OUTPUT = 64  # tokens of each request of a static batch: enough decode steps for a median


def all_settings() -> list[Setting]:
    singles = [Setting(without(optimization), optimization.env) for optimization in OPTIMIZATIONS]
    groups = [Setting(name, switched_off(optimizations)) for name, optimizations in TOGETHER.items()]
    return [Setting(ALL_ON), *singles, *groups]


def make_arguments() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, NAME)
    count = {"type": at_least(1), "nargs": "+", "default": [], "metavar": "N"}
    parser.add_argument("--concurrency", **count, help="also so many at once, 3 times as many prompts, no rate")
    parser.add_argument("--one-batch", **count, help="also static batches of these sizes (bench_one_batch)")
    parser.add_argument("--kernels", action="store_true", help="also the kernels alone (needs a GPU)")
    parser.add_argument("--cold-start", action="store_true", help="also one start with an empty kernel cache")
    names = [setting.name for setting in all_settings()]
    parser.add_argument("--sets", nargs="+", choices=names, default=names, metavar="SET", help="only these settings")
    return parser


def make_plan(args: argparse.Namespace) -> list[Step]:
    settings = [setting for setting in all_settings() if setting.name in args.sets]
    plan = [Step(settings[0], ColdStart())] if args.cold_start else []
    loads = [rate_workload(args)] + [
        Serving(max(4, 3 * n), args.input_len, args.output_len, None, n) for n in args.concurrency
    ]
    plan += interleave(settings, loads, args.repeats, args.repeats_per_start or 1)
    if args.one_batch:
        batches = OneBatch(tuple(args.one_batch), args.input_len, BATCH_OUTPUT)
        plan += interleave(settings, [batches], args.repeats, 1)
    if args.kernels:
        plan += [
            Step(settings[0], KernelBench(optimization.bench)) for optimization in OPTIMIZATIONS if optimization.bench
        ]
    return plan


def main(argv: list[str], commands: Commands = Commands()) -> int:  # noqa: B008
    parser = make_arguments()
    args = parse(parser, argv)

    def write(records: list[dict]) -> str:
        text = "\n".join(ablation_tables(records)) + "\n"
        (args.output_dir / "table.md").write_text(text, encoding="utf-8")
        if not args.no_chart:
            off = [setting.name for setting in all_settings()[1:]]
            rows = {
                f"{f.workload}: {f.title}": {name: paired_ratios(records, ALL_ON, name, f) for name in off}
                for f in ablation_figures(records)
            }
            study_charts.ratio_chart(args.output_dir / "chart.png", "divided by all on", rows)
        return text

    return run_study(NAME, args, argv, make_plan(args), commands, write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
