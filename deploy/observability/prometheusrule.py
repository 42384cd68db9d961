"""`python -m deploy.observability.prometheusrule` writes the rules again as the Prometheus operator takes them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
PATH = FOLDER / "prometheusrule.yaml"
HEAD = """\
# Made of rules/ by `make dashboards`: edit those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: firstcome
spec:
  groups:
"""


def text() -> str:
    """The groups of all files of rules/, word for word."""
    return HEAD + "".join(_groups(path) for path in sorted((FOLDER / "rules").glob("*.yaml")))


def _groups(path: Path) -> str:
    _, _, groups = path.read_text().partition("\ngroups:\n")
    return "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


if __name__ == "__main__":
    PATH.write_text(text())
