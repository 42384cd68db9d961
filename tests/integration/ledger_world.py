"""One system's topics and tables with a real ledger on them, and the accidents that a test arranges for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import asyncpg
import pytest
from coupon.v1 import events_pb2
from sqlalchemy.ext.asyncio import AsyncEngine

from checker import Check, verify
from services.domain.model import LineRecord, Ticket, Verdict
from services.ledger import consumer
from services.ledger.consumer import PartitionLedger
from services.ledger.store import LedgerStore, ParkedRun
from services.runtime import kafka, wire
from services.runtime.kafka import Appended, Message, PartitionReader, Record, RecordProducer, Topics
from services.runtime.postgres import create_engine
from services.runtime.progress import Position
from stack import Stack
from tests.conftest import TEST_PARTITIONS

PATIENCE_S = 30.0
POLL_S = 0.02
FETCH_WAIT_MS = 20
RUN_MAX = 1_000
VERDICT_TABLES = ("user_coupon", "rejected_issue", "coupon_change")
BOOKS = (*VERDICT_TABLES, "coupon", "ledger_progress")
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Died(BaseException):
    """The process is gone: nothing of the ledger catches this."""


def coupon_at(partition: int, number: int = 0) -> str:
    """A coupon id that belongs to the partition; another one for each number."""
    names = (f"coupon-{n}" for n in itertools.count())
    mine = (name for name in names if kafka.home_partition(name.encode(), TEST_PARTITIONS) == partition)
    return next(itertools.islice(mine, number, None))


HOME = 1
COUPON = coupon_at(HOME)


def batches_of(count: int, patch: pytest.MonkeyPatch) -> None:
    """Let a ledger settle no more than so many records at once."""
    patch.setattr(consumer, "BATCH_RECORDS_MAX", count)
    patch.setattr(consumer, "STEP_RECORDS", count, raising=False)


def request_id(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, text))


def headers(ce_type: str) -> list[tuple[str, bytes | None]]:
    return wire.request_headers(ce_type, "test", b"2026-01-01T00:00:00.000+00:00", TRACEPARENT)


def issue(user_id: str, coupon_id: str = COUPON, *, request: str | None = None, key: str | None = None) -> Message:
    event = events_pb2.CouponIssueRequestedEvent(
        coupon_id=coupon_id, user_id=user_id, request_id=request_id(request or user_id)
    )
    return Message((key or coupon_id).encode(), event.SerializeToString(), headers(wire.ISSUE_REQUESTED))


def change(
    action: str,
    coupon_id: str = COUPON,
    *,
    request: str | None = None,
    total: int = 0,
    delta: int = 0,
    name: str = "Spring",
    start_s: int | None = None,
    end_s: int | None = None,
    paths: Sequence[str] = (),
    etag: str = "",
) -> Message:
    event = events_pb2.CouponChangeRequestedEvent(
        coupon_id=coupon_id,
        request_id=request_id(request) if request else str(uuid.uuid4()),
        action=action,
        stock_delta=delta,
        update_paths=paths,
        etag=etag,
        caller="operator",
    )
    event.coupon.display_name, event.coupon.total_quantity = name, total
    if start_s is not None:
        event.coupon.start_time.seconds = start_s
    if end_s is not None:
        event.coupon.end_time.seconds = end_s
    return Message(coupon_id.encode(), event.SerializeToString(), headers(wire.CHANGE_REQUESTED))


def create(total: int, coupon_id: str = COUPON, **more: Any) -> Message:
    return change("CREATE", coupon_id, total=total, **more)


def garbage(number: int = 0) -> Message:
    """A record that no release can decode."""
    return Message(b"k\xff%d" % number, b"\xff\x00garbage", [*headers(wire.ISSUE_REQUESTED), ("odd", None)])


def redrive(message: Message, original: Ticket, original_timestamp_ms: int, attempt: int = 1) -> Message:
    return wire.redrive_message(
        original, original_timestamp_ms, attempt, message.key, message.value, list(message.headers)
    )


class World:
    """The ledgers of a test share one engine and one producer, as those of a process do."""

    def __init__(self, stack: Stack, dsn: str, topics: Topics) -> None:
        self.stack, self.dsn, self.topics = stack, dsn, topics
        self.engine = create_engine(dsn, "test-ledger", pool_size=8)
        self.producer = RecordProducer(stack.kafka_bootstrap, "test")
        self.store = LedgerStore(self.engine, topics.line, TEST_PARTITIONS)
        self._engines: list[AsyncEngine] = [self.engine]

    async def close(self) -> None:
        await self.producer.stop()
        for engine in self._engines:
            await engine.dispose()

    # The line

    async def put(self, *messages: Message, partition: int = HOME) -> list[Appended]:
        return await self.producer.append(self.topics.line, partition, messages)

    async def records(self, topic: str, partition: int = HOME) -> list[Record]:
        reader = PartitionReader(self.stack.kafka_bootstrap, "test", topic, partition)
        try:
            begin, end = await reader.bounds()
            return [record async for records in reader.read(begin, end) for record in records]
        finally:
            await reader.stop()

    async def line(self, partition: int = HOME) -> list[Record]:
        return await self.records(self.topics.line, partition)

    async def dead_letters(self, partition: int = HOME) -> list[Record]:
        return await self.records(self.topics.dlq, partition)

    async def dead_letter_offsets(self, partition: int = HOME) -> list[int]:
        """Of the line's records that the dead letters are of, in the order of the DLQ."""
        found = [wire.parse_dead_letter(record) for record in await self.dead_letters(partition)]
        return [one.failed.offset for one in found if one is not None]

    async def outcomes(self, partition: int = HOME) -> list[Record]:
        return await self.records(self.topics.outcomes, partition)

    # The tables

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def execute(self, *statements: str) -> None:
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            async with connection.transaction():
                for statement in statements:
                    await connection.execute(statement)
        finally:
            await connection.close()

    async def progress(self, partition: int = HOME) -> Any:
        rows = await self.fetch(
            "SELECT * FROM ledger_progress WHERE topic = $1 AND partition = $2", self.topics.line, partition
        )
        return rows[0] if rows else None

    async def verdicts(self, partition: int = HOME) -> list[str]:
        """One word or two for each row, in the order of the tickets."""
        rows = await self.fetch(
            """
            SELECT ticket_offset, 'ISSUED ' || sequence AS told FROM user_coupon WHERE ticket_partition = $1
            UNION ALL
            SELECT ticket_offset, CASE reason WHEN 'PARKED' THEN 'PARKED ' || split_part(detail, ':', 1)
                ELSE reason END FROM rejected_issue WHERE ticket_partition = $1
            UNION ALL
            SELECT ticket_offset, result FROM coupon_change WHERE ticket_partition = $1
            ORDER BY ticket_offset""",
            partition,
        )
        return [row["told"] for row in rows]

    async def settled_rows(self) -> dict[str, list[Any]]:
        """All of the books, apart from the times at which the ledger wrote them."""
        found = {}
        for table in (*VERDICT_TABLES, "coupon"):
            rows = [dict(row) for row in await self.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")]
            for row in rows:
                for name in ("issued_at", "rejected_at", "changed_at"):
                    row.pop(name, None)
            found[table] = rows
        return found

    async def back_up(self) -> None:
        await self.execute("CREATE SCHEMA backup", *(f"CREATE TABLE backup.{t} AS TABLE {t}" for t in BOOKS))

    async def restore(self) -> None:
        await self.execute(
            f"TRUNCATE {', '.join(BOOKS)}", *(f"INSERT INTO {t} SELECT * FROM backup.{t}" for t in BOOKS)
        )

    # Ledgers

    def ledger(
        self,
        partition: int = HOME,
        *,
        store: LedgerStore | None = None,
        producer: Any = None,
        run_max: int = RUN_MAX,
    ) -> PartitionLedger:
        def reader(topic: str) -> PartitionReader:
            # What is asked of the broker waits behind a fetch that waits for records: be quick in tests.
            return PartitionReader(self.stack.kafka_bootstrap, "test-ledger", topic, partition, wait_ms=FETCH_WAIT_MS)

        return PartitionLedger(
            partition,
            self.topics,
            reader(self.topics.line),
            reader(self.topics.dlq),
            producer or self.producer,
            store or self.store,
            run_max,
        )

    def store_at(self, dsn: str) -> LedgerStore:
        """A store on another way to the same database."""
        engine = create_engine(dsn, "test-ledger", pool_size=2)
        self._engines.append(engine)
        return LedgerStore(engine, self.topics.line, TEST_PARTITIONS)

    @contextlib.asynccontextmanager
    async def running(self, *ledgers: PartitionLedger) -> AsyncIterator[PartitionLedger]:
        tasks = [asyncio.create_task(ledger.run()) for ledger in ledgers]
        try:
            yield ledgers[0]
        finally:
            for ledger in ledgers:
                ledger.stop()
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)

    async def run_until_death(self, ledger: PartitionLedger) -> bool:
        """Whether it died, rather than come to rest."""
        end = await self.end()
        task = asyncio.create_task(ledger.run())

        async def over() -> bool:
            return task.done() or await self.is_at_rest(HOME, end)

        try:
            await eventually(over)
            if not task.done():
                ledger.stop()
            await asyncio.wait_for(task, PATIENCE_S)
        except Died:
            return True
        return False

    async def is_at_rest(self, partition: int, end: int) -> bool:
        """Whether everything on the line is settled and published, and the table says so."""
        row = await self.progress(partition)
        return row is not None and row["next_offset"] == row["published_offset"] == end

    async def end(self, partition: int = HOME) -> int:
        reader = PartitionReader(self.stack.kafka_bootstrap, "test", self.topics.line, partition)
        try:
            return (await reader.bounds())[1]
        finally:
            await reader.stop()

    async def rest(self, *partitions: int) -> None:
        for partition in partitions or (HOME,):
            end = await self.end(partition)
            await eventually(functools.partial(self.is_at_rest, partition, end))

    async def settle(self, *messages: Message, **ledger: Any) -> None:
        """Put the records on the line and let a ledger settle all that is there."""
        if messages:
            await self.put(*messages)
        async with self.running(self.ledger(**ledger)):
            await self.rest()

    async def audit(self) -> None:
        """Let the checker, which has its own model of deciding, compare line, tables, DLQ and outcomes."""
        report = await verify(self.stack.kafka_bootstrap, self.dsn, topic_prefix=self.topics.prefix, drain_timeout_s=0)
        found = [finding for result in report.results for finding in result.examples]
        # No dlq runs here.
        ours = [
            one
            for one in found
            if one.check is not Check.DEAD_LETTER_NOT_STORED
            and not (one.check is Check.NOT_DRAINED and one.message.startswith(self.topics.dlq))
        ]
        assert not ours, [str(one) for one in ours]


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < deadline, "not within the time"
        await asyncio.sleep(POLL_S)


