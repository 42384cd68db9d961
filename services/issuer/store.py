"""All of the issuer's SQL. It only reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.model import (
    Coupon,
    CouponId,
    CouponState,
    Grant,
    Reason,
    RequestId,
    Ticket,
    UserId,
)
from services.runtime.postgres import connection
from services.runtime.rows import GRANTS_OF_LISTED, listed, to_coupon

Key = tuple[CouponId, UserId]
_USER = itemgetter(1)


@dataclass(frozen=True, slots=True)
class Granted:
    """A row of user_coupon; times in microseconds since the epoch."""

    coupon_id: CouponId
    user_id: UserId
    grant: Grant
    accept_us: int
    settle_us: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A row of rejected_issue. Ids are None where a parked record had none to keep."""

    ticket: Ticket
    coupon_id: CouponId | None
    user_id: UserId | None
    request_id: RequestId | None
    reason: Reason
    issued_ticket: Ticket | None
    redrive_of: Ticket | None
    accept_us: int
    settle_us: int


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A row of coupon_change: the published CouponChangedEvent, whole."""

    ticket: Ticket
    outcome: bytes


Verdict = Granted | Refused | ChangeRow


@dataclass(frozen=True, slots=True)
class Progress:
    """Next offset to be settled, by partition, from the same snapshot as the coupons beside it."""

    next_offsets: Mapping[int, int]
    coupons: Mapping[CouponId, Coupon]


class IssuerStore:
    """Reads the ledger's tables. Every method raises DatabaseAway."""

    def __init__(self, engine: AsyncEngine, line_topic: str) -> None:
        self._engine = engine
        self._topic = line_topic

    async def look_up(
        self, keys: Sequence[Key], coupon_ids: Sequence[CouponId]
    ) -> tuple[Mapping[Key, Granted], Progress]:
        """Who of these has the coupon; and these coupons with the ledger's progress, which is no later than that."""
        async with connection(self._engine) as db:
            progress = _progress(await db.fetch(_COUPONS, self._topic, coupon_ids)) if coupon_ids else None
            ordered = sorted(keys, key=_USER)  # as the index is: a fifth less to do for PostgreSQL if that is large
            pairs = listed(user for _, user in ordered), listed(coupon for coupon, _ in ordered)
            rows = await db.fetch(_GRANTS_AND_PROGRESS, *pairs, self._topic)
        granted: dict[Key, Granted] = {}
        next_offsets: dict[int, int] = {}
        for row in rows:
            if row["user_id"] is None:
                next_offsets[row["ticket_partition"]] = row["ticket_offset"]
            else:
                granted[row["coupon_id"], row["user_id"]] = _granted(row)
        return granted, progress or Progress(next_offsets, {})

    async def progress(self, coupon_ids: Sequence[CouponId] = ()) -> Progress:
        """The ledger's progress, and these coupons."""
        async with connection(self._engine) as db:
            return _progress(await db.fetch(_COUPONS, self._topic, list(coupon_ids)))

    async def coupons(self, after: str, state: CouponState | None, now_us: int, limit: int) -> list[Coupon]:
        """Coupons by id behind `after`, at most `limit`, of that state at that time."""
        async with connection(self._engine) as db:
            rows = await db.fetch(_LIST, after, now_us, state.value if state else None, limit)
        return [to_coupon(row) for row in rows]

    async def verdict(self, ticket: Ticket) -> Verdict | None:
        """The row of that ticket, whichever table has it."""
        return (await self.verdicts([ticket]))[0]

    async def verdicts(self, tickets: Sequence[Ticket]) -> list[Verdict | None]:
        """The row of each ticket, in their order; None where no table has one."""
        places = [ticket.partition for ticket in tickets], [ticket.offset for ticket in tickets]
        found: dict[Ticket, Verdict] = {}
        async with connection(self._engine) as db:
            for row in await db.fetch(_GRANTS_BY_TICKET, *places):
                found[_ticket(row)] = _granted(row)
            if len(found) < len(tickets):
                for row in await db.fetch(_REFUSED_BY_TICKET, *places):
                    found[_ticket(row)] = _refused(row)
            if len(found) < len(tickets):
                for row in await db.fetch(_CHANGES_BY_TICKET, *places):
                    found[_ticket(row)] = ChangeRow(_ticket(row), row["outcome"])
        return [found.get(ticket) for ticket in tickets]

    async def redriven(self, original: Ticket) -> Granted | Refused | None:
        """The row that settled a redrive of that ticket: the first that is not PARKED."""
        async with connection(self._engine) as db:
            if row := await db.fetchrow(_GRANT_BY_REDRIVE, str(original)):
                return _granted(row)
            if row := await db.fetchrow(_REFUSED_BY_REDRIVE, str(original)):
                return _refused(row)
        return None

    async def grant(self, key: Key) -> Granted | None:
        """The user's coupon."""
        grants, _ = await self.look_up([key], [])
        return grants.get(key)

    async def grants(self, coupon_id: CouponId | None, user_id: UserId | None, after: str, limit: int) -> list[Granted]:
        """Of a coupon by sequence, or of a user by coupon id, behind `after`; at most `limit`."""
        async with connection(self._engine) as db:
            if coupon_id is not None:
                rows = await db.fetch(_GRANTS_OF_COUPON, coupon_id, int(after or 0), user_id, limit)
            else:
                rows = await db.fetch(_GRANTS_OF_USER, user_id, after, limit)
        return [_granted(row) for row in rows]

    async def first_payload_hash(self, coupon_id: CouponId, request_id: RequestId) -> bytes | None:
        """What the first change with that request_id asked for, as `wire.change_payload_hash` has it."""
        async with connection(self._engine) as db:
            found: bytes | None = await db.fetchval(_FIRST_PAYLOAD_HASH, coupon_id, request_id)
        return found


