"""Figures and rows as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

MISSING = "not run"


class Figures:
    """Figures as text."""

    def __init__(self, figures: Mapping[str, float | int | str]) -> None:
        self._figures = figures

    def __call__(self, key: str) -> str:
        value = self._figures.get(key, MISSING)
        if isinstance(value, str):
            return value
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    def has(self, *keys: str) -> bool:
        return all(key in self._figures for key in keys)

    def number(self, key: str) -> float:
        return float(self._figures[key])


def section(heading: str, text: str, rows: str) -> list[str]:
    """Heading, text and table; nothing without rows."""
    return [part for part in (heading, text, rows) if part] if rows else []


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Empty without rows."""
    listed = [f"| {' | '.join(row)} |" for row in rows]
    if not listed:
        return ""
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *listed])
