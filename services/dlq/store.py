"""All of the dlq's SQL. Every change of a dead letter stands beside the action that says who made it and why."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.dead_letter import DeadLetter, DeadLetterState, Failure, Filed, redrive, resolve
from services.domain.model import (
    TIME_US_MAX,
    TIME_US_MIN,
    CouponId,
    ParkReason,
    RequestId,
    Ticket,
    UserId,
    printable,
)
from services.runtime import failpoints
from services.runtime.postgres import Connection, connection
from services.runtime.progress import Overtaken, Position, ProgressRows
from services.runtime.rows import expect, to_time, to_us, to_us_or_none

CALLER = "dlq"
"""Who acted, where no operator did."""
FAILED = "FAILED"
"""The action of a counted failure; all others are named after the state that they lead to."""

Headers = tuple[tuple[str, bytes | None], ...]


class Contended(Overtaken):
    """Another dlq stored the same dead letter at the same time: do it again, on top of that."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of the original record, and what could be read of them. `record_us`: when it came into the line."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    record_us: int
    coupon_id: CouponId | None
    user_id: UserId | None
    request_id: RequestId | None
    trace_id: str | None


@dataclass(frozen=True, slots=True)
class Filing:
    """A failure as the DLQ topic tells it, with the record that failed."""

    failure: Failure
    content: Content


@dataclass(frozen=True, slots=True)
class Due:
    """A dead letter to be redriven, locked; `coupon_partition` where its coupon is known."""

    letter: DeadLetter
    content: Content
    coupon_partition: int | None


Decide = Callable[[DeadLetter | None, Failure], Filed]
Publish = Callable[[Sequence[Due]], Awaitable[Mapping[Ticket, Ticket]]]
Postpone = Callable[[DeadLetter], DeadLetter]


class DeadLetterStore:
    """The dead letters of one line topic, and the progress over its DLQ topic."""

    def __init__(self, engine: AsyncEngine, topic: str) -> None:
        """`topic` is the DLQ topic's name."""
        self._engine = engine
        self._progress = ProgressRows(topic)

    async def position(self, partition: int) -> Position:
        """The partition's progress; a missing row is inserted at 0. Raises DatabaseAway."""
        async with connection(self._engine) as db:
            return await self._progress.take(db, partition)

    async def file(
        self, before: Position, after: Position, filings: Sequence[Filing], decide: Decide
    ) -> list[DeadLetter]:
        """Store the failures that are not stored yet and move the progress from `before` to `after`: all, or nothing.

        Returns the dead letters as each new failure left them. Raises PositionLost, Contended, BooksWrong;
        DatabaseAway may also mean that COMMIT took effect, so the position must be read again then.
        """
        async with connection(self._engine) as db, db.transaction():
            await self._progress.move(db, before, after)  # first: of two on one partition only one gets through
            failpoints.reach("dlq.fenced")
            fresh = await _note_failures(db, filings)
            counted = await _count_failures(db, fresh, decide)
            failpoints.reach("dlq.filed")
        failpoints.reach("dlq.committed")
        return counted

    async def redrive_due(self, now_us: int, limit: int, publish: Publish, postpone: Postpone) -> int:
        """Publish the redrives that are due, at most `limit`, then mark them; returns how many there were.

        `publish` gets rows that stay locked until all of it is committed, so that nobody else publishes them; it
        gives the ticket of each that it knows to be in the line, within the time an idle transaction may take. The
        rest is postponed. A crash in between publishes the very same record again, which the line settles as REPEATED.
        Raises DatabaseAway, BooksWrong.
        """
        async with connection(self._engine) as db, db.transaction():
            due = [_due(row) for row in await db.fetch(_DUE, to_time(now_us), limit)]
            if not due:
                return 0
            published = await publish(due)
            failpoints.reach("dlq.redrives_published")
            redriven = [redrive(d.letter, published[d.letter.original]) for d in due if d.letter.original in published]
            late = [postpone(d.letter) for d in due if d.letter.original not in published]
            await _update(db, [*redriven, *late])
            await _act(db, [_Act(d.original, d.state, d.redrive, f"attempt {d.attempt_count + 1}") for d in redriven])
            failpoints.reach("dlq.redrives_marked")
        return len(due)

    async def resolve(self, limit: int) -> list[Ticket]:
        """Resolve redriven dead letters, at most `limit`, whose redrive has a verdict; returns their tickets.

        Raises DatabaseAway, BooksWrong.
        """
        async with connection(self._engine) as db, db.transaction():
            rows = await db.fetch(_SETTLED, limit)
            letters = [resolve(_letter(row)) for row in rows]
            await _update(db, letters)
            await _act(
                db,
                [
                    _Act(
                        letter.original, letter.state, Ticket(row["settled_partition"], row["settled_offset"]), verdict
                    )
                    for letter, row in zip(letters, rows, strict=True)
                    for verdict in (row["verdict"],)
                ],
            )
        return [letter.original for letter in letters]


