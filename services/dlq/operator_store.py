"""What operators do to dead letters: look, retry, correct, discard. All of its SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from services.dlq.rows import LETTER, Act, act, letter_of, update
from services.domain.dead_letter import DeadLetter, DeadLetterState, retry
from services.domain.model import ParkReason, Ticket
from services.runtime.postgres import Connection, connection
from services.runtime.rows import to_time

PARKED_ONLY = frozenset({DeadLetterState.PARKED})
FIRST = Ticket(-1, -1)
"""Before every ticket: where a list begins."""


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are asked for; None: any. The times are of the last failure, `after` included, `before` not.

    So what has failed again behind a fix is told apart from what waits since before it.
    """

    state: DeadLetterState | None = None
    reason: ParkReason | None = None
    coupon_id: str | None = None
    user_id: str | None = None
    failed_after_us: int | None = None
    failed_before_us: int | None = None

    def condition(self) -> tuple[str, list[Any]]:
        """As SQL over the table `d`, its parameters numbered from $1."""
        wanted = (
            ("d.state =", self.state),
            ("d.reason =", self.reason),
            ("d.coupon_id =", self.coupon_id),
            ("d.user_id =", self.user_id),
            ("d.last_failed_at >=", to_time(self.failed_after_us)),
            ("d.last_failed_at <", to_time(self.failed_before_us)),
        )
        named = [(comparison, value) for comparison, value in wanted if value is not None]
        clauses = [f"{comparison} ${number}" for number, (comparison, _) in enumerate(named, start=1)]
        return " AND ".join(clauses) or "true", [value for _, value in named]


async def retry_many(
    db: Connection,
    tickets: Sequence[Ticket],
    *,
    now_us: int,
    caller: str,
    comment: str,
    states: frozenset[DeadLetterState] = PARKED_ONLY,
) -> list[Ticket]:
    """Have those of the tickets' dead letters that are in one of the `states` redriven now; returns which those are.

    For jobs: it is to be called inside the job's own transaction, `async with connection(engine) as db,
    db.transaction()`, so that the job's progress is committed with it and nothing is retried twice after a crash. The
    scheduler publishes them as soon as that is committed, those with a correction as corrected.

    Not among the returned: tickets without a dead letter, those in another state, and those that somebody else has
    locked, for which the job may come again. `states` may hold PARKED and RETRYING. Each change is recorded as the
    action RETRYING by `caller` with `comment`. Raises WrongState for other states, DatabaseAway, BooksWrong.
    """
    listed = sorted(set(tickets))
    rows = await db.fetch(_RETRIABLE, [t.partition for t in listed], [t.offset for t in listed], sorted(states))
    letters = [retry(letter_of(row), now_us=now_us) for row in rows]
    await update(db, letters)
    await act(db, [Act(letter.original, letter.state, None, comment, caller) for letter in letters])
    return [letter.original for letter in letters]


class OperatorStore:
    """Dead letters as operators see and change them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def letters(self, wanted: LetterFilter, after: Ticket, limit: int) -> list[DeadLetter]:
        """Dead letters by ticket, at most `limit`, behind `after` (FIRST for the first). Raises DatabaseAway."""
        condition, values = wanted.condition()
        count = len(values)
        statement = f"""
SELECT {LETTER} FROM dead_letter d
WHERE {condition} AND (d.ticket_partition, d.ticket_offset) > (${count + 1}, ${count + 2})
ORDER BY d.ticket_partition, d.ticket_offset LIMIT ${count + 3}"""
        async with connection(self._engine) as db:
            return [letter_of(row) for row in await db.fetch(statement, *values, *after, limit)]


_RETRIABLE = f"""
SELECT {LETTER} FROM dead_letter d
WHERE (d.ticket_partition, d.ticket_offset) IN (SELECT * FROM unnest($1::int[], $2::bigint[]))
    AND d.state = ANY($3::text[])
ORDER BY d.ticket_partition, d.ticket_offset FOR UPDATE OF d SKIP LOCKED"""
