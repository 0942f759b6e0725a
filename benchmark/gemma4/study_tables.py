"""From a study's records to Markdown tables: medians, spread, and ratios of paired repeats. No I/O."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from optimizations import ALL_ON, OPTIMIZATIONS, PULL_REQUEST_OFF, TOGETHER, Optimization
from workloads import OneBatch, Serving, as_json

NONE = "–"


@dataclass(frozen=True)
class Figure:
    """A number that a record of `workload` (its name) holds."""

    title: str
    workload: str
    read: Callable[[dict], float | None]  # from the record's result


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return digits(self.median) + (f" ({digits(self.low)}–{digits(self.high)})" if self.count > 1 else "")

    @property
    def holds_one(self) -> bool:
        """Whether a spread of ratios leaves open which side is larger."""
        return self.low <= 1 <= self.high


def digits(value: float) -> str:
    """Four significant digits at most, all of those before the point."""
    places = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{places}f}"


def spread(values: Iterable[float]) -> Spread | None:
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None


def by_repeat(records: Iterable[dict], set_name: str, figure: Figure) -> dict[int, float]:
    """The figure of a setting in each repeat that has it."""
    found = {}
    for record in records:
        if record["set"]["name"] == set_name and record["workload"]["name"] == figure.workload:
            if (value := figure.read(record["result"])) is not None:
                found[record["repeat"]] = value
    return found


def paired_ratios(records: list[dict], a: str, b: str, figure: Figure) -> list[float]:
    """b / a of each repeat that both have, in order."""
    first, second = (by_repeat(records, name, figure) for name in (a, b))
    return [second[r] / first[r] for r in sorted(first.keys() & second.keys()) if first[r]]


def serving_figure(title: str, workload: str, field: str) -> Figure:
    return Figure(title, workload, lambda result: result.get(field))


def serving_figures(workload: str) -> list[Figure]:
    """All of bench_serving's that the comparison of two builds shows."""
    rates = {"output tok/s": "output_throughput", "total tok/s": "total_throughput"}
    figures = [serving_figure(title, workload, field) for title, field in rates.items()]
    for name, field in {"E2E": "e2e_latency", "TTFT": "ttft", "TPOT": "tpot", "ITL": "itl"}.items():
        for which in ("mean", "median", "p99"):
            figures.append(serving_figure(f"{which} {name} ms", workload, f"{which}_{field}_ms"))
    return figures


def batch_figure(title: str, batch_size: int, field: str, scale: float) -> Figure:
    """One of bench_one_batch's, times `scale`."""

    def read(result: dict) -> float | None:
        row = next((row for row in result.get("batches", []) if row["batch_size"] == batch_size), {})
        return row[field] * scale if field in row else None

    return Figure(title, OneBatch.name, read)


def cell(value: Spread | None) -> str:
    return NONE if value is None else str(value)


def ratio_cell(ratios: list[float]) -> str:
    found = spread(ratios)
    return NONE if found is None else f"{found}{' ~' if found.count > 1 and found.holds_one else ''}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [row(*head), row(*["---"] * len(head)), *(row(*cells) for cells in rows)]


@dataclass(frozen=True)
class Published:
    """What PR #26588 says of its own change on an H200 (the patched build's figures; ratios to its baseline)."""

    workload: dict
    figures: dict[str, float]
    ratios: dict[str, float]


PULL_REQUEST = Published(
    workload=as_json(Serving(80, 1024, 256, request_rate=8.0, max_concurrency=64)),
    figures={"output tok/s": 1670.7, "median TTFT ms": 74.04, "median TPOT ms": 16.62, "median E2E ms": 4338.6},
    ratios={"output tok/s": 1.0328, "median TTFT ms": 0.77, "median TPOT ms": 0.82},
)
HEADLINE = ("output tok/s", "median TTFT ms", "median TPOT ms", "median E2E ms")  # the pull request's columns
LEGEND = "Medians over repeats (lowest–highest); ratios are taken repeat by repeat. ~: they lie on both sides of 1."


def seed_tables(records: list[dict], a: str, b: str) -> list[str]:
    """The pull request's table for the two settings, then every figure with the ratio of paired repeats. Where both
    are the pull request's, what it says of itself stands beside."""
    workload = records[0]["workload"]["name"]
    is_the_same = (a, b) == (PULL_REQUEST_OFF, ALL_ON) and records[0]["workload"] == PULL_REQUEST.workload
    published = PULL_REQUEST if is_the_same else None
    figures = {figure.title: figure for figure in serving_figures(workload)}
    rows = []
    for name in (a, b):
        medians = [spread(by_repeat(records, name, figures[title]).values()) for title in HEADLINE]
        rows.append([workload, name, *(digits(m.median) if m else NONE for m in medians)])
        rows[-1].append("baseline" if name == a else change_text(records, a, b, figures))
    if published:
        stated = [digits(published.figures[title]) for title in HEADLINE]
        rows.append([workload, "PR #26588, patched, its own figures", *stated, _changes(published.ratios)])
    lines = table(["workload", "setting", *HEADLINE, "result"], rows)
    rows = []
    for title, figure in figures.items():
        values = (spread(by_repeat(records, name, figure).values()) for name in (a, b))
        rows.append([title, *map(cell, values), ratio_cell(paired_ratios(records, a, b, figure))])
        if published:
            rows[-1].append(digits(published.ratios[title]) if title in published.ratios else NONE)
    extra = ["PR #26588's ratio"] if published else []
    return [*lines, "", *table(["figure", a, b, f"{b} / {a}", *extra], rows), "", LEGEND]


