"""The one transaction, and all of the ledger's SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.decide import decide
from services.domain.model import (
    Changed,
    ChangeRequest,
    Coupon,
    CouponId,
    Grant,
    Issued,
    IssueRequest,
    LineRecord,
    LineState,
    Parked,
    PastChange,
    Reason,
    Rejected,
    RequestId,
    Ticket,
    UserId,
    Verdict,
)
from services.runtime import failpoints, wire
from services.runtime.kafka import home_partition
from services.runtime.postgres import END_FROZEN, BooksWrong, Connection, UniqueViolation, connection
from services.runtime.progress import Position, ProgressRows
from services.runtime.rows import GRANTS_OF_LISTED, expect, listed, to_coupon
from services.runtime.settled import Settled, settled_between

CAREFUL_BATCHES = 100
"""For how many batches of its partition everybody is looked up first once somebody was not granted: 4 s of a rush."""
KEY = "user_coupon_pkey"
"""Of user_id and coupon_id: nobody has a coupon twice."""
_KNOWN_AT_ONCE = frozenset({Issued, Changed})
"""Verdicts that need no look at what anybody has; any other may."""


class _NotAllGranted(Exception):
    """Somebody is not, and why may depend on what everybody has already."""


class DeadLetterRun(Exception):
    """So many records in a row would be parked that nobody should; the first `length` of the batch may still be."""

    def __init__(self, length: int) -> None:
        super().__init__(f"the run of newly parked records reaches its limit at record {length} of the batch")
        self.length = length


@dataclass(frozen=True, slots=True)
class ParkedRun:
    """How many records in a row have been newly parked, and how many may be (0: any number)."""

    length: int
    limit: int

    @property
    def reached(self) -> bool:
        return 0 < self.limit <= self.length

    def after(self, verdicts: Iterable[Verdict]) -> ParkedRun:
        """The run behind these verdicts. Raises DeadLetterRun where the limit falls within them."""
        length = self.length
        reached = None
        for count, verdict in enumerate(verdicts, start=1):
            if reached is not None:
                raise DeadLetterRun(reached)
            length = length + 1 if isinstance(verdict, Parked) and not verdict.known else 0
            if self.limit and length == self.limit:
                reached = count
        return replace(self, length=length)


class LedgerStore:
    """The ledger's tables of one line topic."""

    def __init__(self, engine: AsyncEngine, topic: str, partition_count: int) -> None:
        self._engine = engine
        self._progress = ProgressRows(topic)
        self._partition_count = partition_count
        self._careful: Counter[int] = Counter()
        """Of each partition, how many batches are still to be looked up first."""

    async def position(self, partition: int) -> Position:
        """The partition's progress; a missing row is inserted at 0. Raises DatabaseAway."""
        async with connection(self._engine) as db:
            await db.execute(END_FROZEN)
            return await self._progress.take(db, partition)

    async def check_key(self) -> None:
        """That there is the key that `settle` relies on. Raises BooksWrong, DatabaseAway."""
        async with connection(self._engine) as db:
            if not await db.fetchval(_HAS_KEY, KEY):
                raise BooksWrong(f"user_coupon has no valid unique key {KEY} of user_id and coupon_id alone")

    async def parked_run(self, position: Position, limit: int) -> ParkedRun:
        """The run of parked records that ends at the position, so that it goes on where another ledger counted it.

        At most one short of the limit: a taken position is never halted for what is behind it. Raises DatabaseAway.
        """
        if limit == 0:
            return ParkedRun(0, limit)
        async with connection(self._engine) as db:
            rows = await db.fetch(_LAST_REASONS, position.partition, limit - 1)
        return ParkedRun(sum(1 for _ in takewhile(lambda row: row["reason"] == Reason.PARKED, rows)), limit)

    async def settle(
        self, before: Position, after: Position, records: Sequence[LineRecord], run: ParkedRun
    ) -> tuple[Sequence[Verdict], ParkedRun]:
        """Give the records their verdicts and move the progress from `before` to `after`: all of it, or nothing.

        Raises PositionLost, DeadLetterRun, DatabaseRefused, BooksWrong; DatabaseAway may also mean that COMMIT took
        effect, so the position must be read again then.
        """
        partition = before.partition
        async with connection(self._engine) as db:
            # While everybody is granted nobody is looked up: the unique key says at once if somebody has it already.
            if self._careful[partition] == 0:
                try:
                    return await self._settle(db, before, after, records, run, careful=False)
                except _NotAllGranted:
                    pass
                except UniqueViolation as error:
                    if error.constraint_name != KEY:
                        raise
                self._careful[partition] = CAREFUL_BATCHES
            self._careful[partition] -= 1
            return await self._settle(db, before, after, records, run, careful=True)

    async def _settle(
        self,
        db: Connection,
        before: Position,
        after: Position,
        records: Sequence[LineRecord],
        run: ParkedRun,
        *,
        careful: bool,
    ) -> tuple[Sequence[Verdict], ParkedRun]:
        async with db.transaction():
            # First the compare-and-set: its row lock is the only mutex, so all that is read behind it stays true.
            await self._progress.move(db, before, after)
            failpoints.reach("ledger.fenced")
            state = await self._read_state(db, before.partition, records, grants=careful)
            decision = decide(state, records)
            kinds = set(map(type, decision.verdicts))
            if not careful and not kinds <= _KNOWN_AT_ONCE:
                raise _NotAllGranted
            run = run.after(decision.verdicts) if Parked in kinds else replace(run, length=0)
            failpoints.reach("ledger.decided")
            await _write_verdicts(db, before.partition, decision.verdicts)
            failpoints.reach("ledger.verdicts_written")
            await _write_coupons(db, state, decision.coupons, decision.verdicts)
            failpoints.reach("ledger.coupons_written")
        failpoints.reach("ledger.committed")
        return decision.verdicts, run

    async def acknowledge(self, before: Position, after: Position) -> None:
        """Note what the broker has acknowledged, while nothing is settled. Raises PositionLost, DatabaseAway."""
        async with connection(self._engine) as db:
            await self._progress.move(db, before, after)

    async def confirm(self, position: Position) -> None:
        """Whether the table still has the position. Raises PositionLost, DatabaseAway."""
        async with connection(self._engine) as db:
            await self._progress.confirm(db, position)

    async def verdicts(self, partition: int, start: int, end: int) -> list[Settled]:
        """What was settled with start <= offset < end, in offset order: the outcome, and the parked one's verdict.

        Raises DatabaseAway.
        """
        async with connection(self._engine) as db:
            return await settled_between(db, partition, start, end)

    async def _read_state(
        self, db: Connection, partition: int, records: Sequence[LineRecord], *, grants: bool
    ) -> LineState:
        requests = [r for r in records if type(r) is IssueRequest]
        changes = [r for r in records if type(r) is ChangeRequest] if len(requests) < len(records) else []
        asked = {r.coupon_id for r in changes}
        redrives = []
        for _, _, coupon_id, _, _, redrive in requests:
            asked.add(coupon_id)
            if redrive is not None:
                redrives.append(redrive.original)
        coupons = {row["coupon_id"]: to_coupon(row) for row in await db.fetch(_COUPONS, list(asked))} if asked else {}
        foreign = {
            coupon_id
            for coupon_id in asked
            if (coupons[coupon_id].partition if coupon_id in coupons else self._home(coupon_id)) != partition
        }
        granted: dict[tuple[CouponId, UserId], Grant] = {}
        if requests and grants:
            pairs = listed(r.user_id for r in requests), listed(r.coupon_id for r in requests)
            granted = {(row["coupon_id"], row["user_id"]): _grant(row) for row in await db.fetch(_GRANTS, *pairs)}
        past: dict[tuple[CouponId, RequestId], PastChange] = {}
        if changes:
            keys = [c.coupon_id for c in changes], [c.request_id for c in changes]
            for row in await db.fetch(_CHANGES, *keys):
                _, outcome = wire.parse_change_outcome(row["outcome"])
                past[row["coupon_id"], row["request_id"]] = PastChange(row["payload_hash"], outcome)
        redriven: dict[Ticket, Grant | None] = {}
        if redrives:
            for row in await db.fetch(_REDRIVEN, [str(ticket) for ticket in redrives], partition):
                original = Ticket.parse(row["redrive_of"])
                issued = Ticket.parse(row["issued_ticket"] or "")
                if original is not None:  # the first row is the one that settled it
                    grant = Grant(row["request_id"], row["sequence"], issued) if issued is not None else None
                    redriven.setdefault(original, grant)
        own = {coupon_id: coupon for coupon_id, coupon in coupons.items() if coupon_id not in foreign}
        return LineState(partition, own, frozenset(foreign), granted, past, redriven)

    def _home(self, coupon_id: CouponId) -> int:
        return home_partition(coupon_id.encode(), self._partition_count)