async def _note_failures(db: Connection, filings: Sequence[Filing]) -> list[Filing]:
    """Those that were not told before: the DLQ topic is at-least-once, and its unique index lets each in once."""
    if not filings:
        return []
    failures = [filing.failure for filing in filings]
    rows = await db.fetch(
        _INSERT_FAILED,
        [f.original.partition for f in failures],
        [f.original.offset for f in failures],
        [str(f.failed) for f in failures],
        [printable(f"{f.reason}: {f.message}") for f in failures],
    )
    left = {(Ticket(row["ticket_partition"], row["ticket_offset"]), row["record"]) for row in rows}
    fresh: list[Filing] = []
    for filing in filings:
        key = (filing.failure.original, str(filing.failure.failed))
        if key in left:
            left.remove(key)  # told twice within the batch
            fresh.append(filing)
    return fresh


async def _count_failures(db: Connection, filings: Sequence[Filing], decide: Decide) -> list[DeadLetter]:
    if not filings:
        return []
    originals = sorted({filing.failure.original for filing in filings})  # an order of locks for all
    rows = await db.fetch(_LOCKED, [t.partition for t in originals], [t.offset for t in originals])
    letters = {letter.original: letter for letter in map(_letter, rows)}
    stored = frozenset(letters)
    contents: dict[Ticket, Content] = {}
    actions: list[_Act] = []
    counted: list[DeadLetter] = []
    for filing in filings:
        failure = filing.failure
        filed = decide(letters.get(failure.original), failure)
        letters[failure.original] = filed.letter
        counted.append(filed.letter)
        if filed.why is not None:
            actions.append(_Act(failure.original, filed.letter.state, failure.failed, filed.why))
        # The original's own bytes win over those of a redrive that was heard of first.
        if failure.failed == failure.original or failure.original not in stored | contents.keys():
            contents[failure.original] = filing.content
    new = [letters[ticket] for ticket in originals if ticket not in stored]
    await _insert(db, new, contents)
    await _update(db, [letters[ticket] for ticket in originals if ticket in stored])
    for ticket in sorted(stored & contents.keys()):
        await db.execute(_UPDATE_CONTENT, ticket.partition, ticket.offset, *_content_columns(contents[ticket]))
    await _act(db, actions)
    return counted


async def _insert(db: Connection, letters: Sequence[DeadLetter], contents: Mapping[Ticket, Content]) -> None:
    if not letters:
        return
    content_columns = zip(*(_content_columns(contents[letter.original]) for letter in letters), strict=True)
    status = await db.execute(_INSERT, *_letter_columns(letters), *map(list, content_columns))
    if status != f"INSERT 0 {len(letters)}":
        raise Contended(f"{status} where {len(letters)} new dead letters were due")


async def _update(db: Connection, letters: Sequence[DeadLetter]) -> None:
    if letters:
        expect(f"UPDATE {len(letters)}", await db.execute(_UPDATE, *_letter_columns(letters)))


@dataclass(frozen=True, slots=True)
class _Act:
    original: Ticket
    state: DeadLetterState
    record: Ticket | None
    comment: str