def change_text(records: list[dict], a: str, b: str, figures: dict[str, Figure]) -> str:
    medians = {title: spread(paired_ratios(records, a, b, figures[title])) for title in HEADLINE}
    return _changes({title: found.median for title, found in medians.items() if found}) or NONE


def _changes(ratios: dict[str, float]) -> str:
    return ", ".join(f"{title.rpartition(' ')[0]} {ratio - 1:+.1%}" for title, ratio in ratios.items())


def without(optimization: Optimization) -> str:
    """The name of the setting that has all but this one."""
    return f"without {optimization.name}"


def ablation_figures(records: list[dict]) -> list[Figure]:
    """What is worth showing of the workloads that were measured, in their order."""
    figures = []
    for workload in {record["workload"]["name"]: record["workload"] for record in records}.values():
        name = workload["name"]
        if workload["kind"] == "serving":
            figures.append(serving_figure("output tok/s", name, "output_throughput"))
            figures += [serving_figure(f"median {n.upper()} ms", name, f"median_{n}_ms") for n in ("ttft", "tpot")]
        elif workload["kind"] == "one_batch":
            for size in workload["batch_sizes"]:
                figures.append(batch_figure(f"decode of {size} ms", size, "median_decode_latency", 1e3))
                figures.append(batch_figure(f"prefill of {size} ms", size, "prefill_latency", 1e3))
        elif workload["kind"] == "cold_start":
            figures.append(serving_figure("ready after s", name, "ready_seconds"))
    return figures


def ablation_tables(records: list[dict]) -> list[str]:
    """A row a figure: what it is with everything on, and how it changes when something is off. Then kernels alone.

    Settings that the records do not hold have no column."""
    measured = {record["set"]["name"] for record in records}
    columns = [name for name in [*map(without, OPTIMIZATIONS), *TOGETHER] if name in measured]
    rows = []
    for figure in ablation_figures(records):
        on = spread(by_repeat(records, ALL_ON, figure).values())
        ratios = (ratio_cell(paired_ratios(records, ALL_ON, name, figure)) for name in columns)
        rows.append([f"{figure.workload}: {figure.title}", cell(on), *ratios])
    cases = kernel_cases(records)
    if cases and columns:
        quoted = {without(o): quoted_case(o, cases) for o in OPTIMIZATIONS}
        rows.append(["its kernel alone: time", NONE, *(quoted.get(name, NONE) for name in columns)])
    lines = table(["figure", ALL_ON, *columns], rows)
    if columns:
        lines += ["", f"Columns to the right: the figure there, divided by the one with all on. {LEGEND}"]
    if cases:
        lines += ["", *kernel_table(cases)]
    return lines


def kernel_cases(records: list[dict]) -> list[dict]:
    """The last line of each case of a kernel."""
    found = {}
    for record in records:
        if record["workload"]["kind"] == "kernel":
            found |= {(case["kernel"], case["case"]): case for case in record["result"]["cases"]}
    return list(found.values())


def quoted_case(optimization: Optimization, cases: list[dict]) -> str:
    for case in cases:
        if (case["kernel"], case["case"]) == (optimization.kernel, optimization.case) and case["off_us"]:
            times = f"{digits(case['us'])} → {digits(case['off_us'])} us, {case['case']}"
            return f"{digits(case['off_us'] / case['us'])}: {times}"
    return NONE


def kernel_table(cases: list[dict]) -> list[str]:
    rows = []
    for case in cases:
        us, off = case["us"], case["off_us"]
        ratio = digits(off / us) if off else NONE
        rows.append(
            [case["kernel"], case["case"], digits(us), digits(off) if off else NONE, ratio, digits(case["floor_us"])]
        )
    return table(["kernel", "case", "on us", "off us", "off / on", "floor us"], rows)


def rounds_table(records: list[dict]) -> list[str]:
    """Of speculation_steps.py's records, a line a batch size."""
    columns = ("plain", "draft", "verify", "round", "break_even")
    head = ["batch", "plain step ms", "drafts ms", "verify ms", "round ms", "break-even accept length"]
    return table(head, [[str(r["batch_size"]), *(f"{r[column]:.2f}" for column in columns)] for r in records])
