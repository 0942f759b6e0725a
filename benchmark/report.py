"""Writes what the records in benchmark/results/ give: the table of targets in docs/performance.md with its chart, and
every run's tables into README.md of its card's folder.

    python benchmark/report.py            # after a study put its records there
    python benchmark/report.py --check    # exit code 1 if a page is not what the records give

Of docs/performance.md only what stands between the two markers is replaced. The chart isn't compared.
"""

import argparse
import statistics
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "gemma4"))  # the studies, whose records these are
import study_charts
from report_targets import TARGETS, Target
from run_metadata import REPOSITORY
from serving_runs import read_lines
from study import current, identity_of
from study_tables import NONE, ablation_tables, digits, rounds_table, seed_tables, table

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
LINE = 120  # characters; rows of tables are as long as they are
PARTS = {"set", "server_flags", "workload", "repeat", "result", "meta"}  # of each record of the first two
ROUNDS = "speculation_steps"
STUDIES = {
    "seed_table": "Two settings under the pull request's workload",
    "ablation": "What each optimization is worth",
    ROUNDS: "Rounds of speculation beside plain decode steps",
}
AS_IT_IS = "The server as it is"  # an ablation of one setting


def read_results(folder: Path) -> dict[str, list[dict]]:
    """The current records of each study's file, by its path. Raises ValueError for a file that can't be read."""
    found = {}
    for path in sorted(folder.rglob("*.jsonl")):
        records = read_lines(path)
        if any(record.get("study") not in STUDIES for record in records):
            print(f"{path} is left out: it has records of no study", file=sys.stderr)
        elif all(record["study"] == ROUNDS for record in records):
            found[path.relative_to(folder).as_posix()] = records
        elif any(PARTS - record.keys() for record in records):
            raise ValueError(f"{path} has records without {', '.join(sorted(PARTS))}")
        elif whole := current(records):
            found[path.relative_to(folder).as_posix()] = whole
    return found


def measured(target: Target, records: Iterable[dict]) -> dict[str, float]:
    """Hardware -> the median over the repeats of the newest configuration that was measured there."""
    groups: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for record in records:
        if (value := target.read(record)) is not None:
            same = identity_of(record) | {"repeat": None, "study": None, "set": None}
            group = groups.setdefault(record["meta"]["hardware"], {}).setdefault(str(same), [])
            group.append((record["meta"]["date"], value))
    newest = {hardware: max(of.values(), key=max) for hardware, of in groups.items()}
    return {hardware: statistics.median(value for _, value in of) for hardware, of in newest.items()}


def targets_table(found: list[dict[str, float]]) -> list[str]:
    hardware = sorted({name for values in found for name in values})
    rows = []
    for target, values in zip(TARGETS, found, strict=True):
        others = (target.upstream, target.published, target.floor)
        cells = [target.workload, target.figure, *(NONE if x is None else f"{x:g}" for x in others)]
        cells.append(target.target_text or f"{target.target:g}")
        rows.append(cells + [digits(values[name]) if name in values else NONE for name in hardware])
    head = ["workload", "figure", "upstream", "PR #26588", "floor", "target"]
    return table(head + [f"ours, {name}" for name in hardware], rows)