async def _write_verdicts(db: Connection, partition: int, verdicts: Sequence[Verdict]) -> None:
    issued = [v for v in verdicts if type(v) is Issued]
    others = verdicts if len(issued) < len(verdicts) else ()  # to look at 32,000 takes its time
    rejected = [v for v in others if isinstance(v, Rejected)]
    parked = [v for v in others if isinstance(v, Parked)]
    changed = [v for v in others if isinstance(v, Changed)]
    if issued:
        granted = (
            (user_id, coupon_id, request_id, sequence, partition, offset, _text(redrive_of), time_us)
            for offset, time_us, coupon_id, user_id, request_id, sequence, redrive_of in issued
        )
        await _copy(db, "user_coupon", _ISSUED_COLUMNS, granted, len(issued))
    if rejected or parked:
        rows: list[tuple[Any, ...]] = [
            (
                partition,
                offset,
                coupon_id,
                user_id,
                request_id,
                reason,
                None,
                _text(grant.ticket) if grant else None,
                grant.sequence if grant else None,
                _text(redrive_of),
                time_us,
            )
            for offset, time_us, coupon_id, user_id, request_id, reason, grant, redrive_of in rejected
        ]
        for v in parked:
            ids = v.coupon_id, v.user_id, v.request_id
            detail = f"{v.reason}: {v.message}"
            place = partition, v.offset
            told = Reason.PARKED, detail, None, None, _text(v.redrive_of), v.time_us
            rows.append((*place, *ids, *told))
        await _copy(db, "rejected_issue", _REJECTED_COLUMNS, rows, len(rows))
    if changed:
        await _insert(
            db,
            _INSERT_CHANGED,
            len(changed),
            partition,
            [v.offset for v in changed],
            [v.coupon_id for v in changed],
            [v.request_id for v in changed],
            [v.payload_hash for v in changed],
            [Reason.REPEATED if v.repeated else (v.outcome.reason or "APPLIED") for v in changed],
            [wire.change_outcome(partition, v) for v in changed],
            [v.caller for v in changed],
            [_text(v.redrive_of) for v in changed],
            [v.time_us for v in changed],
        )


