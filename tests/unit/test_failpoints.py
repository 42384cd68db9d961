"""Failpoints: harmless unless armed, and then at the one place and time that was asked for."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import services
from services.runtime import failpoints


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    yield sent
    failpoints.arm(None)


def test_it_acts_at_its_place_at_the_nth_time_only(signals: list[int]) -> None:
    failpoints.reach("ledger.committed")
    failpoints.arm("ledger.committed=stop@2")
    failpoints.reach("ledger.committed")
    failpoints.reach("ledger.fenced")
    assert signals == []
    failpoints.reach("ledger.committed")
    failpoints.reach("ledger.committed")
    assert signals == [signal.SIGSTOP]


@pytest.mark.parametrize(
    "setting", ["ledger.committed", "ledger.commited=kill@1", "ledger.committed=exit@1", "ledger.committed=kill@0"]
)
def test_a_setting_that_would_do_nothing_is_refused(setting: str) -> None:
    with pytest.raises(failpoints.BadFailpoint, match="FIRSTCOME_FAILPOINT"):
        failpoints.arm(setting)


def test_every_name_is_a_place_in_the_code() -> None:
    folder = Path(services.__path__[0])
    reached = [name for path in folder.rglob("*.py") for name in re.findall(r'reach\("([^"]+)"\)', path.read_text())]
    assert sorted(reached) == sorted(failpoints.NAMES)
