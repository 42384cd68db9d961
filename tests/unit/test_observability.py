"""Rules and dashboards, as far as they can be judged without running services."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.observability import dashboards
from deploy.observability.panels import Panel
from services.runtime import metrics
from services.runtime.config import dlq_config, issuer_config, ledger_config
from services.runtime.instruments import Histogram
from tests.prometheus import program

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "deploy/observability/rules"
TESTS = sorted((FOLDER / "tests").glob("*.yaml"))
_NAMES = re.compile(r"\b(?:firstcome|rpc)_\w+|firstcome:[\w:]+")
_SUFFIXES = ("_bucket", "_sum", "_count")
_LABELS = {"rpc_method", "rpc_response_status_code"}


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for path in sorted(FOLDER.glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def known() -> set[str]:
    """What the services, or recording rules, make."""
    names = {rule["record"] for rule in rules() if "record" in rule}
    for one in metrics.ALL:
        histogram = isinstance(one, Histogram)
        names |= {one.prometheus_name + suffix for suffix in _SUFFIXES} if histogram else {one.prometheus_name}
    return names


def panels() -> Iterator[Panel]:
    for dashboard in dashboards.ALL:
        for row in dashboard.rows.values():
            yield from row


def test_the_rules_are_valid_and_do_what_their_tests_say() -> None:
    promtool = program("promtool")
    for command in (["check", "rules", *FOLDER.glob("*.yaml")], ["test", "rules", *TESTS]):
        done = subprocess.run(
            [promtool, *map(str, command)], capture_output=True, text=True, check=False, timeout=60, cwd=FOLDER
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_and_says_where_help_is() -> None:
    tested = "".join(path.read_text() for path in TESTS)
    anchors = {f"#{line.removeprefix('## ').strip().lower()}" for line in _runbook() if line.startswith("## ")}
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names) >= 11
    for alert in alerts():
        name = alert["alert"]
        assert name in tested or name.removeprefix("Firstcome") in tested
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert f"#{name.lower()}" in anchors, f"docs/runbook.md has no section {name}"


def _runbook() -> list[str]:
    return (REPOSITORY / "docs/runbook.md").read_text().splitlines()


@pytest.mark.parametrize("what", ["rules", "dashboards"])
def test_they_ask_for_nothing_that_the_code_lacks(what: str) -> None:
    asked = [rule["expr"] for rule in rules()] if what == "rules" else [q.expr for p in panels() for q in p.queries]
    names = {name for expr in asked for name in _NAMES.findall(expr)} - _LABELS
    assert len(names) > 10
    assert names <= known(), names - known()


def test_a_newcomer_understands_the_panels() -> None:
    for panel in panels():
        assert panel.title
        assert panel.description.endswith("."), panel.title
        assert panel.unit, panel.title
        assert all(query.legend for query in panel.queries), panel.title


def test_the_committed_dashboards_are_those_of_the_code() -> None:
    made = dashboards.files()
    assert {path.name for path in dashboards.FOLDER.glob("*.json")} == {path.name for path in made}
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name}: run make dashboards"


def test_compose_starts_services_that_accept_their_settings_and_are_scraped() -> None:
    compose = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    mounts = {
        mount.split(":")[1]: REPOSITORY / mount.split(":")[0]
        for one in compose.values()
        for mount in one.get("volumes", [])
    }
    assert all(path.exists() for path in mounts.values()), mounts
    scraped = yaml.safe_load((REPOSITORY / "deploy/observability/prometheus.yaml").read_text())["scrape_configs"]
    targets = {one["job_name"]: one["static_configs"][0]["targets"] for one in scraped}
    for name, read in (("issuer", issuer_config), ("ledger", ledger_config), ("dlq", dlq_config)):
        environ = {key: str(value) for key, value in compose[name]["environment"].items()}
        environ["FIRSTCOME_TOKENS"] = str(mounts[environ["FIRSTCOME_TOKENS"]])
        common = read(environ).common
        assert common.metrics_listen is not None
        assert targets[name] == [f"{name}:{common.metrics_listen.rpartition(':')[2]}"]
        assert compose[name]["command"] == [f"services.{name}"]
    provider = yaml.safe_load(mounts["/etc/grafana/provisioning/dashboards/firstcome.yaml"].read_text())["providers"][0]
    assert mounts[provider["options"]["path"]] == dashboards.FOLDER
    sources = yaml.safe_load(mounts["/etc/grafana/provisioning/datasources/firstcome.yaml"].read_text())["datasources"]
    assert {one["type"]: urlsplit(one["url"]).hostname for one in sources} == {
        "prometheus": "prometheus",
        "jaeger": "jaeger",
    }
    assert all(urlsplit(one["url"]).hostname in compose for one in sources)
    for one in compose.values():
        for port in one.get("ports", []):
            assert port.startswith("127.0.0.1:"), "on this machine only"