async def halted(ledger: PartitionLedger) -> str:
    """Why the ledger halted, once it has."""

    async def there() -> bool:
        return ledger.halted is not None

    await eventually(there)
    assert ledger.halted is not None
    return ledger.halted


# Accidents


class Fuse:
    """Dies at the step of that number (from 1), and at each one after it."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Died


class FusedStore(LedgerStore):
    """Counts each call and each return as a step."""

    def __init__(self, store: LedgerStore, fuse: Fuse) -> None:
        super().__init__(store._engine, store._progress.topic, store._partition_count)
        self._fuse = fuse

    async def settle(
        self, before: Position, after: Position, records: Sequence[LineRecord], run: ParkedRun
    ) -> tuple[Sequence[Verdict], ParkedRun]:
        self._fuse.step()
        settled = await super().settle(before, after, records, run)
        self._fuse.step()
        return settled

    async def acknowledge(self, before: Position, after: Position) -> None:
        self._fuse.step()
        await super().acknowledge(before, after)
        self._fuse.step()


class FusedProducer:
    """Counts each call and each return as a step; can die on one topic alone."""

    def __init__(self, producer: RecordProducer, fuse: Fuse, topic: str | None = None) -> None:
        self._producer, self._fuse, self._topic = producer, fuse, topic

    async def append(self, topic: str, partition: int, messages: Iterable[Message]) -> list[Appended]:
        counted = self._topic in (None, topic)
        if counted:
            self._fuse.step()
        appended = await self._producer.append(topic, partition, messages)
        if counted:
            self._fuse.step()
        return appended
