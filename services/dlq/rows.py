"""Dead letters as rows of the tables, for all who change them: every change stands beside the action that says who
made it and why."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from services.domain.dead_letter import DeadLetter, DeadLetterState
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
from services.runtime.postgres import Connection
from services.runtime.rows import expect

CALLER = "dlq"
"""Who acted, where no operator did."""
FAILED = "FAILED"
"""The action of a counted failure."""
CORRECTED = "CORRECTED"
"""The action of an operator who has it tried with other bytes. All other actions are named after the state that they
lead to."""

FIRST = Ticket(-1, -1)
"""Before every ticket: where a walk through the dead letters begins."""

Headers = tuple[tuple[str, bytes | None], ...]


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
class Correction:
    """What a redrive publishes in place of the original's bytes; its key is the coupon id."""

    coupon_id: CouponId
    value: bytes
    headers: Headers


@dataclass(frozen=True, slots=True)
class Call:
    """An operator's call, by which a repeated one is known: the hash is of all that it asks for."""

    request_id: RequestId
    payload_hash: bytes


@dataclass(frozen=True, slots=True)
class Act:
    """An entry of `dead_letter_action`; `record` is the ticket that failed, was published or was settled."""

    original: Ticket
    action: str
    record: Ticket | None
    comment: str
    caller: str = CALLER
    call: Call | None = None


async def lock(db: Connection, tickets: Sequence[Ticket]) -> list[DeadLetter]:
    """Those of the tickets that there are, in their order, locked until the transaction ends."""
    ordered = sorted(set(tickets))  # one order of locks for all
    rows = await db.fetch(_LOCKED, [t.partition for t in ordered], [t.offset for t in ordered])
    return [letter_of(row) for row in rows]


async def update(db: Connection, letters: Sequence[DeadLetter]) -> None:
    """Store them as they are now. Raises BooksWrong if one is missing."""
    if letters:
        expect(f"UPDATE {len(letters)}", await db.execute(_UPDATE, *letter_columns(letters)))


async def act(db: Connection, acts: Sequence[Act]) -> None:
    """Record what was done."""
    if not acts:
        return
    status = await db.execute(
        _INSERT_ACTION,
        [a.original.partition for a in acts],
        [a.original.offset for a in acts],
        [a.action for a in acts],
        [None if a.record is None else str(a.record) for a in acts],
        [a.caller for a in acts],
        [printable(a.comment) for a in acts],
        [None if a.call is None else a.call.request_id for a in acts],
        [None if a.call is None else a.call.payload_hash for a in acts],
    )
    expect(f"INSERT 0 {len(acts)}", status)


def letter_of(row: Any) -> DeadLetter:
    """From a row with the columns of LETTER."""
    return DeadLetter(
        original=Ticket(row["ticket_partition"], row["ticket_offset"]),
        state=DeadLetterState(row["state"]),
        reason=ParkReason(row["reason"]),
        message=row["error_message"],
        attempt_count=row["attempt_count"],
        redrive=Ticket.parse(row["redrive_ticket"] or ""),
        first_failed_us=row["first_failed_at"],
        last_failed_us=row["last_failed_at"],
        next_attempt_us=row["next_attempt_at"],
        publishing=row["publishing"],
    )


def content_of(row: Any) -> Content:
    """From a row with the columns of CONTENT."""
    return Content(
        key=row["key"],
        value=row["value"],
        headers=parse_headers(row["headers"]),
        record_us=row["record_time"],
        coupon_id=row["coupon_id"],
        user_id=row["user_id"],
        request_id=row["request_id"],
        trace_id=row["trace_id"],
    )


def letter_columns(letters: Sequence[DeadLetter]) -> tuple[list[Any], ...]:
    """The columns of LETTER, for LETTER_ROWS."""
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
        [letter.publishing for letter in letters],
    )


def content_columns(content: Content) -> tuple[Any, ...]:
    """The columns of CONTENT."""
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


def _nearest_time(time_us: int) -> int:
    """Headers may claim any time: one that no table holds becomes the nearest that it does."""
    return min(max(time_us, TIME_US_MIN), TIME_US_MAX)


LETTER = """
d.ticket_partition, d.ticket_offset, d.state, d.reason, d.error_message, d.attempt_count, d.redrive_ticket,
d.first_failed_at, d.last_failed_at, d.next_attempt_at, d.publishing"""
CONTENT = """
d.key, d.value, d.headers::text AS headers, d.record_time, d.coupon_id, d.user_id, d.request_id, d.trace_id"""
LETTER_ROWS = """
unnest($1::int[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::int[], $7::text[], $8::timestamptz[],
    $9::timestamptz[], $10::timestamptz[], $11::boolean[]"""
LETTER_NAMES = """
partition, "offset", state, reason, error_message, attempt_count, redrive_ticket, first_failed_at, last_failed_at,
    next_attempt_at, publishing"""
# LATERAL with a LIMIT, so that each of the few that wait is looked up by index, however large the tables of verdicts.
VERDICT = """
LATERAL (
    SELECT ticket_partition, ticket_offset, 'ISSUED' FROM user_coupon
    WHERE redrive_of = d.ticket_partition || '-' || d.ticket_offset
    UNION ALL
    SELECT ticket_partition, ticket_offset, reason FROM rejected_issue
    WHERE redrive_of = d.ticket_partition || '-' || d.ticket_offset AND reason <> 'PARKED'
    UNION ALL
    SELECT ticket_partition, ticket_offset, result FROM coupon_change
    WHERE redrive_of = d.ticket_partition || '-' || d.ticket_offset
    ORDER BY 1, 2 LIMIT 1
) AS v (settled_partition, settled_offset, verdict)"""
"""What a redrive of the dead letter `d` came to, if it has a verdict."""
_LOCKED = f"""
SELECT {LETTER} FROM dead_letter d
WHERE (ticket_partition, ticket_offset) IN (SELECT * FROM unnest($1::int[], $2::bigint[]))
ORDER BY ticket_partition, ticket_offset FOR UPDATE OF d"""
_UPDATE = f"""
UPDATE dead_letter d SET state = n.state, reason = n.reason, error_message = n.error_message,
    attempt_count = n.attempt_count, redrive_ticket = n.redrive_ticket, first_failed_at = n.first_failed_at,
    last_failed_at = n.last_failed_at, next_attempt_at = n.next_attempt_at, publishing = n.publishing,
    version = d.version + 1
FROM {LETTER_ROWS}) AS n ({LETTER_NAMES})
WHERE d.ticket_partition = n.partition AND d.ticket_offset = n."offset\""""
_INSERT_ACTION = """
INSERT INTO dead_letter_action (ticket_partition, ticket_offset, action, record, caller, comment, request_id,
    payload_hash)
SELECT partition, "offset", action, record, caller, comment, request_id, payload_hash
FROM unnest($1::int[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[])
    WITH ORDINALITY
    AS n (partition, "offset", action, record, caller, comment, request_id, payload_hash, place) ORDER BY place"""
