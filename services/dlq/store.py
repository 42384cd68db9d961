"""What the dlq itself does to dead letters: files them, redrives them, notes what came of it. All of its SQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from services.dlq.rows import (
    CALLER,
    CONTENT,
    FAILED,
    LETTER,
    LETTER_NAMES,
    LETTER_ROWS,
    VERDICT,
    Act,
    Content,
    Correction,
    act,
    content_columns,
    content_of,
    letter_columns,
    letter_of,
    lock,
    parse_headers,
    update,
)
from services.domain.dead_letter import DeadLetter, Failure, Filed, redrive, resolve, shelve
from services.domain.model import Ticket, printable
from services.runtime import failpoints
from services.runtime.postgres import Connection, connection
from services.runtime.progress import Overtaken, Position, ProgressRows


class Contended(Overtaken):
    """Another dlq stored the same dead letter at the same time: do it again, on top of that."""


@dataclass(frozen=True, slots=True)
class Filing:
    """A failure as the DLQ topic tells it, with the record that failed."""

    failure: Failure
    content: Content


@dataclass(frozen=True, slots=True)
class Due:
    """A dead letter to be redriven, locked; `coupon_partition` where the coupon it is for is known."""

    letter: DeadLetter
    content: Content
    correction: Correction | None
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
            # Before they are noted, so that the failure of a redrive is noted behind that, however soon it comes.
            letters = await lock(db, [filing.failure.original for filing in filings])
            fresh = await _note_failures(db, filings)
            counted = await _count_failures(db, fresh, letters, decide)
            failpoints.reach("dlq.filed")
        failpoints.reach("dlq.committed")
        return counted

    async def redrive_due(self, now_us: int, limit: int, publish: Publish, postpone: Postpone) -> int:
        """Publish the redrives that are due, at most `limit`, then mark them; returns how many there were.

        `publish` gets rows that stay locked until all of it is committed, so that nobody else publishes them; it
        gives the ticket of each that it knows to be in the line, within the time an idle transaction may take. The
        rest is postponed. A crash in between publishes the very same record again, which the line settles as REPEATED.
        What has a verdict already, as in a database that was restored, is resolved instead.
        Raises DatabaseAway, BooksWrong.
        """
        async with connection(self._engine) as db:
            # Committed before anything is published: from here on a redrive may be in the line without being noted.
            await db.execute(_CLAIM, now_us, limit)
            failpoints.reach("dlq.redrives_claimed")
            async with db.transaction():
                rows = await db.fetch(_DUE, now_us, limit)
                await _resolve(db, [row for row in rows if row["verdict"] is not None])
                due = [_due(row) for row in rows if row["verdict"] is None]
                if due:
                    published = await publish(due)
                    failpoints.reach("dlq.redrives_published")
                    await _mark(db, due, published, postpone)
                    failpoints.reach("dlq.redrives_marked")
        return len(rows)

    async def resolve(self, limit: int) -> list[Ticket]:
        """Resolve redriven dead letters, at most `limit`, whose redrive has a verdict; returns their tickets.

        Raises DatabaseAway, BooksWrong.
        """
        async with connection(self._engine) as db, db.transaction():
            return await _resolve(db, await db.fetch(_SETTLED, limit))

    async def resolve_parked(self, after: Ticket, limit: int) -> tuple[list[Ticket], Ticket | None]:
        """Resolve those of the next `limit` parked dead letters behind `after` whose redrive has a verdict.

        There are such in a database that was restored: the ledger has settled their redrives again from the line.
        Returns the resolved and the last that was looked at, None at the end. Raises DatabaseAway, BooksWrong.
        """
        async with connection(self._engine) as db, db.transaction():
            keys = await db.fetch(_PARKED, *after, limit)
            if not keys:
                return [], None
            partitions, offsets = zip(*keys, strict=True)
            rows = await db.fetch(_SETTLED_OF, list(partitions), list(offsets))
            return await _resolve(db, rows), Ticket(*keys[-1])

    async def shelve_overdue(self, before_us: int, limit: int) -> list[Ticket]:
        """Park those that are still to be redriven and should have been before that time, at most `limit`.

        Raises DatabaseAway, BooksWrong.
        """
        async with connection(self._engine) as db, db.transaction():
            letters = [shelve(letter_of(row)) for row in await db.fetch(_OVERDUE, before_us, limit)]
            await update(db, letters)
            await act(db, [Act(one.original, one.state, None, "it was due long ago, and not tried") for one in letters])
        return [letter.original for letter in letters]


async def _mark(db: Connection, due: Sequence[Due], published: Mapping[Ticket, Ticket], postpone: Postpone) -> None:
    redriven = [one for one in due if one.letter.original in published]
    letters = {one.letter.original: redrive(one.letter, published[one.letter.original]) for one in redriven}
    late = [postpone(one.letter) for one in due if one.letter.original not in published]
    await update(db, [*letters.values(), *late])
    acts = []
    for one in redriven:
        letter = letters[one.letter.original]
        corrected = "" if one.correction is None else ", corrected"
        acts.append(
            Act(letter.original, letter.state, letter.redrive, f"attempt {letter.attempt_count + 1}{corrected}")
        )
    await act(db, acts)


async def _resolve(db: Connection, rows: Sequence[Any]) -> list[Ticket]:
    settled = [Ticket(row["settled_partition"], row["settled_offset"]) for row in rows]
    letters = [resolve(letter_of(row), ticket) for row, ticket in zip(rows, settled, strict=True)]
    await update(db, letters)
    acts = [
        Act(letter.original, letter.state, ticket, row["verdict"])
        for row, letter, ticket in zip(rows, letters, settled, strict=True)
    ]
    await act(db, acts)
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


async def _count_failures(
    db: Connection, filings: Sequence[Filing], locked: Sequence[DeadLetter], decide: Decide
) -> list[DeadLetter]:
    originals = sorted({filing.failure.original for filing in filings})
    letters = {letter.original: letter for letter in locked}
    stored = frozenset(letters)
    contents: dict[Ticket, Content] = {}
    actions: list[Act] = []
    counted: list[DeadLetter] = []
    for filing in filings:
        failure = filing.failure
        filed = decide(letters.get(failure.original), failure)
        letters[failure.original] = filed.letter
        counted.append(filed.letter)
        if filed.why is not None:
            actions.append(Act(failure.original, filed.letter.state, failure.failed, filed.why))
        # The original's own bytes win over those of a redrive that was heard of first.
        if failure.failed == failure.original or failure.original not in stored | contents.keys():
            contents[failure.original] = filing.content
    new = [letters[ticket] for ticket in originals if ticket not in stored]
    await _insert(db, new, contents)
    await update(db, [letters[ticket] for ticket in originals if ticket in stored])
    for ticket in sorted(stored & contents.keys()):
        await db.execute(_UPDATE_CONTENT, ticket.partition, ticket.offset, *content_columns(contents[ticket]))
    await act(db, actions)
    return counted


async def _insert(db: Connection, letters: Sequence[DeadLetter], contents: Mapping[Ticket, Content]) -> None:
    if not letters:
        return
    columns = zip(*(content_columns(contents[letter.original]) for letter in letters), strict=True)
    status = await db.execute(_INSERT, *letter_columns(letters), *map(list, columns))
    if status != f"INSERT 0 {len(letters)}":
        raise Contended(f"{status} where {len(letters)} new dead letters were due")


def _due(row: Any) -> Due:
    correction = None
    if row["corrected_value"] is not None:
        headers = parse_headers(row["corrected_headers"])
        correction = Correction(row["corrected_coupon_id"], row["corrected_value"], headers)
    return Due(letter_of(row), content_of(row), correction, row["topic_partition"])


_INSERT_FAILED = f"""
INSERT INTO dead_letter_action (ticket_partition, ticket_offset, action, record, caller, comment)
SELECT partition, "offset", '{FAILED}', record, '{CALLER}', comment
FROM unnest($1::int[], $2::bigint[], $3::text[], $4::text[]) WITH ORDINALITY
    AS n (partition, "offset", record, comment, place) ORDER BY place
