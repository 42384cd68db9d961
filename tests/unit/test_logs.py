"""What the services log: static words, all of them documented, and no line for each request."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing

from services.runtime import trace_context
from services.runtime.log import Seldom, _add_trace

REPOSITORY = Path(__file__).parents[2]
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| \S.*\|$", re.MULTILINE)


def logged() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted((REPOSITORY / "services").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                owner = ast.unparse(node.func.value)
                if owner.endswith("log") and owner != "self._log":
                    yield f"{path.name}:{node.lineno}", node


def test_events_are_static_words_and_documented_with_their_levels() -> None:
    found = set()
    for place, call in logged():
        assert isinstance(call.func, ast.Attribute)
        (event,) = call.args
        assert isinstance(event, ast.Constant), place
        assert isinstance(event.value, str), place
        assert re.fullmatch(r"[a-z_0-9]+", event.value), f"{place}: {event.value}"
        found.add((event.value, "error" if call.func.attr == "exception" else call.func.attr))
    rows = _ROW.findall((REPOSITORY / "docs/logs.md").read_text())
    assert len(found) > 40
    assert set(rows) == found, f"docs/logs.md lacks {found - set(rows)}, and has {set(rows) - found} too many"
    assert rows == sorted(rows), "by name"


def test_what_happens_to_every_request_is_said_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    with structlog.testing.capture_logs() as lines:
        log = Seldom("test", lambda: now_s)
        for _ in range(1_000):
            log.warning("issue_unavailable", error="away")
        log.error("call_failed")
        now_s += 1.0
        log.warning("issue_unavailable", error="away")
    assert [(line["event"], line["count"], line["log_level"]) for line in lines] == [
        ("issue_unavailable", 1, "warning"),
        ("call_failed", 1, "error"),
        ("issue_unavailable", 1_000, "warning"),
    ]


def test_a_line_carries_its_callers_trace_also_where_no_traces_are_exported() -> None:
    token = trace_context.incoming.set((("traceparent", f"00-{'a' * 32}-{'b' * 16}-00"),))
    try:
        line = _add_trace(None, "info", {"event": "serving"})
    finally:
        trace_context.incoming.reset(token)
    assert (line["trace_id"], line["span_id"]) == ("a" * 32, "b" * 16)
    assert "trace_id" not in _add_trace(None, "info", {"event": "serving"})
