"""REDRIVE: has dead letters put into the line again, so many a second; the scheduler of redrives publishes them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncEngine

from services.dlq.operator_store import LetterFilter, retry_many
from services.dlq.replay.job import HeldJob
from services.dlq.rows import FIRST
from services.dlq.validation import letter_filter
from services.domain.dead_letter import DeadLetterState
from services.domain.model import Ticket
from services.runtime.fields import Fields
from services.runtime.postgres import Connection, connection
from services.runtime.wire import from_timestamp

LETTERS_MAX = 500
"""How many are handed to the line in one transaction."""
LOOK_AGAIN_S = 0.2
LOOKS_MAX = 50
"""How often a dead letter is come back to that somebody else has locked, before it counts as failed."""


@dataclass(frozen=True, slots=True)
class _Cursor:
    """All before and at `after` has been looked at; `again` of these was locked by somebody, `looks` times in a row."""

    after: Ticket = FIRST
    again: tuple[Ticket, ...] = ()
    looks: int = 0

    @classmethod
    def parse(cls, checkpoint: str) -> _Cursor | None:
        if not checkpoint:
            return None
        after, again, looks = json.loads(checkpoint)
        return cls(Ticket(*after), tuple(Ticket(*ticket) for ticket in again), looks)

    def text(self) -> str:
        return json.dumps([self.after, self.again, self.looks])


class Redrive:
    """Takes the dead letters that match the filter, and last failed before the job was created, in the order of their
    tickets. Each is taken once: one that parks again is not this job's any more."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def run(self, held: HeldJob) -> None:
        """Raises JobLost, JobInterrupted, DatabaseAway, BooksWrong."""
        wanted = wanted_letters(held)
        cursor = _Cursor.parse(held.checkpoint)
        if cursor is None:
            cursor = await self._begin(held, wanted)
        if held.job.dry_run:
            return
        size = held.batch_max(LETTERS_MAX)
        while True:
            await held.turn(size)
            after = await self._step(held, wanted, cursor, size)
            if after is None:
                _settle_counts(held)
                return
            cursor = after
            if cursor.looks:
                await held.wait(LOOK_AGAIN_S)

    async def _begin(self, held: HeldJob, wanted: LetterFilter) -> _Cursor:
        """How many there are, and where to begin: once, whoever goes on with the job later."""
        async with connection(self._engine) as db, db.transaction():
            condition, values = wanted.condition()
            held.job.matched_count = await db.fetchval(f"SELECT count(*) FROM dead_letter d WHERE {condition}", *values)
            held.checkpoint = _Cursor().text()
            await held.save(db)
        return _Cursor()

    async def _step(self, held: HeldJob, wanted: LetterFilter, cursor: _Cursor, size: int) -> _Cursor | None:
        """Hand the next ones to the line and note it, in one transaction; None where there are no more."""
        job = held.job
        async with connection(self._engine) as db, db.transaction():
            tickets = await _next(db, wanted, cursor.after, size)
            asked = tickets or list(cursor.again[:size])
            if not asked:
                return None
            retried = await retry_many(
                db,
                asked,
                now_us=time.time_ns() // 1_000,
                caller=job.caller,
                comment=held.name,
                states=frozenset({wanted.state or DeadLetterState.PARKED}),
            )
            left = sorted(set(asked) - set(retried))
            locked = await _still(db, wanted, left) if left else []
            if tickets:
                after = replace(cursor, after=tickets[-1], again=(*cursor.again, *locked))
            else:
                locked = locked if cursor.looks < LOOKS_MAX else []
                after = replace(cursor, again=(*cursor.again[size:], *locked), looks=cursor.looks + 1)
            job.done_count += len(retried)
            job.failed_count += len(left) - len(locked)
            held.checkpoint = after.text()
            await held.save(db)  # in the same transaction: what is noted as done is done, once
        return after


def _settle_counts(held: HeldJob) -> None:
    """What was there at first and was not taken has been changed by somebody else before its turn came."""
    job = held.job
    job.failed_count = max(job.matched_count - job.done_count, 0)
    job.matched_count = job.done_count + job.failed_count


def wanted_letters(held: HeldJob) -> LetterFilter:
    """The job's filter: PARKED where it names no state, and nothing that failed since the job was created."""
    wanted = letter_filter(Fields(), "", held.job.dead_letters)
    created_us = from_timestamp(held.job.create_time)
    before_us = created_us if wanted.failed_before_us is None else min(wanted.failed_before_us, created_us)
    return replace(wanted, state=wanted.state or DeadLetterState.PARKED, failed_before_us=before_us)


async def _next(db: Connection, wanted: LetterFilter, after: Ticket, limit: int) -> list[Ticket]:
    condition, values = wanted.condition()
    count = len(values)
    rows = await db.fetch(
        f"""
SELECT d.ticket_partition, d.ticket_offset FROM dead_letter d
WHERE {condition} AND (d.ticket_partition, d.ticket_offset) > (${count + 1}, ${count + 2})
ORDER BY d.ticket_partition, d.ticket_offset LIMIT ${count + 3}""",
        *values,
        *after,
        limit,
    )
    return [Ticket(*row) for row in rows]


async def _still(db: Connection, wanted: LetterFilter, tickets: list[Ticket]) -> list[Ticket]:
    """Those that match all the same: somebody had them locked."""
    condition, values = wanted.condition()
    count = len(values)
    rows = await db.fetch(
        f"""
SELECT d.ticket_partition, d.ticket_offset FROM dead_letter d
JOIN unnest(${count + 1}::int[], ${count + 2}::bigint[]) AS asked (ticket_partition, ticket_offset)
    USING (ticket_partition, ticket_offset)
WHERE {condition}""",
        *values,
        [ticket.partition for ticket in tickets],
        [ticket.offset for ticket in tickets],
    )
    return sorted(Ticket(*row) for row in rows)
