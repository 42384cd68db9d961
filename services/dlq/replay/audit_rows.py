"""What the tables say, read for an audit. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.model import Coupon, CouponId, Grant, ParkReason, Reason, Ticket, UserId
from services.runtime.postgres import Connection, connection
from services.runtime.progress import LastRecord, Position
from services.runtime.rows import GRANTS_OF_LISTED, listed, to_coupon

ISSUED, REJECTED, CHANGED = "user_coupon", "rejected_issue", "coupon_change"
COLUMNS: Mapping[str, tuple[str, ...]] = {
    ISSUED: ("ticket_offset", "user_id", "coupon_id", "request_id", "sequence", "redrive_of", "accepted_at"),
    REJECTED: (
        "ticket_offset",
        "coupon_id",
        "user_id",
        "request_id",
        "reason",
        "detail",
        "issued_ticket",
        "issued_sequence",
        "redrive_of",
        "accepted_at",
    ),
    CHANGED: (
        "ticket_offset",
        "coupon_id",
        "request_id",
        "payload_hash",
        "result",
        "outcome",
        "caller",
        "redrive_of",
        "accepted_at",
    ),
}
"""All that a verdict row says and the log decides, the ticket first."""
STRAYS_MAX = 1_000
"""How many rows where no record can be are looked at."""

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a range of one partition, by table, each as COLUMNS has it, by offset."""

    of: Mapping[str, Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One partition at one moment: how far it is settled, its coupons as they then are, and rows that have no place.

    `position` is None where the ledger never worked on the partition, and `dlq_position` where the dlq did not.
    """

    position: Position | None
    dlq_position: Position | None
    coupons: Mapping[CouponId, Coupon]
    strays: Sequence[tuple[str, Row]]

    @property
    def next_offset(self) -> int:
        return self.position.next_offset if self.position is not None else 0

    @property
    def published_offset(self) -> int:
        return self.position.published_offset if self.position is not None else 0


class AuditRows:
    """The tables of one line topic and its DLQ. Every method raises DatabaseAway."""

    def __init__(self, engine: AsyncEngine, line_topic: str, dlq_topic: str, partition_count: int) -> None:
        self._engine = engine
        self._line_topic = line_topic
        self._dlq_topic = dlq_topic
        self._partition_count = partition_count

    async def dead_letters(self, tickets: Sequence[Ticket]) -> Mapping[Ticket, tuple[bytes | None, bytes | None]]:
        """Key and value of the dead letters of these tickets."""
        async with connection(self._engine) as db:
            rows = await db.fetch(_DEAD_LETTERS, [t.partition for t in tickets], [t.offset for t in tickets])
        return {Ticket(row["ticket_partition"], row["ticket_offset"]): (row["key"], row["value"]) for row in rows}

    async def snapshot(self, partition: int) -> Snapshot:
        """All that changes while the line is settled, as of one moment; the verdicts before it do not change."""
        async with connection(self._engine) as db, db.transaction(isolation="repeatable_read", readonly=True):
            position = await _position(db, self._line_topic, partition)
            dlq_position = await _position(db, self._dlq_topic, partition)
            coupons = [to_coupon(row) for row in await db.fetch(_COUPONS, partition)]
            next_offset = position.next_offset if position is not None else 0
            strays: list[tuple[str, Row]] = []
            for table, statement in _STRAYS.items():
                strays += [(table, tuple(row)) for row in await db.fetch(statement, partition, next_offset, STRAYS_MAX)]
        return Snapshot(position, dlq_position, {coupon.coupon_id: coupon for coupon in coupons}, strays)

    async def nowhere(self) -> list[tuple[str, Ticket, Row]]:
        """Rows of partitions that the line does not have."""
        found: list[tuple[str, Ticket, Row]] = []
        async with connection(self._engine) as db:
            for table, statement in _NOWHERE.items():
                for row in await db.fetch(statement, self._partition_count, STRAYS_MAX):
                    partition, *columns = row
                    found.append((table, Ticket(partition, columns[0]), tuple(columns)))
        return found

    async def between(self, partition: int, start: int, end: int) -> Rows:
        """The verdicts with start <= offset < end."""
        async with connection(self._engine) as db:
            found: dict[str, Sequence[Row]] = {}
            for table, statement in _BETWEEN.items():
                found[table] = await db.fetch(statement, partition, start, end)  # type: ignore[assignment]
        return Rows(found)

    async def grants_before(
        self, partition: int, offset: int, keys: Sequence[tuple[CouponId, UserId]]
    ) -> Mapping[tuple[CouponId, UserId], Grant]:
        """Of these coupons and users the grants with a ticket of the partition before `offset`."""
        async with connection(self._engine) as db:
            rows = await db.fetch(
                _GRANTS, listed(user for _, user in keys), listed(coupon for coupon, _ in keys), partition, offset
            )
        return {
            (row["coupon_id"], row["user_id"]): Grant(
                row["request_id"], row["sequence"], Ticket(partition, row["ticket_offset"])
            )
            for row in rows
        }

    async def elsewhere(self, partition: int, coupon_ids: Sequence[CouponId]) -> frozenset[CouponId]:
        """Those of these coupons that belong to another partition by their row."""
        async with connection(self._engine) as db:
            rows = await db.fetch(_ELSEWHERE, coupon_ids, partition)
        return frozenset(row["coupon_id"] for row in rows)


def parked_by_the_service(rows: Rows, start: int) -> dict[int, tuple[ParkReason, str]]:
    """Rows from `start` on that are PARKED for a reason that lies in the service: only their dead letter tells it, and
    where that is not published yet it will be made from the row."""
    found = {}
    reason_at, detail_at = (COLUMNS[REJECTED].index(name) for name in ("reason", "detail"))
    for row in rows.of[REJECTED]:
        if row[0] >= start and row[reason_at] == Reason.PARKED:
            reason, _, message = (row[detail_at] or "").partition(": ")
            if reason in (ParkReason.INTERNAL, ParkReason.UNSTORABLE):
                found[row[0]] = ParkReason(reason), message
    return found


async def _position(db: Connection, topic: str, partition: int) -> Position | None:
    row = await db.fetchrow(_POSITION, topic, partition)
    if row is None:
        return None
    last = None
    if row["last_offset"] is not None:
        last = LastRecord(row["last_offset"], row["last_timestamp"], row["last_checksum"])
    return Position(partition, row["next_offset"], row["published_offset"], row["dlq_offset"], last)


_POSITION = """
SELECT next_offset, published_offset, dlq_offset, last_offset, last_timestamp, last_checksum
FROM ledger_progress WHERE topic = $1 AND partition = $2"""
_COUPONS = "SELECT * FROM coupon WHERE topic_partition = $1"
_BETWEEN = {
    table: f"SELECT {', '.join(columns)} FROM {table} "
    "WHERE ticket_partition = $1 AND ticket_offset >= $2 AND ticket_offset < $3 ORDER BY ticket_offset"
    for table, columns in COLUMNS.items()
}
_STRAYS = {
    table: f"SELECT {', '.join(columns)} FROM {table} "
    "WHERE ticket_partition = $1 AND (ticket_offset < 0 OR ticket_offset >= $2) ORDER BY ticket_offset LIMIT $3"
    for table, columns in COLUMNS.items()
}
_NOWHERE = {
    table: f"SELECT ticket_partition, {', '.join(columns)} FROM {table} "
    "WHERE ticket_partition < 0 OR ticket_partition >= $1 ORDER BY ticket_partition, ticket_offset LIMIT $2"
    for table, columns in COLUMNS.items()
}
_GRANTS = (
    "SELECT g.user_id, g.coupon_id, g.request_id, g.sequence, g.ticket_offset"
    + GRANTS_OF_LISTED
    + " WHERE g.ticket_partition = $3 AND g.ticket_offset < $4"
)
_DEAD_LETTERS = """
SELECT ticket_partition, ticket_offset, key, value
FROM unnest($1::int[], $2::bigint[]) AS asked (ticket_partition, ticket_offset)
JOIN dead_letter USING (ticket_partition, ticket_offset)"""
_ELSEWHERE = "SELECT coupon_id FROM coupon WHERE coupon_id = ANY($1::text[]) AND topic_partition <> $2"
