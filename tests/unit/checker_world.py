"""A system in memory for the checker's tests: a line, and the books that the services' own decision makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from coupon.v1 import coupon_pb2, events_pb2

from checker.audit import audit
from checker.classify import home_partition
from checker.findings import Report
from checker.history import History
from checker.outcomes import event_of
from checker.records import (
    ChangeRow,
    CouponRow,
    DeadLetterRow,
    Headers,
    IssuedRow,
    Record,
    RejectedRow,
    Ticket,
    VerdictRow,
)
from services.domain import model as domain
from services.domain.decide import decide
from services.runtime import kafka, wire

T = TypeVar("T")

LINE_TOPIC = "coupon.issue-requests.v1"
PARTITIONS = 2
START_MS = 1_800_000_000_000
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def coupon_at(partition: int, number: int = 0, *, partitions: int = PARTITIONS) -> str:
    """The `number`-th id of the form coupon-<n> whose home is the partition."""
    ids = (f"coupon-{n}" for n in range(1000))
    return [coupon_id for coupon_id in ids if home_partition(coupon_id, partitions) == partition][number]


def request_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


@dataclass
class World:
    """Books in memory. Tests build a line, let the services' decision settle it, then break something."""

    partitions: int = PARTITIONS
    line_topic: str = LINE_TOPIC
    lines: list[list[Record]] = field(init=False)
    dlq: list[list[Record]] = field(init=False)
    published: list[list[Record]] = field(init=False)
    rows: list[VerdictRow] = field(default_factory=list)
    coupon_rows: list[CouponRow] = field(default_factory=list)
    dead_letter_table: list[DeadLetterRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        numbers = range(self.partitions)
        self.lines, self.dlq, self.published = [[] for _ in numbers], [[] for _ in numbers], [[] for _ in numbers]

    @property
    def partition_count(self) -> int:
        return self.partitions

    # Building the line

    def put(
        self, partition: int, key: bytes | None, value: bytes | None, headers: Headers, *, time_ms: int | None = None
    ) -> Ticket:
        line = self.lines[partition]
        when = START_MS + len(line) if time_ms is None else time_ms
        line.append(Record(partition, len(line), when, key, value, headers))
        return Ticket(partition, len(line) - 1)

    def issue(
        self,
        coupon_id: str,
        user_id: str,
        request: int | str,
        *,
        partition: int | None = None,
        time_ms: int | None = None,
        headers: Headers = (),
    ) -> Ticket:
        event = events_pb2.CouponIssueRequestedEvent(
            coupon_id=coupon_id,
            user_id=user_id,
            request_id=request if isinstance(request, str) else request_id(request),
        )
        kind: Headers = (("ce_type", b"coupon.v1.CouponIssueRequestedEvent"), ("traceparent", TRACEPARENT), *headers)
        where = home_partition(coupon_id, self.partitions) if partition is None else partition
        return self.put(where, coupon_id.encode(), event.SerializeToString(), kind, time_ms=time_ms)

    def change(
        self, event: events_pb2.CouponChangeRequestedEvent, *, time_ms: int | None = None, headers: Headers = ()
    ) -> Ticket:
        kind: Headers = (("ce_type", b"coupon.v1.CouponChangeRequestedEvent"), *headers)
        where = home_partition(event.coupon_id, self.partitions)
        return self.put(where, event.coupon_id.encode(), event.SerializeToString(), kind, time_ms=time_ms)

    def create(self, coupon_id: str, total: int, request: int = 900) -> Ticket:
        return self.change(
            events_pb2.CouponChangeRequestedEvent(
                coupon_id=coupon_id,
                request_id=request_id(request),
                action="CREATE",
                coupon=coupon_pb2.Coupon(display_name="a coupon", total_quantity=total),
                caller="tests",
            )
        )

    # Settling it as the services do

    def settle(self) -> World:
        for partition, line in enumerate(self.lines):
            self._settle(partition, line)
        return self

    def _settle(self, partition: int, line: Sequence[Record]) -> None:
        theirs = [
            kafka.Record(record.offset, record.timestamp_ms, record.key, record.value, record.headers)
            for record in line
        ]
        records, _ = wire.decode_all(theirs)
        foreign = frozenset(
            record.coupon_id
            for record in records
            if record.coupon_id is not None and home_partition(record.coupon_id, self.partitions) != partition
        )
        decision = decide(domain.LineState(partition, {}, foreign, {}, {}, {}), records)
        for record, verdict in zip(theirs, decision.verdicts, strict=True):
            self.rows.append(row_of(partition, verdict))
            told = wire.outcome(partition, verdict)
            message = wire.outcome_message(self.line_topic, partition, told, record.header("traceparent"))
            self.published[partition].append(
                Record(partition, verdict.offset, START_MS, message.key, message.value, tuple(message.headers))
            )
            if isinstance(verdict, domain.Parked):
                self._park(partition, record, verdict)
        for coupon in decision.coupons:
            self.coupon_rows.append(
                CouponRow(
                    coupon.coupon_id,
                    coupon.partition,
                    coupon.display_name,
                    coupon.total,
                    coupon.remaining,
                    coupon.issued,
                    coupon.start_us,
                    coupon.end_us,
                    coupon.switch.value,
                    coupon.etag,
                    coupon.create_us,
                    coupon.update_us,
                )
            )

    def _park(self, partition: int, record: kafka.Record, parked: domain.Parked) -> None:
        message = wire.dead_letter_message(self.line_topic, partition, record, parked.reason, parked.message)
        dlq = self.dlq[partition]
        dlq.append(Record(partition, len(dlq), START_MS, message.key, message.value, tuple(message.headers)))
        original = parked.redrive_of or domain.Ticket(partition, parked.offset)
        ticket = Ticket(original.partition, original.offset)
        if all(row.ticket != ticket for row in self.dead_letter_table):
            self.dead_letter_table.append(
                DeadLetterRow(ticket, "PARKED", parked.reason.value, 1, record.key, record.value, record.headers)
            )

    # Breaking it

    def row(self, ticket: Ticket) -> VerdictRow:
        return next(row for row in self.rows if row.ticket == ticket)

    def swap(self, ticket: Ticket, *rows: VerdictRow) -> None:
        """Put these rows where that ticket's is."""
        at = self.rows.index(self.row(ticket))
        self.rows[at : at + 1] = rows

    def republish(self, ticket: Ticket) -> None:
        """Let the outcome of the ticket say what its row says now."""
        row = self.row(ticket)
        ce_type, value = event_of(row)
        outcomes = self.published[ticket.partition]
        at = next(n for n, record in enumerate(outcomes) if record.offset == ticket.offset)
        headers = tuple((name, ce_type if name == "ce_type" else text) for name, text in outcomes[at].headers)
        key = None if row.coupon_id is None else row.coupon_id.encode()
        outcomes[at] = outcomes[at]._replace(value=value, headers=headers, key=key)

    async def report(self, history: History | None = None) -> Report:
        return await audit(self, history)

    # Books

    def line(self, partition: int) -> AsyncIterator[Sequence[Record]]:
        return _batches(self.lines[partition])

    def dead_letters(self, partition: int) -> AsyncIterator[Sequence[Record]]:
        return _batches(self.dlq[partition])

    def outcomes(self, partition: int) -> AsyncIterator[Sequence[Record]]:
        return _batches(self.published[partition])

    async def outcomes_begin(self, partition: int) -> int:
        return 0

    async def verdicts(self, partition: int, start: int, end: int | None) -> Sequence[VerdictRow]:
        stop = 2**63 if end is None else end
        return [row for row in self.rows if row.ticket.partition == partition and start <= row.ticket.offset < stop]

    async def verdicts_elsewhere(self) -> Sequence[VerdictRow]:
        return [row for row in self.rows if not -1 <= row.ticket.partition < self.partitions]

    async def coupons(self) -> Sequence[CouponRow]:
        return self.coupon_rows

    def dead_letter_rows(self) -> AsyncIterator[Sequence[DeadLetterRow]]:
        return _batches(self.dead_letter_table)


async def _batches(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    for start in range(0, len(items), 3):
        yield items[start : start + 3]


def row_of(partition: int, verdict: domain.Verdict) -> VerdictRow:
    ticket = Ticket(partition, verdict.offset)
    settled_us = START_MS * 1000 + verdict.offset
    redrive_of = str(verdict.redrive_of) if verdict.redrive_of else None
    if isinstance(verdict, domain.Issued):
        return IssuedRow(
            ticket,
            verdict.coupon_id,
            verdict.user_id,
            verdict.request_id,
            verdict.sequence,
            redrive_of,
            verdict.time_us,
            settled_us,
        )
    if isinstance(verdict, domain.Rejected):
        return RejectedRow(
            ticket,
            verdict.coupon_id,
            verdict.user_id,
            verdict.request_id,
            verdict.reason.value,
            None,
            str(verdict.grant.ticket) if verdict.grant else None,
            verdict.grant.sequence if verdict.grant else None,
            redrive_of,
            verdict.time_us,
            settled_us,
        )
    if isinstance(verdict, domain.Parked):
        return RejectedRow(
            ticket,
            verdict.coupon_id,
            verdict.user_id,
            verdict.request_id,
            "PARKED",
            f"{verdict.reason.value}: {verdict.message}",
            None,
            None,
            redrive_of,
            verdict.time_us,
            settled_us,
        )
    result = "REPEATED" if verdict.repeated else (verdict.outcome.reason or "APPLIED")
    return ChangeRow(
        ticket,
        verdict.coupon_id,
        verdict.request_id,
        str(result),
        wire.change_outcome(partition, verdict),
        verdict.caller,
        redrive_of,
        verdict.time_us,
        settled_us,
    )