def _progress(rows: Iterable[Any]) -> Progress:
    next_offsets: dict[int, int] = {}
    coupons: dict[CouponId, Coupon] = {}
    for row in rows:
        next_offsets[row["partition"]] = row["next_offset"]
        if row["coupon_id"] is not None:
            coupons[row["coupon_id"]] = to_coupon(row)
    return Progress(next_offsets, coupons)


def _ticket(row: Any) -> Ticket:
    return Ticket(row["ticket_partition"], row["ticket_offset"])


def _granted(row: Any) -> Granted:
    ticket = _ticket(row)
    return Granted(
        row["coupon_id"],
        row["user_id"],
        Grant(row["request_id"], row["sequence"], ticket),
        row["accepted_at"],
        row["issued_at"],
    )


def _refused(row: Any) -> Refused:
    return Refused(
        _ticket(row),
        row["coupon_id"],
        row["user_id"],
        row["request_id"],
        Reason(row["reason"]),
        Ticket.parse(row["issued_ticket"] or ""),
        Ticket.parse(row["redrive_of"] or ""),
        row["accepted_at"],
        row["rejected_at"],
    )


_COUPONS = """
SELECT p.partition, p.next_offset, c.*
FROM ledger_progress p LEFT JOIN coupon c ON c.topic_partition = p.partition AND c.coupon_id = ANY($2::text[])
WHERE p.topic = $1"""
# In one round trip and from one snapshot; a row without a user is a partition's progress.
_GRANTS_AND_PROGRESS = f"""
SELECT g.user_id, g.coupon_id, g.request_id, g.sequence, g.ticket_partition, g.ticket_offset, g.accepted_at, g.issued_at
{GRANTS_OF_LISTED}
UNION ALL SELECT NULL, NULL, NULL, NULL, partition, next_offset, NULL, NULL FROM ledger_progress WHERE topic = $3"""
_GRANTS_OF_COUPON = """
SELECT * FROM user_coupon WHERE coupon_id = $1 AND sequence > $2 AND ($3::text IS NULL OR user_id = $3)
ORDER BY sequence LIMIT $4"""
# In the primary key's order, which no other index has.
_GRANTS_OF_USER = """
SELECT * FROM user_coupon WHERE user_id = $1 AND coupon_id > $2 ORDER BY user_id, coupon_id LIMIT $3"""
# The states in the order of domain.decide.refusal.
_LIST = """
SELECT * FROM coupon
WHERE coupon_id > $1 AND ($3::text IS NULL OR $3 = CASE
    WHEN state = 'CLOSED' THEN 'CLOSED'
    WHEN start_time > $2 THEN 'SCHEDULED'
    WHEN end_time <= $2 THEN 'ENDED'
    WHEN state = 'PAUSED' THEN 'PAUSED'
    WHEN remaining <= 0 THEN 'SOLD_OUT'
    ELSE 'ACTIVE' END)
ORDER BY coupon_id LIMIT $4"""
_ASKED_TICKETS = """
FROM unnest($1::int[], $2::bigint[]) AS asked (ticket_partition, ticket_offset)
JOIN {} t USING (ticket_partition, ticket_offset)"""
_GRANTS_BY_TICKET = "SELECT t.*" + _ASKED_TICKETS.format("user_coupon")
_REFUSED_BY_TICKET = "SELECT t.*" + _ASKED_TICKETS.format("rejected_issue")
_CHANGES_BY_TICKET = "SELECT t.*" + _ASKED_TICKETS.format("coupon_change")
_GRANT_BY_REDRIVE = "SELECT * FROM user_coupon WHERE redrive_of = $1"
_REFUSED_BY_REDRIVE = """
SELECT * FROM rejected_issue WHERE redrive_of = $1 AND reason <> 'PARKED'
ORDER BY ticket_partition, ticket_offset LIMIT 1"""
_FIRST_PAYLOAD_HASH = """
SELECT payload_hash FROM coupon_change WHERE coupon_id = $1 AND request_id = $2 AND result <> 'REPEATED'"""
