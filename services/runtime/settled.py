"""What was settled, from the verdict tables: the outcomes as they are published, byte for byte."""

from __future__ import annotations

from typing import Any, NamedTuple

from services.domain.model import Grant, Issued, Parked, ParkReason, Reason, Rejected, Ticket
from services.runtime import wire
from services.runtime.postgres import Connection


class Settled(NamedTuple):
    """The outcome of a record, and the verdict where that is PARKED."""

    outcome: wire.Outcome
    parked: Parked | None


async def settled_between(db: Connection, partition: int, start: int, end: int) -> list[Settled]:
    """What was settled with start <= offset < end, in offset order."""
    issued = await db.fetch(_ISSUED_BETWEEN, partition, start, end)
    rejected = await db.fetch(_REJECTED_BETWEEN, partition, start, end)
    changed = await db.fetch(_CHANGED_BETWEEN, partition, start, end)
    found = [Settled(wire.outcome(partition, _issued(row)), None) for row in issued]
    for row in rejected:
        verdict = _rejected(row)
        found.append(Settled(wire.outcome(partition, verdict), verdict if isinstance(verdict, Parked) else None))
    for row in changed:
        key = row["coupon_id"].encode()
        time_us = row["accepted_at"]
        found.append(Settled(wire.Outcome(row["ticket_offset"], time_us, key, wire.CHANGED, row["outcome"]), None))
    return sorted(found, key=lambda one: one.outcome.offset)


def _issued(row: Any) -> Issued:
    return Issued(
        row["ticket_offset"],
        row["accepted_at"],
        row["coupon_id"],
        row["user_id"],
        row["request_id"],
        row["sequence"],
        Ticket.parse(row["redrive_of"] or ""),
    )


def _rejected(row: Any) -> Rejected | Parked:
    time_us = row["accepted_at"]
    redrive_of = Ticket.parse(row["redrive_of"] or "")
    ids = row["coupon_id"], row["user_id"], row["request_id"]
    if row["reason"] == Reason.PARKED:
        reason, _, message = row["detail"].partition(": ")
        return Parked(row["ticket_offset"], time_us, ParkReason(reason), message, *ids, redrive_of, known=False)
    grant = None
    ticket = Ticket.parse(row["issued_ticket"] or "")
    if ticket is not None:
        grant = Grant(row["request_id"], row["issued_sequence"], ticket)
    return Rejected(row["ticket_offset"], time_us, *ids, Reason(row["reason"]), grant, redrive_of)


_ISSUED_BETWEEN = """
SELECT user_id, coupon_id, request_id, sequence, ticket_offset, redrive_of, accepted_at
FROM user_coupon WHERE ticket_partition = $1 AND ticket_offset >= $2 AND ticket_offset < $3"""
_REJECTED_BETWEEN = """
SELECT ticket_offset, coupon_id, user_id, request_id, reason, detail, issued_ticket, issued_sequence, redrive_of,
    accepted_at
FROM rejected_issue WHERE ticket_partition = $1 AND ticket_offset >= $2 AND ticket_offset < $3"""
_CHANGED_BETWEEN = """
SELECT ticket_offset, coupon_id, outcome, accepted_at
FROM coupon_change WHERE ticket_partition = $1 AND ticket_offset >= $2 AND ticket_offset < $3"""
