"""PNG charts of ratios and of distances to floors. Matplotlib is imported when one is drawn."""

import importlib.util
import statistics
from pathlib import Path

from sglang.benchmark import INSTALL

MISSING = f"charts need matplotlib: {INSTALL}; or go without by --no-chart"


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _axes(height: float):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(9, height), layout="constrained")


def _save(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def ratio_chart(path: Path, title: str, rows: dict[str, dict[str, list[float]]]) -> None:
    """Bars of median ratios with their spread: rows[figure][series] are the ratios of the paired repeats."""
    series = list(dict.fromkeys(name for of in rows.values() for name in of))
    figure, axes = _axes(1.2 + 0.22 * len(rows) * max(1, len(series)))
    thickness = 0.8 / max(1, len(series))
    for index, name in enumerate(series):
        places = [place for place, of in enumerate(rows.values()) if of.get(name)]
        ratios = [of[name] for of in rows.values() if of.get(name)]
        medians = [statistics.median(r) for r in ratios]
        errors = [[m - min(r) for m, r in zip(medians, ratios, strict=True)]]
        errors += [[max(r) - m for m, r in zip(medians, ratios, strict=True)]]
        at = [place + index * thickness for place in places]
        axes.barh(at, [m - 1 for m in medians], thickness, left=1, xerr=errors, color=f"C{index}", label=name)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([i + 0.4 - thickness / 2 for i in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    if series:
        axes.legend(fontsize="small")
    _save(figure, path)


def floors_chart(path: Path, rows: dict[str, dict[str, float]], markers: dict[str, str]) -> None:
    """Points on a logarithmic axis: rows[workload][series] is how many times the floor it takes. `markers`: of each
    series, in the order of the legend."""
    figure, axes = _axes(1.2 + 0.35 * len(rows))
    for index, (name, marker) in enumerate(markers.items()):
        points = [(of[name], place) for place, of in enumerate(rows.values()) if name in of]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=f"C{index}", label=name, markersize=8)
    axes.axvline(1, color="black", linewidth=1, label="floor")
    axes.set_xscale("log")
    ticks = [1, 1.5, 2, 3, 5, 8, 12]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("times the floor (less is better)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)
