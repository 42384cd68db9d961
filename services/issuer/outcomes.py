"""The tail of the outcomes topic: what was settled, told at once to those who wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from coupon.v1 import events_pb2
from google.protobuf.message import DecodeError

from services.domain.model import Coupon, CouponId, Reason, RequestId, Ticket, UserId
from services.runtime import metrics, wire
from services.runtime.fetching import LogRecord
from services.runtime.kafka import CE_ID, CE_TYPE, KafkaAway, OutOfLog, PartitionReader, Record, to_records
from services.runtime.log import Seldom, get_logger
from services.runtime.pace import Pace
from services.runtime.rpc_errors import unavailable

log = get_logger(__name__)
seldom_log = Seldom(__name__)

STEP_RECORDS = 100
"""Less than a millisecond, before other tasks get their turn; so few also stay in the processor's nearest memory."""
POLL_MS = 1_000
UNAWAITED_S = 0.25
"""How long outcomes may gather at the broker while nobody waits for any: each answer costs it and an issuer some
milliseconds. What is told of a coupon only shortens for how long its state is kept, and look-ups bring progress
themselves."""
NO_USER = UserId("")
"""The user of a change's waiter."""

_OFFSET_DIGITS_MAX = 19

Event = events_pb2.CouponIssuedEvent | events_pb2.CouponRejectedEvent | events_pb2.CouponChangedEvent
WaitKey = tuple[CouponId, UserId, RequestId]


@dataclass(frozen=True, slots=True)
class Told:
    """An outcome as it came: when its request was taken into the line, and when its verdict was published."""

    event: Event
    ticket: Ticket
    accept_us: int
    publish_us: int

    @property
    def is_grant(self) -> bool:
        """Whether the user has the coupon, by this record or by the earlier one that it repeats."""
        event = self.event
        if isinstance(event, events_pb2.CouponRejectedEvent):
            return event.reason == Reason.REPEATED and bool(event.issued_ticket)
        return isinstance(event, events_pb2.CouponIssuedEvent)


class Waiter:
    """Waits for the verdict of one request; registered before it is sent, since the outcome may come first."""

    def __init__(self) -> None:
        self._future: asyncio.Future[Told | None] = asyncio.get_running_loop().create_future()
        self._ticket: Ticket | None = None
        self._early: dict[Ticket, Told] = {}

    def bind(self, ticket: Ticket) -> None:
        """The request's own ticket, once it is known."""
        self._ticket = ticket
        if ticket in self._early:
            self._resolve(self._early[ticket])
        self._early.clear()

    def tell(self, told: Told) -> None:
        """A grant counts from any record of the key, a rejection only from the own ticket."""
        if told.is_grant or told.ticket == self._ticket:
            self._resolve(told)
        elif self._ticket is None:
            self._early[told.ticket] = told

    async def wait(self, timeout_s: float) -> Told | None:
        """The outcome, or None when the time is over."""
        timer = asyncio.get_running_loop().call_later(max(timeout_s, 0), self._resolve, None)
        try:
            return await self._future
        finally:
            timer.cancel()

    def _resolve(self, told: Told | None) -> None:
        if not self._future.done():
            self._future.set_result(told)