async def _act(db: Connection, actions: Sequence[_Act]) -> None:
    if actions:
        status = await db.execute(
            _INSERT_ACTION,
            [a.original.partition for a in actions],
            [a.original.offset for a in actions],
            [a.state.value for a in actions],
            [None if a.record is None else str(a.record) for a in actions],
            [printable(a.comment) for a in actions],
        )
        expect(f"INSERT 0 {len(actions)}", status)


def _letter_columns(letters: Sequence[DeadLetter]) -> tuple[list[Any], ...]:
    return (
        [letter.original.partition for letter in letters],
        [letter.original.offset for letter in letters],
        [letter.state.value for letter in letters],
        [letter.reason.value for letter in letters],
        [printable(letter.message) for letter in letters],
        [letter.attempt_count for letter in letters],
        [None if letter.redrive is None else str(letter.redrive) for letter in letters],
        [_nearest_time(letter.first_failed_us) for letter in letters],
        [_nearest_time(letter.last_failed_us) for letter in letters],
        [None if letter.next_attempt_us is None else _nearest_time(letter.next_attempt_us) for letter in letters],
    )


def _content_columns(content: Content) -> tuple[Any, ...]:
    return (
        content.key,
        content.value,
        headers_text(content.headers),
        _nearest_time(content.record_us),
        content.coupon_id,
        content.user_id,
        content.request_id,
        content.trace_id,
    )