async def _write_coupons(
    db: Connection, state: LineState, coupons: Sequence[Coupon], verdicts: Sequence[Verdict]
) -> None:
    granted = Counter([v.coupon_id for v in verdicts if type(v) is Issued])
    updated = [c for c in coupons if c.coupon_id in state.coupons]
    created = [c for c in coupons if c.coupon_id not in state.coupons]
    if created:
        await _insert(
            db,
            _INSERT_COUPON,
            len(created),
            *_coupon_columns(created),
            [c.partition for c in created],
            [c.create_us for c in created],
            [c.issued for c in created],
        )
    if updated:
        # The guard on issued_count: what is added is exactly what was inserted, or the books are wrong.
        expect(
            f"UPDATE {len(updated)}",
            await db.execute(_UPDATE_COUPON, *_coupon_columns(updated), [granted[c.coupon_id] for c in updated]),
        )
        for coupon in updated:
            if coupon.issued != state.coupons[coupon.coupon_id].issued + granted[coupon.coupon_id]:
                raise BooksWrong(f"coupon {coupon.coupon_id}: {coupon.issued} issued does not follow from its grants")


async def _insert(db: Connection, statement: str, count: int, *arguments: Any) -> None:
    expect(f"INSERT 0 {count}", await db.execute(statement, *arguments))


async def _copy(
    db: Connection, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]], count: int
) -> None:
    """Insert by COPY: half the cost of `unnest` for the ledger and for PostgreSQL, with the same keys and checks.

    Rows that are made when they are sent are still in the processor's nearest memory then.
    """
    expect(f"COPY {count}", await db.copy_records_to_table(table, records=rows, columns=columns))


