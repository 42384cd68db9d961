"""How an issuer follows the outcomes: what of them it looks at, and when it asks for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from services.domain.model import Changed, ChangeOutcome, Coupon, CouponState, Issued, Ticket, UserId, Verdict
from services.issuer import outcomes
from services.issuer.outcomes import OutcomesTail
from services.runtime import wire
from services.runtime.fetching import EARLIEST, Fetched, LogRecord
from tests.unit.batches import batch, reader_of
from tests.unit.line import ANN, R1, R2, SPRING, START_US, coupon

BOB = UserId("bob")
PATIENCE_S = 10


class Log:
    """One partition of outcomes."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._batches: list[tuple[int, bytes]] = []
        self._end = 0
        self._grown = asyncio.Event()

    def append(self, *verdicts: Verdict) -> None:
        messages = list(wire.outcome_messages("line", 0, verdicts, {}))
        self._batches.append((self._end, batch(self._end, messages)))
        self._end += len(messages)
        self._grown.set()

    async def start(self) -> None:
        """There at once."""

    async def offset_at(self, timestamp_ms: int) -> int:
        return 0 if timestamp_ms == EARLIEST else self._end

    async def fetch(self, offset: int, **_: Any) -> Fetched:
        self.asked.append(offset)
        while offset >= self._end:
            self._grown.clear()
            await self._grown.wait()
        return Fetched(b"".join(raw for base, raw in self._batches if base >= offset), offset, self._end)

    async def close(self) -> None:
        """Nothing is open."""


@contextlib.asynccontextmanager
async def following(log: Log) -> AsyncIterator[OutcomesTail]:
    """A tail of it."""
    tail, stopping = OutcomesTail(lambda _: reader_of(log), 1, waiters_max=10), asyncio.Event()
    running = asyncio.create_task(tail.run(stopping))
    await asyncio.wait_for(tail.ready(), PATIENCE_S)
    try:
        yield tail
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def seen(tail: OutcomesTail, offset: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while tail.seen().get(0, -1) < offset:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_outcomes_gather_at_the_broker_until_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "UNAWAITED_S", 3_600)
    log = Log()
    async with following(log) as tail:
        log.append(Issued(4, START_US, SPRING, ANN, R1, 1))
        await seen(tail, 4)
        log.append(Issued(5, START_US, SPRING, BOB, R2, 2), Issued(6, START_US, SPRING, ANN, R1, 3))
        await asyncio.sleep(0.05)
        assert (log.asked, dict(tail.seen())) == ([0], {0: 4})
        waiter = tail.register((SPRING, BOB, R2))
        waiter.bind(Ticket(0, 5))
        told = await waiter.wait(PATIENCE_S)
        assert told is not None
        assert told.ticket == Ticket(0, 5)
        tail.leave((SPRING, BOB, R2), waiter)
        log.append(Issued(7, START_US, SPRING, ANN, R1, 4))
        await seen(tail, 7)
        asked = list(log.asked)
        log.append(Issued(8, START_US, SPRING, ANN, R1, 5))
        await asyncio.sleep(0.05)
        assert (log.asked, dict(tail.seen())) == (asked, {0: 7})


async def test_after_a_while_outcomes_are_read_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "UNAWAITED_S", 0.02)
    log = Log()
    async with following(log) as tail:
        for offset in (4, 5, 6):
            log.append(Issued(offset, START_US, SPRING, ANN, R1, 1))
            await seen(tail, offset)
    assert log.asked[:3] == [0, 1, 2]


async def test_where_nobody_waits_the_last_outcome_and_changes_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "UNAWAITED_S", 0)
    scan = outcomes._scan
    scanned: list[int] = []
    changed: list[Coupon] = []

    def scan_counted(records: Sequence[LogRecord]) -> Any:
        scanned.append(len(records))
        return scan(records)

    monkeypatch.setattr(outcomes, "_scan", scan_counted)
    grants = [Issued(offset, START_US, SPRING, UserId(f"user-{offset}"), R1, offset) for offset in range(4, 24)]
    paused: Coupon = coupon(SPRING, etag="0-30")
    change = Changed(30, START_US, SPRING, R2, b"hash", False, ChangeOutcome(None, paused, CouponState.PAUSED), "ann")
    log = Log()
    async with following(log) as tail:
        tail.on_coupon = changed.append
        log.append(*grants)
        await seen(tail, 23)
        assert scanned == [1]
        log.append(Issued(29, START_US, SPRING, ANN, R1, 29), change, Issued(31, START_US, SPRING, BOB, R2, 30))
        await seen(tail, 31)
        assert scanned == [1, 3]
        assert [one.coupon_id for one in changed] == [SPRING]
