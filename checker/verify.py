"""Verifies a standing system: waits until it is settled, then audits its topics and tables."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from checker.audit import audit
from checker.findings import Check, Findings, Report
from checker.history import History
from checker.pace import Limits
from checker.records import CouponRow, DeadLetterRow, Progress, Record, Ticket, VerdictRow
from checker.tables import Tables
from checker.topics import Extent, TopicNames, extents, read

DRAIN_POLL_S = 0.2
ROUNDS_MAX = 3
"""How often the audit is begun anew because records came in while it ran (the dlq service redrives by itself)."""


async def verify(
    bootstrap: str,
    dsn: str,
    *,
    topic_prefix: str = "",
    history: Path | Sequence[Path] | None = None,
    drain_timeout_s: float = 60,
    say: Callable[[str], None] | None = None,
    limits: Limits | None = None,
) -> Report:
    """Wait until everything is settled, then compare line, tables, dead letters, outcomes and histories.

    A line that is not settled within `drain_timeout_s` is a finding, and what is there is audited all the same.
    `say` is told what is being done; `limits` is what is asked beyond the promises. Raises TopicError, HistoryError,
    OSError, asyncpg.PostgresError.
    """
    paths = [] if history is None else [history] if isinstance(history, Path) else list(history)
    names, tell = TopicNames(topic_prefix), say or (lambda text: None)
    async with await Tables.connect(dsn) as tables:
        rounds = 0
        while True:
            rounds += 1
            findings = Findings()
            tell("waiting until the line is settled")
            await tables.live()
            found = await _drain(bootstrap, names, tables, findings, drain_timeout_s)
            _check_beginnings(findings, names, found)
            await tables.snapshot()
            tell("comparing topics and tables")
            report = await audit(_Standing(bootstrap, names, tables, found), _read(paths), findings, limits)
            now = await extents(bootstrap, [names.line, names.dlq])
            moved = [topic for topic in now if now[topic] != found[topic]]
            if not moved:
                return report
            if rounds == ROUNDS_MAX:
                findings.add(Check.NOT_QUIET, f"{', '.join(moved)} grew in each of {ROUNDS_MAX} rounds")
                return findings.report(report.counts)


def _read(paths: Sequence[Path]) -> History | None:
    return History.read(paths) if paths else None


async def _drain(
    bootstrap: str, names: TopicNames, tables: Tables, findings: Findings, timeout_s: float
) -> Mapping[str, tuple[Extent, ...]]:
    """The extents of all topics once all is settled, or as they are when time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await extents(bootstrap, [names.line, names.dlq])
        behind = _behind(names, found, await tables.progress())
        if not behind or time.monotonic() > deadline:
            for message, ticket in behind:
                findings.add(Check.NOT_DRAINED, f"{message} after {timeout_s:g} s", ticket=ticket)
            # Last, so that it has the outcomes of all that is settled.
            return {**found, **await extents(bootstrap, [names.outcomes])}
        await asyncio.sleep(DRAIN_POLL_S)


def _behind(
    names: TopicNames, found: Mapping[str, tuple[Extent, ...]], progress: Sequence[Progress]
) -> list[tuple[str, Ticket]]:
    """What is not settled yet, with the first open offset."""
    rows = {(row.topic, row.partition): row for row in progress}
    behind: list[tuple[str, Ticket]] = []
    for topic in (names.line, names.dlq):
        for partition, extent in enumerate(found[topic]):
            row = rows.get((topic, partition), Progress(topic, partition, 0, 0))
            place = Ticket(partition, row.next_offset)
            if row.next_offset != extent.end:
                behind.append((f"{topic}/{partition} is processed to {row.next_offset} of {extent.end}", place))
            elif topic == names.line and row.published_offset != extent.end:
                place = Ticket(partition, row.published_offset)
                behind.append((f"{topic}/{partition} is published to {row.published_offset} of {extent.end}", place))
    return behind


def _check_beginnings(findings: Findings, names: TopicNames, found: Mapping[str, tuple[Extent, ...]]) -> None:
    for topic in (names.line, names.dlq):
        for partition, extent in enumerate(found[topic]):
            if extent.begin != 0:
                findings.add(Check.LOG_BEGINS_LATE, f"{topic}/{partition} begins at {extent.begin}: records are gone")


class _Standing:
    """The books of a standing system, up to the extents found before."""

    def __init__(
        self, bootstrap: str, names: TopicNames, tables: Tables, found: Mapping[str, tuple[Extent, ...]]
    ) -> None:
        self._bootstrap = bootstrap
        self._names = names
        self._tables = tables
        self._extents = found

    @property
    def line_topic(self) -> str:
        return self._names.line

    @property
    def partition_count(self) -> int:
        return len(self._extents[self._names.line])

    def line(self, partition: int) -> AsyncIterator[Sequence[Record]]:
        return self._records(self._names.line, partition)

    def dead_letters(self, partition: int) -> AsyncIterator[Sequence[Record]]:
        return self._records(self._names.dlq, partition)

    def outcomes(self, partition: int) -> AsyncIterator[Sequence[Record]]:
        return self._records(self._names.outcomes, partition)

    async def outcomes_begin(self, partition: int) -> int:
        return self._extents[self._names.outcomes][partition].begin

    async def verdicts(self, partition: int, start: int, end: int | None) -> Sequence[VerdictRow]:
        return await self._tables.verdicts(partition, start, end)

    async def verdicts_elsewhere(self) -> Sequence[VerdictRow]:
        return await self._tables.verdicts_elsewhere(self.partition_count)

    async def coupons(self) -> Sequence[CouponRow]:
        return await self._tables.coupons()

    def dead_letter_rows(self) -> AsyncIterator[Sequence[DeadLetterRow]]:
        return self._tables.dead_letter_rows()

    def _records(self, topic: str, partition: int) -> AsyncIterator[Sequence[Record]]:
        return read(self._bootstrap, topic, partition, self._extents[topic][partition])