def _coupon_columns(coupons: Sequence[Coupon]) -> tuple[list[Any], ...]:
    return (
        [c.coupon_id for c in coupons],
        [c.display_name for c in coupons],
        [c.total for c in coupons],
        [c.start_us for c in coupons],
        [c.end_us for c in coupons],
        [c.switch.value for c in coupons],
        [c.etag for c in coupons],
        [c.update_us for c in coupons],
    )


def _text(ticket: Ticket | None) -> str | None:
    return None if ticket is None else str(ticket)


def _grant(row: Any) -> Grant:
    return Grant(row["request_id"], row["sequence"], Ticket(row["ticket_partition"], row["ticket_offset"]))


_HAS_KEY = """
SELECT count(*) = 1 FROM pg_index
WHERE indexrelid = to_regclass($1) AND indrelid = to_regclass('user_coupon')
    AND indisunique AND indimmediate AND indisvalid AND indisready AND indpred IS NULL AND indnkeyatts = 2
    AND ARRAY['coupon_id', 'user_id'] <@ ARRAY(
        SELECT attname::text FROM pg_attribute WHERE attrelid = indrelid AND attnum IN (indkey[0], indkey[1]))"""
# Of rejected records alone, behind the last one that was no refusal.
_LAST_REASONS = """
SELECT reason FROM rejected_issue
WHERE ticket_partition = $1 AND ticket_offset > greatest(
    (SELECT coalesce(max(ticket_offset), -1) FROM user_coupon WHERE ticket_partition = $1),
    (SELECT coalesce(max(ticket_offset), -1) FROM coupon_change WHERE ticket_partition = $1))
ORDER BY ticket_offset DESC LIMIT $2"""
_COUPONS = "SELECT * FROM coupon WHERE coupon_id = ANY($1::text[])"
_GRANTS = (
    "SELECT g.user_id, g.coupon_id, g.request_id, g.sequence, g.ticket_partition, g.ticket_offset" + GRANTS_OF_LISTED
)
_CHANGES = """
SELECT coupon_id, request_id, payload_hash, outcome
FROM unnest($1::text[], $2::text[]) AS asked (coupon_id, request_id) JOIN coupon_change USING (coupon_id, request_id)
WHERE result <> 'REPEATED'"""
_REDRIVEN = """
SELECT redrive_of, request_id, sequence, ticket_offset, ticket_partition || '-' || ticket_offset AS issued_ticket
FROM user_coupon WHERE redrive_of = ANY($1::text[]) AND ticket_partition = $2
UNION ALL
SELECT redrive_of, request_id, issued_sequence, ticket_offset, issued_ticket
FROM rejected_issue WHERE redrive_of = ANY($1::text[]) AND ticket_partition = $2 AND reason <> 'PARKED'
ORDER BY ticket_offset"""
_ISSUED_COLUMNS = (
    "user_id",
    "coupon_id",
    "request_id",
    "sequence",
    "ticket_partition",
    "ticket_offset",
    "redrive_of",
    "accepted_at",
)
_REJECTED_COLUMNS = (
    "ticket_partition",
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
)
_INSERT_CHANGED = """
INSERT INTO coupon_change (ticket_partition, ticket_offset, coupon_id, request_id, payload_hash, result, outcome,
    caller, redrive_of, accepted_at)
SELECT $1, * FROM unnest($2::bigint[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::bytea[], $8::text[],
    $9::text[], $10::timestamptz[])"""
_INSERT_COUPON = """
INSERT INTO coupon (coupon_id, display_name, total, start_time, end_time, state, etag, update_time,
    topic_partition, create_time, issued_count, remaining)
SELECT n.*, n.total - n.issued FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::timestamptz[],
    $6::text[], $7::text[], $8::timestamptz[], $9::int[], $10::timestamptz[], $11::bigint[])
    AS n (coupon_id, display_name, total, start_time, end_time, state, etag, update_time, partition, created, issued)"""
_UPDATE_COUPON = """
UPDATE coupon SET display_name = n.display_name, total = n.total, start_time = n.start_time, end_time = n.end_time,
    state = n.state, etag = n.etag, update_time = n.update_time,
    issued_count = coupon.issued_count + n.granted, remaining = n.total - coupon.issued_count - n.granted
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::text[],
    $8::timestamptz[], $9::bigint[])
    AS n (coupon_id, display_name, total, start_time, end_time, state, etag, update_time, granted)
WHERE coupon.coupon_id = n.coupon_id"""
