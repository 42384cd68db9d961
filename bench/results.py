"""What the bench found: flat figures, series for the plots, and what went wrong."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hdrh.histogram import HdrHistogram

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "p999": 99.9}
CDF_PERCENTILES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5, 99.8, 99.9, 99.99, 100)
Series = list[tuple[float, float]]


@dataclass(slots=True)
class Results:
    """Filled by the scenarios. `series`: plot → line → points."""

    figures: dict[str, float | int | str] = field(default_factory=dict)
    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    faults: list[dict[str, float | int | str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def put(self, **figures: float | int | str) -> None:
        """Rounded to four significant digits."""
        for name, value in figures.items():
            self.figures[name] = float(f"{value:.4g}") if isinstance(value, float) else value

    def put_latency(self, name: str, latencies: HdrHistogram) -> None:
        """Percentiles in milliseconds, as <name>_p50_ms and so on, and the whole as a line of the latency plot."""
        found_ms = {share: latencies.get_value_at_percentile(share) / 1000 for share in CDF_PERCENTILES}
        self.put(**{f"{name}_{short}_ms": found_ms[percentile] for short, percentile in PERCENTILES.items()})
        self.line("latency", name, [(ms, share / 100) for share, ms in found_ms.items()])

    def line(self, plot: str, name: str, points: Series) -> None:
        self.series.setdefault(plot, {})[name] = points

    def fail(self, what: str) -> None:
        """Something that makes the run no good."""
        self.failures.append(what)

    def write(self, folder: Path) -> None:
        """results.json: flat. series.json: what is plotted, and the faults."""
        folder.mkdir(parents=True, exist_ok=True)
        flat = {**dict(sorted(self.figures.items())), "failures": len(self.failures)}
        (folder / "results.json").write_text(json.dumps(flat, indent=2) + "\n")
        rest = {"series": self.series, "faults": self.faults, "failures": self.failures}
        (folder / "series.json").write_text(json.dumps(rest) + "\n")


def ratios_text(ours: Sequence[float], limit: Sequence[float]) -> str:
    """The ratios of slices that were measured one after the other, each for itself."""
    return "/".join(f"{ratio:.2f}" for ratio in _ratios(ours, limit))


def median_ratio(ours: Sequence[float], limit: Sequence[float]) -> float:
    """The median of the ratios of slices that were measured one after the other."""
    return statistics.median(_ratios(ours, limit))


def _ratios(ours: Sequence[float], limit: Sequence[float]) -> list[float]:
    return [mine / its for mine, its in zip(ours, limit, strict=True)]