def floor_rows(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """For the chart: the distances to the floor of everything that has one."""
    rows = {}
    for target, values in zip(TARGETS, found, strict=True):
        if target.floor is not None:
            known = {"upstream": target.upstream, "PR #26588": target.published, "target": target.target}
            known |= {f"ours, {name}": value for name, value in values.items()}
            distances = {name: target.times_floor(x) for name, x in known.items() if x is not None}
            rows[f"{target.workload}: {target.figure}"] = distances
    return rows


def study_section(name: str, records: list[dict]) -> list[str]:
    """`name`: of the records' file, below its card's folder."""
    study, run = records[0]["study"], Path(name).parent.as_posix()
    sets = [] if study == ROUNDS else list(dict.fromkeys(record["set"]["name"] for record in records))
    title = AS_IT_IS if study == "ablation" and len(sets) == 1 else STUDIES[study]
    lines = [f"## {run}: {title[0].lower()}{title[1:]}", "", *facts(name, records), ""]
    if study == ROUNDS:
        return lines + rounds_table(records)
    if study == "ablation":
        return lines + ablation_tables(records)
    second = sets[1] if len(sets) > 1 else "(not measured yet)"
    return lines + seed_tables(records, sets[0], second)


def facts(name: str, records: list[dict]) -> list[str]:
    """On what, with what, when, and the command, all from the records themselves."""
    metas = [record["meta"] for record in records]

    def each(field: str) -> list[str]:
        return sorted({str(meta[field]) for meta in metas if meta.get(field)})

    versions = [f"{what} {' and '.join(each(what))}" for what in ("driver", "torch", "triton", "commit") if each(what)]
    days = sorted({date[:10] for date in each("date")})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    commands = [f"`{command}`" for command in each("command")]
    return [f"{', '.join([*versions, when])}. Records: [{name}]({name}). Command: {'; '.join(commands)}"]


def targets_part(found: list[dict[str, float]]) -> str:
    """The text between the markers."""
    lines = ["Made by `python benchmark/report.py` from the records in `benchmark/results/`: 26B-A4B, random weights,"]
    lines += [
        "bfloat16, one GPU, 1024 tokens in, 256 out. Floors are an H200's; they and the figures of others come from"
    ]
    lines += ["`benchmark/report_targets.py`.", "", *targets_table(found), ""]
    return "\n".join([*lines, "![Distances to the floors](img/floors.png)", ""])


def card_page(results: dict[str, list[dict]]) -> str:
    """README.md of a card's folder, from its records by their file's name below that folder."""
    hardware = sorted({record["meta"]["hardware"] for records in results.values() for record in records})
    lines = [
        f"# {' and '.join(hardware)}: every run",
        "",
        "Made by `python benchmark/report.py` from the records here.",
    ]
    for name, records in results.items():
        lines += ["", *study_section(name, records)]
    return "\n".join(part for line in lines for part in folded(line)) + "\n"


def folded(line: str) -> list[str]:
    """Prose in lines of LINE characters; a row of a table stays one."""
    if not line or line.startswith("|"):
        return [line]
    return textwrap.wrap(line, LINE, break_long_words=False, break_on_hyphens=False)


def by_card(results: dict[str, list[dict]]) -> dict[str, dict[str, list[dict]]]:
    """Folder of a card -> its records, by their file's name in it. Raises ValueError for a file outside such a folder
    or not in one of its own there."""
    found: dict[str, dict[str, list[dict]]] = {}
    for path, records in results.items():
        card, *rest = path.split("/")
        if len(rest) < 2:
            raise ValueError(f"{path} must lie in its run's folder in its card's, as h200/loads/records.jsonl does")
        found.setdefault(card, {})["/".join(rest)] = records
    return found


def with_generated(page: str, text: str) -> str:
    """The page with `text` between its markers. Raises ValueError if they are not there, once each and in order."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"the page must have the lines {BEGIN} and {END}, once each and in this order")
    return f"{before}{BEGIN}\n{text}{END}{after}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--results", type=Path, default=REPOSITORY / "benchmark" / "results", metavar="DIR", help="(benchmark/results)")
    page = REPOSITORY / "docs" / "performance.md"
    add("--page", type=Path, default=page, metavar="FILE", help="chart: img/ beside it (docs/performance.md)")
    add("--check", action="store_true", help="write nothing, exit with 1 if a page is out of date")
    add("--no-chart", action="store_true", help="leave the chart as it is")
    args = parser.parse_args(argv)
    if not (args.check or args.no_chart or study_charts.can_draw()):
        parser.error(study_charts.MISSING)
    try:
        results = read_results(args.results)
        records = [record for of in results.values() for record in of if record["study"] != ROUNDS]
        found = [measured(target, records) for target in TARGETS]
        pages = {args.page: with_generated(args.page.read_text(encoding="utf-8"), targets_part(found))}
        pages |= {args.results / card / "README.md": card_page(of) for card, of in by_card(results).items()}
        if args.check:
            old = [p for p, text in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
            for path in old:
                print(f"{path} is out of date: run python benchmark/report.py", file=sys.stderr)
            return int(bool(old))
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        if not args.no_chart:
            ours = sorted({f"ours, {name}" for values in found for name in values})
            markers = {"upstream": "x", "PR #26588": "+", "target": "|"} | dict.fromkeys(ours, "o")
            study_charts.floors_chart(args.page.parent / "img" / "floors.png", floor_rows(found), markers)
    except (OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
