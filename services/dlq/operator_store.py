"""What operators do to dead letters: look, retry, correct, discard. All of its SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from services.dlq.rows import (
    CONTENT,
    LETTER,
    VERDICT,
    Act,
    Call,
    Content,
    Correction,
    act,
    content_of,
    headers_text,
    letter_of,
    lock,
    update,
)
from services.domain.dead_letter import DeadLetter, DeadLetterState, WrongState, retry
from services.domain.model import ParkReason, Ticket
from services.runtime.postgres import Connection, connection

ACTIONS_MAX = 1_000
PARKED_ONLY = frozenset({DeadLetterState.PARKED})


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
            ("d.last_failed_at >=", self.failed_after_us),
            ("d.last_failed_at <", self.failed_before_us),
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


@dataclass(frozen=True, slots=True)
class Entry:
    """A dead letter in short. `version` counts its changes."""

    letter: DeadLetter
    version: int
    coupon_id: str | None
    user_id: str | None
    request_id: str | None
    trace_id: str | None
    record_us: int


@dataclass(frozen=True, slots=True)
class TakenAction:
    """What was done about a dead letter, by whom, why and when."""

    action: str
    caller: str
    comment: str
    time_us: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A dead letter whole: its bytes, and the newest ACTIONS_MAX actions, oldest first."""

    entry: Entry
    content: Content
    actions: Sequence[TakenAction]


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator's call makes of a dead letter."""

    letter: DeadLetter
    action: str
    correction: Correction | None = None


class Missing(Exception):
    """There is no such dead letter."""


class Outdated(Exception):
    """The dead letter has changed since the version that the caller saw."""


class RequestIdReused(Exception):
    """The request_id is that of an earlier call about this dead letter which asked for something else."""


class OperatorStore:
    """Dead letters as operators see and change them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def get(self, ticket: Ticket) -> Shown:
        """Raises Missing, DatabaseAway."""
        async with connection(self._engine) as db:
            return await _shown(db, ticket)

    async def entries(self, wanted: LetterFilter, after: Ticket, limit: int) -> list[Entry]:
        """Dead letters by ticket, at most `limit`, behind `after` (FIRST for the first). Raises DatabaseAway."""
        condition, values = wanted.condition()
        count = len(values)
        statement = f"""
SELECT {LETTER}, {_REST} FROM dead_letter d
WHERE {condition} AND (d.ticket_partition, d.ticket_offset) > (${count + 1}, ${count + 2})
ORDER BY d.ticket_partition, d.ticket_offset LIMIT ${count + 3}"""
        async with connection(self._engine) as db:
            return [_entry(row) for row in await db.fetch(statement, *values, *after, limit)]

    async def operate(
        self,
        ticket: Ticket,
        call: Call,
        version: int | None,
        decide: Callable[[DeadLetter, Content], Change],
        *,
        caller: str,
        comment: str,
    ) -> Shown:
        """Do what the call asks for, unless it was done already; returns the dead letter as it is then.

        `version` is the one that the caller saw, None for any. Raises Missing, RequestIdReused, Outdated, WrongState,
        DatabaseAway (COMMIT may have taken effect: the same call again does nothing twice).
        """
        async with connection(self._engine) as db, db.transaction():
            await lock(db, [ticket])
            shown = await _shown(db, ticket)
            done = await db.fetchval(_CALL, *ticket, call.request_id)
            if done is not None:
                if done != call.payload_hash:
                    raise RequestIdReused
                return shown
            if version is not None and version != shown.entry.version:
                raise Outdated
            await _must_be_unsettled(db, ticket)
            change = decide(shown.entry.letter, shown.content)
            await update(db, [change.letter])
            if (correction := change.correction) is not None:
                headers = headers_text(correction.headers)
                await db.execute(_CORRECT, *ticket, correction.value, headers, correction.coupon_id)
            await act(db, [Act(ticket, change.action, None, comment, caller, call)])
            return await _shown(db, ticket)


async def _must_be_unsettled(db: Connection, ticket: Ticket) -> None:
    """In a restored database a redrive may have a verdict that is not noted yet. Raises WrongState."""
    row = await db.fetchrow(_VERDICT_OF, *ticket)
    if row is not None:
        settled = Ticket(row["settled_partition"], row["settled_offset"])
        raise WrongState(f"dead letter {ticket} is settled by its redrive {settled}: {row['verdict']}")


async def _shown(db: Connection, ticket: Ticket) -> Shown:
    row = await db.fetchrow(_WHOLE, *ticket)
    if row is None:
        raise Missing
    actions = [
        TakenAction(done["action"], done["caller"], done["comment"], done["acted_at"])
        for done in await db.fetch(_ACTIONS, *ticket, ACTIONS_MAX)
    ]
    return Shown(_entry(row), content_of(row), actions)


def _entry(row: Any) -> Entry:
    return Entry(
        letter=letter_of(row),
        version=row["version"],
        coupon_id=row["coupon_id"],
        user_id=row["user_id"],
        request_id=row["request_id"],
        trace_id=row["trace_id"],
        record_us=row["record_time"],
    )


_REST = "d.version, d.coupon_id, d.user_id, d.request_id, d.trace_id, d.record_time"
_WHOLE = f"""
SELECT {LETTER}, {CONTENT}, d.version FROM dead_letter d WHERE d.ticket_partition = $1 AND d.ticket_offset = $2"""
_ACTIONS = """
SELECT action, caller, comment, acted_at FROM (
    SELECT id, action, caller, comment, acted_at FROM dead_letter_action
    WHERE ticket_partition = $1 AND ticket_offset = $2 ORDER BY id DESC LIMIT $3
) AS newest ORDER BY id"""
_CALL = """
SELECT payload_hash FROM dead_letter_action
WHERE ticket_partition = $1 AND ticket_offset = $2 AND request_id = $3"""
_CORRECT = """
UPDATE dead_letter SET corrected_value = $3, corrected_headers = $4::text::json, corrected_coupon_id = $5
WHERE ticket_partition = $1 AND ticket_offset = $2"""
_VERDICT_OF = f"""
SELECT v.settled_partition, v.settled_offset, v.verdict FROM dead_letter d CROSS JOIN {VERDICT}
WHERE d.ticket_partition = $1 AND d.ticket_offset = $2 AND d.state IN ('PARKED', 'RETRYING')"""
_RETRIABLE = f"""
SELECT {LETTER} FROM dead_letter d
WHERE (d.ticket_partition, d.ticket_offset) IN (SELECT * FROM unnest($1::int[], $2::bigint[]))
    AND d.state = ANY($3::text[])
ORDER BY d.ticket_partition, d.ticket_offset FOR UPDATE OF d SKIP LOCKED"""
