"""The table of configurations and their scores, and its chart."""

from dataclasses import dataclass, field
from pathlib import Path

from score_runs import Outcome

from sglang.test.compare_runs import compare


def table(outcomes: list[Outcome]) -> str:
    """Markdown. The last column holds each run's answers against those of the first."""
    lines = ["| configuration | score (n, 95 % interval) | delta | status | answers changed against the first row |"]
    lines += ["|---|---|---|---|---|"]
    for outcome in outcomes:
        score, delta, first = "none", "", outcomes[0].score
        if outcome.score:
            low, high = outcome.score.interval
            score = f"{outcome.score.share:.3f} (n = {outcome.score.n}, {low:.3f} to {high:.3f})"
            delta = f"{outcome.score.share - first.share:+.3f}" if first and outcome is not outcomes[0] else ""
        name = outcome.name.replace("|", "\\|")
        lines.append(f"| {name} | {score} | {delta} | {outcome.status} | {changes(outcomes[0], outcome)} |")
    return "\n".join(lines) + "\n"


def changes(first: Outcome, outcome: Outcome) -> str:
    if outcome is first:
        return ""
    if not first.answers or not outcome.answers:
        return "not known"
    try:
        comparison = compare(first.answers, outcome.answers)
    except ValueError:
        return "other questions"
    lost, won = comparison.count(True, False), comparison.count(False, True)
    return f"{len(comparison.changed)} of {len(comparison.pairs)} ({lost} lost, {won} won, p = {comparison.p:.3g})"


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Scores with their intervals, first row on top."""
    from matplotlib.figure import Figure

    scored = [outcome for outcome in outcomes if outcome.score]
    figure = Figure(figsize=(8, 1.5 + 0.35 * len(scored)), layout="constrained")
    axes = figure.subplots()
    for row, outcome in enumerate(scored):
        share, (low, high) = outcome.score.share, outcome.score.interval
        colour = "tab:blue" if outcome.passed else "tab:red"
        axes.errorbar(share, row, xerr=[[share - low], [high - share]], fmt="o", capsize=4, color=colour)
    axes.set_yticks(range(len(scored)), [outcome.name[:50].replace("$", r"\$") for outcome in scored])
    axes.set_ylim(len(scored) - 0.5, -0.5)
    axes.set_xlabel("score, 95 % interval (red: the test failed)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


@dataclass
class Report:
    """The table so far. Its Markdown is written after each run, so that nothing measured is lost."""

    heading: str
    markdown: Path | None
    chart: Path | None
    rows: dict[int, list[Outcome]] = field(default_factory=dict)  # by the configuration's place

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for _, row in sorted(self.rows.items()) for outcome in row]

    def add(self, place: int, outcome: Outcome) -> None:
        self.rows.setdefault(place, []).append(outcome)
        if self.markdown:
            self.markdown.write_text(f"{self.heading}\n\n{table(self.outcomes)}", encoding="utf-8")

    def finish(self) -> None:
        if self.outcomes:
            print(f"\n{table(self.outcomes)}")
            if self.chart:
                draw(self.outcomes, self.chart)