ON CONFLICT (ticket_partition, ticket_offset, record) WHERE action = '{FAILED}' DO NOTHING
RETURNING ticket_partition, ticket_offset, record"""
_INSERT = f"""
INSERT INTO dead_letter (ticket_partition, ticket_offset, state, reason, error_message, attempt_count, redrive_ticket,
    first_failed_at, last_failed_at, next_attempt_at, publishing, key, value, headers, record_time, coupon_id, user_id,
    request_id, trace_id)
SELECT {LETTER_NAMES}, key, value, headers::json, record_time, coupon_id, user_id, request_id, trace_id
FROM {LETTER_ROWS}, $12::bytea[], $13::bytea[], $14::text[], $15::timestamptz[], $16::text[], $17::text[],
    $18::text[], $19::text[])
    AS n ({LETTER_NAMES}, key, value, headers, record_time, coupon_id, user_id, request_id, trace_id)
ON CONFLICT DO NOTHING"""
_UPDATE_CONTENT = """
UPDATE dead_letter SET key = $3, value = $4, headers = $5::text::json, record_time = $6, coupon_id = $7, user_id = $8,
    request_id = $9, trace_id = $10
WHERE ticket_partition = $1 AND ticket_offset = $2"""
_CLAIM = """
UPDATE dead_letter SET publishing = true
WHERE (ticket_partition, ticket_offset) IN (
    SELECT ticket_partition, ticket_offset FROM dead_letter
    WHERE state = 'RETRYING' AND next_attempt_at <= $1 AND NOT publishing
    ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
)"""
_DUE = f"""
SELECT {LETTER}, {CONTENT}, d.corrected_value, d.corrected_headers::text AS corrected_headers, d.corrected_coupon_id,
    c.topic_partition, v.settled_partition, v.settled_offset, v.verdict
