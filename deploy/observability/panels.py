"""Grafana dashboards from a few words a panel: what is on it, in which unit, and what its lines are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 24
HEIGHT = 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA_VERSION = 39


@dataclass(frozen=True)
class Query:
    """PromQL, and the legend of its lines ({{label}} is filled in)."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """`unit` is Grafana's name of it. `kind`: timeseries, stat or bargauge. `limits`: value → colour from there on."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    width: int = 8
    limits: Mapping[float, str] | None = None
    stacked: bool = False
    maximum: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """Rows of panels under a heading."""

    uid: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]

    def json(self) -> dict[str, Any]:
        """As Grafana imports it."""
        panels: list[dict[str, Any]] = []
        y = 0
        for heading, row in self.rows.items():
            panels.append({"type": "row", "title": heading, "gridPos": _place(0, y, WIDTH, 1), "collapsed": False})
            x, y = 0, y + 1
            for panel in row:
                if x + panel.width > WIDTH:
                    x, y = 0, y + HEIGHT
                panels.append(_panel(panel, _place(x, y, panel.width, HEIGHT)))
                x += panel.width
            y += HEIGHT
        for number, made in enumerate(panels, start=1):
            made["id"] = number
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["firstcome"],
            "timezone": "browser",
            "schemaVersion": SCHEMA_VERSION,
            "refresh": "5s",
            "time": {"from": "now-15m", "to": "now"},
            "templating": {
                "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
            },
            "panels": panels,
        }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": value} for value, colour in (panel.limits or {}).items()]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, "min": 0}
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    options: dict[str, Any]
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 5,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "line" if panel.limits else "off"},
        }
        legend = {"showLegend": True, "displayMode": "list", "placement": "bottom"}
        options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for number, query in enumerate(panel.queries)
        ],
    }
