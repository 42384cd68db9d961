"""Which records of a batch have spans of their own, and which share them."""

from __future__ import annotations

from typing import Any

import pytest

from services.runtime import batch_traces, telemetry
from services.runtime.batch_traces import APART_MAX
from services.runtime.telemetry import Attributes
from services.runtime.trace_context import parse

FIRST, SECOND = (f"00-{trace * 32}-{trace * 16}-01".encode() for trace in "ab")
UNSAMPLED = FIRST[:-1] + b"0"


def test_many_of_one_traceparent_share_a_span_and_few_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, Attributes]] = []

    def emit(*span: Any) -> None:
        _, _, _, parent, _, _, what = span
        told.append((parent, {key: what[key] for key in what if key.startswith(("firstcome", "messaging.batch"))}))

    monkeypatch.setattr(batch_traces, "emit", emit)
    monkeypatch.setattr(telemetry, "is_on", lambda: True)
    few = range(0, 2 * APART_MAX, 2)
    many = range(1, 2 * APART_MAX + 3, 2)
    assert (len(few), len(many)) == (APART_MAX, APART_MAX + 1)
    traces = {**dict.fromkeys(few, FIRST), **dict.fromkeys(many, SECOND), 1_000: UNSAMPLED, 1_001: b""}
    batch_traces.sent("outcomes", 3, dict(sorted(traces.items())), 0)
    own = [(parse(FIRST), {"firstcome.ticket": f"3-{offset}"}) for offset in few]
    shared = (parse(SECOND), {"firstcome.ticket": "3-1", "messaging.batch.message_count": APART_MAX + 1})
    assert told == [*own, shared]