def headers_text(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """Headers as the table keeps them: JSON, their order and repetitions kept, the values in base64."""
    return json.dumps([[name, None if value is None else base64.b64encode(value).decode()] for name, value in headers])


def parse_headers(text: str) -> Headers:
    """The headers that `headers_text` wrote."""
    return tuple((name, None if value is None else base64.b64decode(value)) for name, value in json.loads(text))


def _letter(row: Any) -> DeadLetter:
    return DeadLetter(
        original=Ticket(row["ticket_partition"], row["ticket_offset"]),
        state=DeadLetterState(row["state"]),
        reason=ParkReason(row["reason"]),
        message=row["error_message"],
        attempt_count=row["attempt_count"],
        redrive=Ticket.parse(row["redrive_ticket"] or ""),
        first_failed_us=to_us(row["first_failed_at"]),
        last_failed_us=to_us(row["last_failed_at"]),
        next_attempt_us=to_us_or_none(row["next_attempt_at"]),
    )


def _due(row: Any) -> Due:
    content = Content(
        key=row["key"],
        value=row["value"],
        headers=parse_headers(row["headers"]),
        record_us=to_us(row["record_time"]),
        coupon_id=row["coupon_id"],
        user_id=row["user_id"],
        request_id=row["request_id"],
        trace_id=row["trace_id"],
    )
    return Due(_letter(row), content, row["topic_partition"])


def _nearest_time(time_us: int) -> datetime | None:
    """Headers may claim any time: one that no table holds becomes the nearest that it does."""
    return to_time(min(max(time_us, TIME_US_MIN), TIME_US_MAX))


_INSERT_FAILED = f"""
INSERT INTO dead_letter_action (ticket_partition, ticket_offset, action, record, caller, comment)
SELECT partition, "offset", '{FAILED}', record, '{CALLER}', comment
FROM unnest($1::int[], $2::bigint[], $3::text[], $4::text[]) WITH ORDINALITY
    AS n (partition, "offset", record, comment, place) ORDER BY place
ON CONFLICT (ticket_partition, ticket_offset, record) WHERE action = '{FAILED}' DO NOTHING
RETURNING ticket_partition, ticket_offset, record"""
_INSERT_ACTION = f"""
INSERT INTO dead_letter_action (ticket_partition, ticket_offset, action, record, caller, comment)
SELECT partition, "offset", action, record, '{CALLER}', comment
FROM unnest($1::int[], $2::bigint[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY
    AS n (partition, "offset", action, record, comment, place) ORDER BY place"""
_LETTER = """
d.ticket_partition, d.ticket_offset, d.state, d.reason, d.error_message, d.attempt_count, d.redrive_ticket,
d.first_failed_at, d.last_failed_at, d.next_attempt_at"""
_LOCKED = f"""
SELECT {_LETTER} FROM dead_letter d
WHERE (ticket_partition, ticket_offset) IN (SELECT * FROM unnest($1::int[], $2::bigint[]))
ORDER BY ticket_partition, ticket_offset FOR UPDATE OF d"""
_LETTER_ROWS = """
unnest($1::int[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::int[], $7::text[], $8::timestamptz[],
    $9::timestamptz[], $10::timestamptz[]"""
_LETTER_NAMES = """
partition, "offset", state, reason, error_message, attempt_count, redrive_ticket, first_failed_at, last_failed_at,
    next_attempt_at"""
_INSERT = f"""
INSERT INTO dead_letter (ticket_partition, ticket_offset, state, reason, error_message, attempt_count, redrive_ticket,
    first_failed_at, last_failed_at, next_attempt_at, key, value, headers, record_time, coupon_id, user_id,
    request_id, trace_id)
SELECT {_LETTER_NAMES}, key, value, headers::json, record_time, coupon_id, user_id, request_id, trace_id
FROM {_LETTER_ROWS}, $11::bytea[], $12::bytea[], $13::text[], $14::timestamptz[], $15::text[], $16::text[],
    $17::text[], $18::text[])
    AS n ({_LETTER_NAMES}, key, value, headers, record_time, coupon_id, user_id, request_id, trace_id)
ON CONFLICT DO NOTHING"""
_UPDATE = f"""
UPDATE dead_letter d SET state = n.state, reason = n.reason, error_message = n.error_message,
    attempt_count = n.attempt_count, redrive_ticket = n.redrive_ticket, first_failed_at = n.first_failed_at,
    last_failed_at = n.last_failed_at, next_attempt_at = n.next_attempt_at, version = d.version + 1
FROM {_LETTER_ROWS}) AS n ({_LETTER_NAMES})
WHERE d.ticket_partition = n.partition AND d.ticket_offset = n."offset\""""
_UPDATE_CONTENT = """
UPDATE dead_letter SET key = $3, value = $4, headers = $5::text::json, record_time = $6, coupon_id = $7, user_id = $8,
    request_id = $9, trace_id = $10
WHERE ticket_partition = $1 AND ticket_offset = $2"""
_DUE = f"""
SELECT {_LETTER}, d.key, d.value, d.headers::text AS headers, d.record_time, d.coupon_id, d.user_id, d.request_id,
    d.trace_id, c.topic_partition
FROM dead_letter d LEFT JOIN coupon c USING (coupon_id)
WHERE d.state = 'RETRYING' AND d.next_attempt_at <= $1
ORDER BY d.next_attempt_at LIMIT $2 FOR UPDATE OF d SKIP LOCKED"""
# LATERAL with a LIMIT, so that each of the few that wait is looked up by index, however large the tables of verdicts.
_SETTLED = f"""
SELECT {_LETTER}, v.settled_partition, v.settled_offset, v.verdict
FROM dead_letter d
CROSS JOIN LATERAL (
    SELECT ticket_partition, ticket_offset, 'ISSUED' FROM user_coupon
    WHERE redrive_of = d.ticket_partition || '-' || d.ticket_offset
    UNION ALL
    SELECT ticket_partition, ticket_offset, reason FROM rejected_issue
    WHERE redrive_of = d.ticket_partition || '-' || d.ticket_offset AND reason <> 'PARKED'
    UNION ALL
    SELECT ticket_partition, ticket_offset, result FROM coupon_change
    WHERE redrive_of = d.ticket_partition || '-' || d.ticket_offset
    ORDER BY 1, 2 LIMIT 1
) AS v (settled_partition, settled_offset, verdict)
WHERE d.state = 'REDRIVEN'
LIMIT $1 FOR UPDATE OF d SKIP LOCKED"""