FROM dead_letter d LEFT JOIN coupon c ON c.coupon_id = coalesce(d.corrected_coupon_id, d.coupon_id)
    LEFT JOIN {VERDICT} ON true
WHERE d.state = 'RETRYING' AND d.next_attempt_at <= $1 AND d.publishing
ORDER BY d.next_attempt_at, d.ticket_partition, d.ticket_offset LIMIT $2 FOR UPDATE OF d SKIP LOCKED"""
_SETTLED = f"""
SELECT {LETTER}, v.settled_partition, v.settled_offset, v.verdict
FROM dead_letter d CROSS JOIN {VERDICT}
WHERE d.state = 'REDRIVEN'
LIMIT $1 FOR UPDATE OF d SKIP LOCKED"""
_PARKED = """
SELECT ticket_partition, ticket_offset FROM dead_letter
WHERE state = 'PARKED' AND (ticket_partition, ticket_offset) > ($1, $2)
ORDER BY ticket_partition, ticket_offset LIMIT $3"""
_SETTLED_OF = f"""
SELECT {LETTER}, v.settled_partition, v.settled_offset, v.verdict
FROM dead_letter d CROSS JOIN {VERDICT}
WHERE (d.ticket_partition, d.ticket_offset) IN (SELECT * FROM unnest($1::int[], $2::bigint[])) AND d.state = 'PARKED'
FOR UPDATE OF d SKIP LOCKED"""
_OVERDUE = f"""
SELECT {LETTER} FROM dead_letter d
WHERE d.state = 'RETRYING' AND d.next_attempt_at < $1
ORDER BY d.next_attempt_at LIMIT $2 FOR UPDATE OF d SKIP LOCKED"""
