"""The drift meter's result as text, JSON and a chart. Reads a Drift; measures nothing."""

import importlib.util
import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang.debug.routing_record import LayerDrift
from sglang.test.compare_runs import Comparison


@dataclass(frozen=True)
class Drift:
    """What one comparison of variants `a` and `b` found. `scores` is None for prompts that have no right answer."""

    a: str
    b: str
    model: str
    prompts: int
    output_tokens: int  # of a, all prompts together
    first_differences: list[int]  # in output tokens, of the answers that differ, ascending
    layers: list[LayerDrift]
    scores: Comparison | None
    accept_lengths: list[float] | None = None  # of a and of b, with a drafter

    @property
    def changed(self) -> bool:
        """Whether anything at all differs: an expert, its place, a weight, a token."""
        changes = [change for layer in self.layers for change in (layer.change, layer.same_input)]
        return bool(self.first_differences) or any(
            change.set_changed or change.order_changed or change.weights_changed for change in changes
        )


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if part else "0"


def to_text(drift: Drift) -> str:
    tokens = drift.layers[0].tokens
    quantiles = list(drift.layers[0].margins)
    heads = ["layer", "other experts", "other order", "other weights", "largest weight difference"]
    heads += ["alone: other experts", "other order", "ties at the cut", *(f"margin {100 * q:g} %" for q in quantiles)]
    lines = [
        f"A {drift.a}",
        f"B {drift.b}",
        f"{drift.model}, {drift.prompts} prompts",
        "",
        f"Teacher-forced over {tokens} tokens, prompts and A's answers; shares of tokens. Alone: on A's inputs to the "
        "router.",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
    ]
    for layer in drift.layers:
        change, alone = layer.change, layer.same_input
        counts = [change.set_changed, change.order_changed, change.weights_changed]
        cells = [_number(layer.layer), *(share(n, tokens) for n in counts), f"{change.largest_weight_difference:.3g}"]
        cells += [share(n, tokens) for n in (alone.set_changed, alone.order_changed, layer.ties)]
        cells += [f"{margin:.4g}" for margin in layer.margins.values()]
        lines.append(f"| {' | '.join(cells)} |")
    places = drift.first_differences
    lines += ["", f"Free-running: {len(places)} of {drift.prompts} answers differ ({drift.output_tokens} tokens of A)"]
    if places:
        lines[-1] += f"; first differing token: earliest {places[0]}, median {statistics.median(places):g}"
    if drift.scores:
        won, lost = drift.scores.count(False, True), drift.scores.count(True, False)
        lines += [
            f"A scores {drift.scores.score_a}",
            f"B scores {drift.scores.score_b}",
            f"B wins {won} and loses {lost} questions: McNemar's exact p = {drift.scores.p:.3g}",
        ]
    if drift.accept_lengths:
        a, b = drift.accept_lengths
        lines.append(f"Accept length of drafts: A {a:.3f}, B {b:.3f} ({b - a:+.3f})")
    return "\n".join(lines)


def _number(layer: str) -> str:
    """The layer's number, if its router's name has one."""
    return next((part for part in layer.split(".") if part.isdecimal()), layer)


def to_json(drift: Drift) -> str:
    values = asdict(drift)
    if scores := drift.scores:
        values["scores"] = {
            "n": scores.score_a.n,
            "a_right": scores.score_a.hits,
            "b_right": scores.score_b.hits,
            "only_a_right": scores.count(True, False),
            "only_b_right": scores.count(False, True),
            "p": scores.p,
        }
    return json.dumps(_finite(values), indent=2) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(drift: Drift, path: Path) -> None:
    """A PNG with a column a layer: shares of tokens that changed, and the margins that decide how many can."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    places = range(len(drift.layers))
    figure, (shares, margins) = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    series = {
        "other experts": [layer.change.set_changed for layer in drift.layers],
        "same experts, other order": [layer.change.order_changed for layer in drift.layers],
        "other experts by this router alone": [layer.same_input.set_changed for layer in drift.layers],
    }
    for index, (name, counts) in enumerate(series.items()):
        heights = [100 * n / layer.tokens for n, layer in zip(counts, drift.layers, strict=True)]
        shares.bar([place + 0.27 * (index - 1) for place in places], heights, 0.27, label=name)
    shares.set_ylabel("% of tokens")
    shares.set_title(f"{drift.b} against {drift.a}", fontsize="medium")
    shares.legend(fontsize="small")
    for quantile in drift.layers[0].margins:
        values = [layer.margins[quantile] for layer in drift.layers]
        margins.plot(places, values, marker="o", label=f"{100 * quantile:g} % quantile")
    margins.set_ylabel("logit margin at the k-th place")
    margins.set_xlabel("layer")
    margins.set_xticks(places, [_number(layer.layer) for layer in drift.layers])
    margins.legend(fontsize="small")
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)
