"""The plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from bench.results import Series

matplotlib.use("Agg")

from matplotlib import pyplot

SIZE_INCHES = (9.0, 5.0)
DPI = 110


@dataclass(frozen=True, slots=True)
class _Plot:
    title: str
    across: str
    up: str
    log_across: bool = False
    marked: bool = False


_PLOTS = {
    "latency": _Plot("Latency from the intended time", "ms", "share of the calls", log_across=True),
    "throughput": _Plot("Batches of 1,000, one hot coupon", "s", "requests/s"),
    "rush": _Plot("A rush on one coupon", "s", "requests/s"),
    "lag": _Plot("Accepted and not settled", "s", "requests"),
    "backlog": _Plot("The ledger drains a backlog", "s", "requests/s"),
    "growth": _Plot("While the table grows", "rows", "settled/s", log_across=True, marked=True),
}


def draw(series: Mapping[str, Mapping[str, Series]], folder: Path) -> list[Path]:
    """A PNG for each plot that has lines; returns their paths."""
    paths = []
    for name, plot in _PLOTS.items():
        lines = series.get(name)
        if not lines:
            continue
        figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DPI)
        for label, points in lines.items():
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, marker="o" if plot.marked else None)
        if plot.log_across:
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set(title=plot.title, xlabel=plot.across, ylabel=plot.up)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        path = folder / f"{name}.png"
        figure.savefig(path, bbox_inches="tight")
        pyplot.close(figure)
        paths.append(path)
    return paths
