"""The dlq on a real broker and database; where it says so, with a real ledger settling the line."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from coupon.v1 import events_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.dlq.__main__ import RETRY_AGE_US_MAX
from services.dlq.__main__ import serve as serve_dlq
from services.dlq.consumer import PartitionFiler
from services.dlq.operator_store import LetterFilter, OperatorStore, retry_many
from services.dlq.rows import FIRST
from services.dlq.store import DeadLetterStore, Due
from services.domain.dead_letter import DeadLetterState, RetryPolicy, postpone
from services.domain.model import ParkReason, Ticket
from services.domain.retry import Backoff
from services.ledger.__main__ import serve as serve_ledger
from services.runtime import kafka, wire
from services.runtime.config import Common, DlqConfig, LedgerConfig
from services.runtime.kafka import Message, PartitionReader, Record, RecordProducer, Topics
from services.runtime.postgres import connection, create_engine
from stack import ServiceProcess, Stack, free_port
from tests.conftest import TEST_PARTITIONS

REDRIVES = int(os.environ.get("FIRSTCOME_TEST_REDRIVES", "2000"))
PATIENCE_S = 30.0 + REDRIVES / 200
KILLS = int(os.environ.get("FIRSTCOME_TEST_KILLS", "2"))
COUPON = "spring"
HOME = kafka.home_partition(COUPON.encode(), TEST_PARTITIONS)
ELSEWHERE = (HOME + 1) % TEST_PARTITIONS
TRACE = "0af7651916cd43dd8448eb211c80319c"
Headers = tuple[tuple[str, bytes | None], ...]


class Bench:
    """One system's topics and tables, and the services that a test runs on them."""

    def __init__(self, stack: Stack, dsn: str, topics: Topics) -> None:
        self.stack, self.dsn, self.topics = stack, dsn, topics
        self.producer = RecordProducer(stack.kafka_bootstrap, "test")

    async def put(self, topic: str, partition: int, *messages: Message) -> list[Ticket]:
        listed = [Message(one.key, one.value, list(one.headers)) for one in messages]
        appended = await self.producer.append(topic, partition, listed)
        return [Ticket(partition, one.offset) for one in appended]

    async def fail(self, ticket: Ticket, record: Message, reason: ParkReason, message: str = "boom") -> None:
        """Do as the ledger does with a record that it parks."""
        await self.put(self.topics.dlq, ticket.partition, self.dead_letter(ticket, record, reason, message))

    def dead_letter(
        self, ticket: Ticket, record: Message, reason: ParkReason = ParkReason.INTERNAL, message: str = "boom"
    ) -> Message:
        headers = tuple(record.headers)
        failed = Record(ticket.offset, time.time_ns() // 1_000_000, record.key, record.value, headers)
        return wire.dead_letter_message(self.topics.line, ticket.partition, failed, reason, message)

    async def records(self, topic: str, partition: int) -> list[Record]:
        reader = PartitionReader(self.stack.kafka_bootstrap, "test", topic, partition)
        try:
            begin, end = await reader.bounds()
            return [record async for records in reader.read(begin, end) for record in records]
        finally:
            await reader.stop()

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def letters(self) -> Mapping[Ticket, Any]:
        rows = await self.fetch("SELECT * FROM dead_letter ORDER BY ticket_partition, ticket_offset")
        return {Ticket(row["ticket_partition"], row["ticket_offset"]): row for row in rows}

    async def states(self) -> list[str]:
        return [row["state"] for row in (await self.letters()).values()]

    async def actions(self) -> list[str]:
        return [row["action"] for row in await self.fetch("SELECT action FROM dead_letter_action ORDER BY id")]

    async def dlq_is_read(self, partition: int) -> None:
        reader = PartitionReader(self.stack.kafka_bootstrap, "test", self.topics.dlq, partition)
        _, end = await reader.bounds()
        await reader.stop()

        async def read() -> bool:
            rows = await self.fetch(
                "SELECT next_offset FROM ledger_progress WHERE topic = $1 AND partition = $2",
                self.topics.dlq,
                partition,
            )
            return bool(rows) and rows[0]["next_offset"] == end

        await eventually(read)

    @contextlib.asynccontextmanager
    async def dlq(
        self, *, attempts_max: int = 5, base_ms: int = 1, cap_ms: int = 100, port: int = 0
    ) -> AsyncIterator[None]:
        config = DlqConfig(self._common(), f"127.0.0.1:{port}", attempts_max, base_ms, cap_ms)
        async with running(lambda stopping: serve_dlq(config, stopping)):
            yield

    @contextlib.asynccontextmanager
    async def ledger(self) -> AsyncIterator[None]:
        config = LedgerConfig(self._common(), dead_letter_run_max=0)
        async with running(lambda stopping: serve_ledger(config, stopping)):
            yield

    @contextlib.asynccontextmanager
    async def filer(self, partition: int, ahead_s: int = 0) -> AsyncIterator[PartitionFiler]:
        """One partition's filer alone, with a clock that stands still, ahead of the broker's."""
        now_us = time.time_ns() // 1_000 + ahead_s * 1_000_000
        engine = create_engine(self.dsn, "test", pool_size=2)
        made = PartitionFiler(
            partition,
            self.topics,
            TEST_PARTITIONS,
            PartitionReader(self.stack.kafka_bootstrap, "test", self.topics.dlq, partition),
            DeadLetterStore(engine, self.topics.dlq),
            RetryPolicy(5, Backoff(base_s=3_600, cap_s=3_600), RETRY_AGE_US_MAX),
            lambda: now_us,
        )
        task = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            made.stop()
            await asyncio.wait_for(task, PATIENCE_S)
            await engine.dispose()

    def _common(self) -> Common:
        return Common(
            kafka_bootstrap=self.stack.kafka_bootstrap,
            postgres_dsn=self.dsn,
            topic_prefix=self.topics.prefix,
            health_listen="127.0.0.1:0",
            log_level="INFO",
            pool_size=4,
            startup_timeout_s=30,
            drain_timeout_s=15,
        )


@contextlib.asynccontextmanager
async def running(serve: Callable[[asyncio.Event], Awaitable[None]]) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    task = asyncio.ensure_future(serve(stopping))
    try:
        yield
    finally:
        stopping.set()
        await asyncio.wait_for(task, PATIENCE_S)


@pytest.fixture
async def bench(stack: Stack, database: str, topics: Topics) -> AsyncIterator[Bench]:
    made = Bench(stack, database, topics)
    yield made
    await made.producer.stop()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < deadline, "not within the time"
        await asyncio.sleep(0.05)


async def states_become(bench: Bench, *states: str) -> None:
    async def there() -> bool:
        return await bench.states() == list(states)

    await eventually(there)


def headers_of(ce_type: str) -> Headers:
    traceparent = f"00-{TRACE}-b7ad6b7169203331-01".encode()
    return tuple(wire.request_headers(ce_type, "test", b"2026-01-01T00:00:00Z", traceparent))


def issue(user_id: str, coupon_id: str = COUPON) -> Message:
    event = events_pb2.CouponIssueRequestedEvent(
        coupon_id=coupon_id, user_id=user_id, request_id=str(uuid.uuid5(uuid.NAMESPACE_OID, user_id))
    )
    return Message(coupon_id.encode(), event.SerializeToString(), headers_of(wire.ISSUE_REQUESTED))


def creation(total: int) -> Message:
    event = events_pb2.CouponChangeRequestedEvent(
        coupon_id=COUPON,
        request_id=str(uuid.uuid4()),
        action=events_pb2.CouponChangeRequestedEvent.CREATE,
        caller="test",
    )
    event.coupon.total_quantity = total
    return Message(COUPON.encode(), event.SerializeToString(), headers_of(wire.CHANGE_REQUESTED))


def redrive_of(record: Record) -> str | None:
    value = record.header(kafka.REDRIVE_OF)
    return None if value is None else value.decode()


def stored_headers(row: Any) -> Headers:
    return tuple(
        (name, None if value is None else base64.b64decode(value)) for name, value in json.loads(row["headers"])
    )


ODD = (
    Message(None, b"", ()),
    Message(b"", None, (("ce_type", None),)),
    Message(b"\x00k\xff", b"\x00\xff" * 1024, (("na\x00me", b"\x00\xff"), ("twice", b"1"), ("twice", b"2"))),
    Message(b"k" * 128, b"\x00" * (1024 * 1024 - 4096), headers_of(wire.ISSUE_REQUESTED)),
    issue("ann\x00"),
    Message(b"other", issue("ann").value, headers_of(wire.ISSUE_REQUESTED)),
)


async def test_every_reason_is_filed_with_its_bytes_unchanged(bench: Bench) -> None:
    cases = [(reason, record) for reason in ParkReason for record in ODD]
    partition = HOME
    for offset, (reason, record) in enumerate(cases):
        await bench.fail(Ticket(partition, offset), record, reason, f"{reason} \x00 said so")
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await bench.dlq_is_read(partition)
    letters = await bench.letters()
    assert len(letters) == len(cases)
    for offset, (reason, record) in enumerate(cases):
        row = letters[Ticket(partition, offset)]
        assert (row["key"], row["value"]) == (record.key, record.value)
        assert stored_headers(row) == tuple(record.headers)
        assert (row["reason"], row["attempt_count"]) == (reason, 1)
        assert row["error_message"] == f"{reason} \ufffd said so"
        # What the line would not take again, for it is too large, waits for an operator.
        retrying = reason is ParkReason.INTERNAL and len(record.value or b"") < 65_536
        assert row["state"] == ("RETRYING" if retrying else "PARKED")
        assert (row["next_attempt_at"] is not None) == retrying
    mismatched = letters[Ticket(partition, len(ODD) - 1)]
    assert (mismatched["coupon_id"], mismatched["user_id"], mismatched["trace_id"]) == (COUPON, "ann", TRACE)
    bad = letters[Ticket(partition, len(ODD) - 2)]
    assert (bad["coupon_id"], bad["user_id"]) == (COUPON, None)


async def test_garbage_on_the_topic_is_skipped(bench: Bench) -> None:
    good = bench.dead_letter(Ticket(0, 7), issue("ann"), ParkReason.BAD_ID)

    def changed(name: str, value: bytes | None) -> Message:
        return Message(good.key, good.value, [(n, value if n == name else v) for n, v in good.headers])

    garbage = [
        Message(None, None, ()),
        Message(b"\xff", b"\x00", (("dlq-reason", b"\xff"),)),
        Message(good.key, good.value, good.headers[:-3]),
        changed(kafka.DLQ_ORIGINAL_TOPIC, b"another.line"),
        changed(kafka.DLQ_ORIGINAL_PARTITION, b"1"),  # its dead letters are in another partition
        changed(kafka.DLQ_ORIGINAL_OFFSET, b"9" * 40),
        changed(kafka.DLQ_ORIGINAL_TIMESTAMP, b"soon"),
        changed(kafka.DLQ_REASON, b"BORED"),
    ]
    far = Message(b"k", b"v", changed(kafka.DLQ_ORIGINAL_TIMESTAMP, b"9" * 30).headers)
    await bench.put(bench.topics.dlq, 0, *garbage, far)
    async with bench.dlq():
        await bench.dlq_is_read(0)
    assert list(await bench.letters()) == [Ticket(0, 7)]


async def test_a_failure_told_again_changes_nothing(bench: Bench) -> None:
    ticket, record = Ticket(2, 5), issue("ann")
    told = bench.dead_letter(ticket, record)
    await bench.put(bench.topics.dlq, 2, told, told)
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await bench.dlq_is_read(2)
        before = await bench.letters()
        await bench.put(bench.topics.dlq, 2, told)
        await bench.dlq_is_read(2)
        assert await bench.letters() == before
        assert (before[ticket]["state"], before[ticket]["attempt_count"]) == ("RETRYING", 1)
        assert await bench.actions() == ["FAILED", "RETRYING"]


@pytest.mark.parametrize("state", ["DISCARDED", "RESOLVED", "PARKED"])
async def test_a_late_failure_of_a_redrive_undoes_no_decision(bench: Bench, state: str) -> None:
    ticket, record = Ticket(2, 5), issue("ann")
    await bench.fail(ticket, record, ParkReason.INTERNAL)
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await bench.dlq_is_read(2)
        await bench.fetch("UPDATE dead_letter SET state = $1, next_attempt_at = NULL", state)
        again = wire.redrive_message(ticket, 1, 1, record.key, record.value, record.headers)
        await bench.fail(Ticket(2, 9), again, ParkReason.INTERNAL)
        await bench.fail(ticket, record, ParkReason.INTERNAL)
        await bench.dlq_is_read(2)
        assert await bench.states() == [state]


@pytest.mark.parametrize(("age_s", "state"), [(599, "RETRYING"), (601, "PARKED")])
async def test_an_old_dead_letter_is_parked_not_retried(bench: Bench, age_s: int, state: str) -> None:
    await bench.fail(Ticket(0, 1), issue("ann"), ParkReason.INTERNAL)
    async with bench.filer(0, age_s):
        await states_become(bench, state)


async def test_a_passing_fault_is_redriven_and_resolved_by_the_ledgers_verdict(bench: Bench) -> None:
    _, ann, bob = await bench.put(bench.topics.line, HOME, creation(1), issue("ann"), issue("bob"))
    # Found on the DLQ before the ledger comes to it, so it settles as PARKED, and its place is bob's.
    await bench.fail(ann, issue("ann"), ParkReason.INTERNAL)
    await bench.put(bench.topics.line, HOME, issue("cem"))
    async with bench.ledger(), bench.dlq():
        await states_become(bench, "RESOLVED")
    (row,) = (await bench.letters()).values()
    redrives = [r for r in await bench.records(bench.topics.line, HOME) if redrive_of(r) == str(ann)]
    assert [row["redrive_ticket"]] == [str(Ticket(HOME, r.offset)) for r in redrives]
    winners = await bench.fetch("SELECT user_id, ticket_offset, redrive_of FROM user_coupon")
    assert [tuple(winner) for winner in winners] == [("bob", bob.offset, None)]
    (refused,) = await bench.fetch("SELECT reason FROM rejected_issue WHERE redrive_of = $1", str(ann))
    assert refused["reason"] == "SOLD_OUT"
    assert await bench.actions() == ["FAILED", "RETRYING", "REDRIVEN", "RESOLVED"]


async def test_a_redriven_request_is_granted_from_the_stock_that_is_left(bench: Bench) -> None:
    _, ann = await bench.put(bench.topics.line, HOME, creation(5), issue("ann"))
    await bench.fail(ann, issue("ann"), ParkReason.INTERNAL)
    async with bench.ledger(), bench.dlq():
        await states_become(bench, "RESOLVED")
    (winner,) = await bench.fetch("SELECT user_id, redrive_of FROM user_coupon")
    assert tuple(winner) == ("ann", str(ann))


async def test_a_redriven_change_is_resolved(bench: Bench) -> None:
    change = creation(3)
    (ticket,) = await bench.put(bench.topics.line, HOME, change)
    await bench.fail(ticket, change, ParkReason.INTERNAL)
    async with bench.ledger(), bench.dlq():
        await states_become(bench, "RESOLVED")
    (coupon,) = await bench.fetch("SELECT total FROM coupon")
    assert coupon["total"] == 3


async def test_what_keeps_failing_is_parked_after_the_last_attempt(bench: Bench) -> None:
    ticket, record = Ticket(ELSEWHERE, 3), issue("ann")
    await bench.fail(ticket, record, ParkReason.INTERNAL)
    async with bench.dlq(attempts_max=3):
        for attempt in (1, 2):
            redrives: list[Record] = []

            async def published(redrives: list[Record] = redrives, attempt: int = attempt) -> bool:
                # Into the coupon's own partition, wherever the record was.
                redrives[:] = await bench.records(bench.topics.line, HOME)
                return len(redrives) == attempt

            await eventually(published)
            again = redrives[-1]
            assert (again.key, again.value, redrive_of(again)) == (record.key, record.value, str(ticket))
            assert again.header(kafka.REDRIVE_ATTEMPT) == str(attempt).encode()
            failed = Message(again.key, again.value, again.headers)
            await bench.fail(Ticket(HOME, again.offset), failed, ParkReason.INTERNAL)
        await states_become(bench, "PARKED")
    row = (await bench.letters())[ticket]
    assert (row["attempt_count"], stored_headers(row)) == (3, tuple(record.headers))
    assert await bench.actions() == ["FAILED", "RETRYING", "REDRIVEN"] * 2 + ["FAILED", "PARKED"]


async def test_a_redrives_failure_whose_dead_letter_is_missing_is_filed_under_the_original(bench: Bench) -> None:
    ticket, record = Ticket(1, 5), issue("ann")
    again = wire.redrive_message(ticket, 1_700_000_000_000, 1, record.key, record.value, record.headers)
    await bench.fail(Ticket(HOME, 9), again, ParkReason.UNSTORABLE)
    async with bench.dlq():
        await bench.dlq_is_read(HOME)
        row = (await bench.letters())[ticket]
        assert (row["state"], row["redrive_ticket"], stored_headers(row)) == (
            "PARKED",
            str(Ticket(HOME, 9)),
            tuple(record.headers),
        )
        assert row["record_time"].timestamp() == 1_700_000_000
        original = Message(b"as it was", record.value, record.headers)
        await bench.fail(ticket, original, ParkReason.KEY_MISMATCH)
        await bench.dlq_is_read(1)
    row = (await bench.letters())[ticket]
    assert (row["key"], row["state"], row["attempt_count"]) == (b"as it was", "PARKED", 2)


async def test_two_replicas_publish_each_redrive_once(bench: Bench) -> None:
    count = 600
    dead = [bench.dead_letter(Ticket(p, i), issue(f"u{p}-{i}")) for p in range(TEST_PARTITIONS) for i in range(count)]
    for partition in range(TEST_PARTITIONS):
        await bench.put(bench.topics.dlq, partition, *dead[partition * count : (partition + 1) * count])
    async with bench.dlq(), bench.dlq():

        async def all_redriven() -> bool:
            rows = await bench.fetch("SELECT count(*) FROM dead_letter WHERE state = 'REDRIVEN'")
            return bool(rows[0]["count"] == len(dead))

        await eventually(all_redriven)
    found = [redrive_of(record) for record in await bench.records(bench.topics.line, HOME)]
    assert len(found) == len(set(found)) == len(dead)


async def test_killed_again_and_again_it_loses_nothing_and_nobody_wins_twice(bench: Bench, tmp_path: Path) -> None:
    users = [f"u{i}" for i in range(REDRIVES)]
    requests = [issue(user) for user in users]
    tickets = (await bench.put(bench.topics.line, HOME, creation(len(users)), *requests))[1:]
    dead = [bench.dead_letter(ticket, request) for ticket, request in zip(tickets, requests, strict=True)]
    await bench.put(bench.topics.dlq, HOME, *dead)
    port = free_port()
    env = {
        "FIRSTCOME_KAFKA_BOOTSTRAP": bench.stack.kafka_bootstrap,
        "FIRSTCOME_POSTGRES_DSN": bench.dsn,
        "FIRSTCOME_TOPIC_PREFIX": bench.topics.prefix,
        "FIRSTCOME_AUTH": "off",
        "FIRSTCOME_LISTEN": f"127.0.0.1:{free_port()}",
        "FIRSTCOME_HEALTH_LISTEN": f"127.0.0.1:{port}",
        "FIRSTCOME_METRICS_LISTEN": "off",
        "FIRSTCOME_RETRY_BACKOFF_BASE_MS": "1",
    }
    service = ServiceProcess("dlq", env, log_path=tmp_path / "dlq.log", health_port=port)

    async def counted(states: Sequence[str], at_least: int) -> bool:
        rows = await bench.fetch("SELECT count(*) FROM dead_letter WHERE state = ANY($1)", list(states))
        return bool(rows[0]["count"] >= at_least)

    async with bench.ledger():
        try:
            # Once while it files them, then again and again in the middle of redriving.
            places = [
                ("RETRYING", 1),
                *(("REDRIVEN", len(users) * kill // (KILLS + 1)) for kill in range(1, KILLS + 1)),
            ]
            for state, at_least in places:
                service.start()
                reached = (state, "REDRIVEN", "RESOLVED")
                await eventually(lambda reached=reached, at_least=at_least: counted(reached, at_least))  # type: ignore[misc]
                service.kill()
                await eventually(lambda: asyncio.sleep(0, not service.running))
            service.start()
            await eventually(lambda: counted(["RESOLVED"], len(users)))
        finally:
            ended_by_itself = await asyncio.to_thread(service.stop)
    assert ended_by_itself
    won = await bench.fetch("SELECT user_id, redrive_of FROM user_coupon")
    assert {(row["user_id"], row["redrive_of"]) for row in won} == {
        (user, str(ticket)) for user, ticket in zip(users, tickets, strict=True)
    }
    (coupon,) = await bench.fetch("SELECT remaining, issued_count FROM coupon")
    assert tuple(coupon) == (0, len(users))
    redrives = await bench.records(bench.topics.line, HOME)
    print(
        f"{len(users)} redriven through {KILLS + 1} kills by {sum(redrive_of(r) is not None for r in redrives)} records"
    )


async def test_a_crash_between_publishing_and_marking_publishes_the_very_same_record_again(bench: Bench) -> None:
    await bench.fail(Ticket(HOME, 3), issue("ann"), ParkReason.INTERNAL)
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await bench.dlq_is_read(HOME)
    engine = create_engine(bench.dsn, "test", pool_size=1)
    store = DeadLetterStore(engine, bench.topics.dlq)
    far_us = (int(time.time()) + 7_200) * 1_000_000

    async def publish_and_die(due: Sequence[Due]) -> Mapping[Ticket, Ticket]:
        (one,) = due
        content = one.content
        await bench.put(
            bench.topics.line,
            HOME,
            wire.redrive_message(
                one.letter.original, content.record_us // 1000, 1, content.key, content.value, content.headers
            ),
        )
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.redrive_due(far_us, 10, publish_and_die, lambda letter: letter)
    await engine.dispose()
    # Until its redrive is noted it can't be corrected: the line may have it already.
    ((state, publishing),) = [(row["state"], row["publishing"]) for row in (await bench.letters()).values()]
    assert (state, publishing) == ("RETRYING", True)
    await bench.fetch("UPDATE dead_letter SET next_attempt_at = now()")
    async with bench.dlq():
        await states_become(bench, "REDRIVEN")
    assert [row["publishing"] for row in (await bench.letters()).values()] == [False]
    first, second = await bench.records(bench.topics.line, HOME)
    assert (first.key, first.value, first.headers) == (second.key, second.value, second.headers)


async def test_what_could_not_be_published_is_tried_later(bench: Bench) -> None:
    await bench.fail(Ticket(HOME, 3), issue("ann"), ParkReason.INTERNAL)
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await bench.dlq_is_read(HOME)
    engine = create_engine(bench.dsn, "test", pool_size=1)
    store = DeadLetterStore(engine, bench.topics.dlq)
    later_us = (int(time.time()) + 7_200) * 1_000_000

    async def nothing(due: Sequence[Due]) -> Mapping[Ticket, Ticket]:
        return {}

    backoff = Backoff(base_s=10, cap_s=10)
    postponed = store.redrive_due(later_us, 10, nothing, lambda x: postpone(x, backoff, now_us=later_us, random01=1))
    assert await postponed == 1
    await engine.dispose()
    (row,) = (await bench.letters()).values()
    assert (row["state"], row["attempt_count"]) == ("RETRYING", 1)
    assert row["next_attempt_at"].timestamp() == later_us / 1_000_000 + 10


async def test_after_a_restore_nothing_settled_or_forgotten_is_redriven(bench: Bench) -> None:
    for offset, reason in enumerate((ParkReason.BAD_ID, ParkReason.INTERNAL, ParkReason.INTERNAL, ParkReason.EMPTY)):
        await bench.fail(Ticket(HOME, offset), issue(f"u{offset}"), reason)
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await bench.dlq_is_read(HOME)
    # The database is an older one now, and the ledger has settled again what was redriven since.
    for settled in (0, 1):
        await bench.fetch(
            "INSERT INTO rejected_issue (ticket_partition, ticket_offset, reason, redrive_of, accepted_at) "
            "VALUES ($1, $2, 'SOLD_OUT', $3, now())",
            HOME,
            20 + settled,
            f"{HOME}-{settled}",
        )
    await bench.fetch("UPDATE dead_letter SET next_attempt_at = now() WHERE ticket_offset = 1")
    await bench.fetch("UPDATE dead_letter SET next_attempt_at = now() - interval '601 s' WHERE ticket_offset = 2")
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await states_become(bench, "RESOLVED", "RESOLVED", "PARKED", "PARKED")
    assert [row["redrive_ticket"] for row in (await bench.letters()).values()] == [
        f"{HOME}-20",
        f"{HOME}-21",
        None,
        None,
    ]
    assert await bench.records(bench.topics.line, HOME) == []


async def test_many_are_retried_at_once_but_for_those_that_somebody_has_locked(bench: Bench) -> None:
    reasons = (ParkReason.BAD_ID, ParkReason.BAD_ID, ParkReason.INTERNAL, ParkReason.EMPTY, ParkReason.BAD_ID)
    for offset, reason in enumerate(reasons):
        await bench.fail(Ticket(HOME, offset), issue(f"u{offset}"), reason)
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await bench.dlq_is_read(HOME)
    engine = create_engine(bench.dsn, "test", pool_size=2)
    asked = [Ticket(HOME, offset) for offset in (4, 0, 1, 2, 77)]

    async def retried() -> list[Ticket]:
        async with connection(engine) as db, db.transaction():
            now_us = time.time_ns() // 1_000
            return await retry_many(db, asked, now_us=now_us, caller="ann", comment="fixed")

    async with connection(engine) as other, other.transaction():
        await other.execute("SELECT 1 FROM dead_letter WHERE ticket_offset = 1 FOR UPDATE")
        assert await retried() == [Ticket(HOME, 0), Ticket(HOME, 4)]
    assert await retried() == [Ticket(HOME, 1)]
    assert await retried() == []
    store = OperatorStore(engine)
    retrying = LetterFilter(
        state=DeadLetterState.RETRYING, reason=ParkReason.BAD_ID, failed_before_us=time.time_ns() // 1_000
    )
    assert [entry.letter.original.offset for entry in await store.entries(retrying, FIRST, 10)] == [0, 1, 4]
    parked = LetterFilter(state=DeadLetterState.PARKED, coupon_id=COUPON, user_id="u3", failed_after_us=1)
    assert [entry.letter.original.offset for entry in await store.entries(parked, FIRST, 10)] == [3]
    await engine.dispose()
    done = await bench.fetch("SELECT ticket_offset, action, comment FROM dead_letter_action WHERE caller = 'ann'")
    assert [tuple(row) for row in done] == [(offset, "RETRYING", "fixed") for offset in (0, 4, 1)]
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        await states_become(bench, "REDRIVEN", "REDRIVEN", "RETRYING", "PARKED", "REDRIVEN")


async def test_lost_connections_lose_nothing(bench: Bench) -> None:
    async with bench.dlq(base_ms=3_600_000, cap_ms=3_600_000):
        for offset in range(2):
            await bench.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'firstcome-dlq' "
                "AND datname = current_database()"
            )
            await bench.fail(Ticket(0, offset), issue(f"u{offset}"), ParkReason.INTERNAL)
            await bench.dlq_is_read(0)
    assert len(await bench.letters()) == 2


@pytest.mark.parametrize("fault", ["last_checksum = last_checksum + 1", "next_offset = next_offset + 9"])
async def test_it_halts_on_a_log_that_is_not_the_log(bench: Bench, fault: str) -> None:
    await bench.fail(Ticket(0, 1), issue("ann"), ParkReason.BAD_ID)
    async with bench.filer(0):
        await states_become(bench, "PARKED")
    await bench.fetch(f"UPDATE ledger_progress SET {fault} WHERE topic = $1", bench.topics.dlq)
    async with bench.filer(0) as second:
        await eventually(lambda: asyncio.sleep(0, second.halted is not None))


async def test_the_main_port_answers_health_and_reflection(bench: Bench) -> None:
    port = free_port()
    async with bench.dlq(port=port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=10)
        names = [service.name async for said in stream for service in said.list_services_response.service]
        assert "grpc.health.v1.Health" in names