class OutcomesTail:
    """Follows all partitions of the outcomes topic from their ends on."""

    def __init__(
        self, make_reader: Callable[[int], PartitionReader], partition_count: int, *, waiters_max: int
    ) -> None:
        self._make_reader = make_reader
        self._partition_count = partition_count
        self._waiters_max = waiters_max
        self._waiters: dict[WaitKey, list[Waiter]] = {}
        self._waiter_count = 0
        self._awaited = asyncio.Event()
        self._seen: dict[int, int] = {}
        self._settled: dict[int, int] = {}
        self._last: dict[int, Record] = {}
        self._positioned: set[int] = set()
        self._ready = asyncio.Event()
        self.on_coupon: Callable[[Coupon], None] = lambda coupon: None

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow until `stopping` is set."""
        async with asyncio.TaskGroup() as group:
            for partition in range(self._partition_count):
                group.create_task(self._follow(partition, stopping))

    async def ready(self) -> None:
        """Returns once there is a position on every partition and its last outcome has been read."""
        await self._ready.wait()

    def seen(self) -> Mapping[int, int]:
        """The highest ticket offset among the outcomes seen, by partition of the line."""
        return dict(self._seen)

    def settled(self, partition: int, next_offset: int) -> None:
        """The tables' own progress, which may be ahead of the outcomes."""
        self._settled[partition] = max(next_offset, self._settled.get(partition, 0))

    def settled_offset(self, partition: int) -> int:
        """Up to where the partition is known to be settled."""
        return self._settled.get(partition, 0)

    def last_told(self) -> list[Told]:
        """The last outcome of each partition that has had any since the last time."""
        records, self._last = self._last, {}
        found: list[Told] = []
        for record in records.values():
            with contextlib.suppress(DecodeError, ValueError):  # not of this release's ledger
                if (told := _parse(record)) is not None:
                    found.append(told)
        return found

    def observe(self) -> None:
        """Note how many wait."""
        metrics.WAITERS.set(self._waiter_count)
        metrics.WAITERS_MAX.set(self._waiters_max)

    def unsettled(self, partition: int, offset: int) -> int:
        """How many records of the partition are ahead of that offset and not known to be settled."""
        return max(0, offset - self._settled.get(partition, 0))

    def register(self, key: WaitKey) -> Waiter:
        """A waiter for the key; `leave` must follow. Raises Refusal (OVERLOADED) above the limit."""
        if self._waiter_count >= self._waiters_max:
            raise unavailable("OVERLOADED", f"more than {self._waiters_max} calls wait for a verdict", key[2])
        waiter = Waiter()
        self._waiters.setdefault(key, []).append(waiter)
        self._waiter_count += 1
        self._awaited.set()
        return waiter

    def leave(self, key: WaitKey, waiter: Waiter) -> None:
        """The waiter waits no more."""
        waiters = self._waiters[key]
        waiters.remove(waiter)
        self._waiter_count -= 1
        if not waiters:
            del self._waiters[key]
            if not self._waiters:
                self._awaited.clear()

    async def _follow(self, partition: int, stopping: asyncio.Event) -> None:
        reader = self._make_reader(partition)
        pace = Pace(stopping)
        try:
            while not stopping.is_set():
                try:
                    await self._follow_from_end(partition, reader, stopping, pace)
                except (KafkaAway, OutOfLog) as error:
                    log.warning("tail_interrupted", partition=partition, error=str(error))
                    await pace.failed()
        finally:
            await reader.stop()

    async def _follow_from_end(
        self, partition: int, reader: PartitionReader, stopping: asyncio.Event, pace: Pace
    ) -> None:
        begin, end = await reader.bounds()
        # From the last outcome there is, so that it is known how far the line was settled at least.
        await reader.seek(max(begin, end - 1))
        position = end if begin == end else end - 1
        while not stopping.is_set():
            if position >= end and partition not in self._positioned:
                self._positioned.add(partition)
                if len(self._positioned) == self._partition_count:
                    self._ready.set()
            records = await reader.take(max_records=STEP_RECORDS, timeout_ms=POLL_MS, telling=self._telling)
            if records:
                position = records[-1].offset + 1
                self._read(partition, records)
                pace.succeeded()
                if position >= reader.known_end() and partition in self._positioned:
                    await self._gather()
                await asyncio.sleep(0)  # `take` may wait for nothing, and others must have their turn

    async def _gather(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNAWAITED_S):
                await self._awaited.wait()

    def _read(self, partition: int, records: Sequence[LogRecord]) -> None:
        (self._last[partition],) = to_records(records[-1:])
        highest, changes = _scan(records)
        self._seen[partition] = max(highest, self._seen.get(partition, -1))
        self.settled(partition, highest + 1)
        # Almost no one waits for almost all outcomes: of those not even the event is parsed.
        for record in to_records(records if self._waiters else changes):
            try:
                self._tell(record)
            except (DecodeError, ValueError) as error:
                # Not of this release's ledger. It must not end the issuer, or each that starts while it is the last.
                seldom_log.warning(
                    "outcome_skipped", partition=partition, offset=record.offset, error=type(error).__name__
                )

    def _telling(self) -> bytes | None:
        """What the outcomes that must be looked at have in them, if that is not all of them.

        The last of an answer tells how far the line is settled: what was settled is published in its order.
        """
        return None if self._waiters else _CHANGED

    def _tell(self, record: Record) -> None:
        told = _parse(record)
        if told is None:
            return
        if isinstance(told.event, events_pb2.CouponChangedEvent):
            _, outcome = wire.parse_change_outcome(record.value or b"")
            if outcome.coupon is not None:
                self.on_coupon(outcome.coupon)
            user_id = NO_USER
        else:
            user_id = UserId(told.event.user_id)
        key = CouponId(told.event.coupon_id), user_id, RequestId(told.event.request_id)
        for waiter in self._waiters.get(key, ()):
            waiter.tell(told)


_CHANGED = wire.CHANGED.encode()
_EVENTS: Mapping[bytes, type[Event]] = {
    wire.ISSUED.encode(): events_pb2.CouponIssuedEvent,
    wire.REJECTED.encode(): events_pb2.CouponRejectedEvent,
    _CHANGED: events_pb2.CouponChangedEvent,
}


def _scan(records: Iterable[LogRecord]) -> tuple[int, list[LogRecord]]:
    """The highest offset in the line of what they settled, from `ce_id`, and those that tell of a change."""
    highest = -1
    changes = []
    for record in records:
        ce_type = ce_id = None
        for name, value in record.headers:
            if name == CE_ID:
                ce_id = ce_id or value
            elif name == CE_TYPE:
                ce_type = ce_type or value
            if ce_id and ce_type:
                break
        if ce_id is not None:
            digits = ce_id.rpartition(b"/")[2]
            if digits.isdigit() and len(digits) <= _OFFSET_DIGITS_MAX:
                highest = max(highest, int(digits))
        if ce_type == _CHANGED:
            changes.append(record)
    return highest, changes


def _parse(record: Record) -> Told | None:
    message = _EVENTS.get(record.header(CE_TYPE) or b"")
    if message is None or record.value is None:
        return None
    event = message.FromString(record.value)
    ticket = Ticket.parse(event.ticket)
    if ticket is None:
        return None
    return Told(event, ticket, wire.parse_rfc3339(record.header("ce_time") or b""), record.timestamp_ms * 1000)
