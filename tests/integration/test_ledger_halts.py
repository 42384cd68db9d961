"""When the ledger stands still and calls for a person: another log, wrong books, too many dead letters in a row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from migrations.topics import ensure_topics
from services.ledger.store import LedgerStore
from services.runtime import kafka
from services.runtime.kafka import Appended, DeliveryUnknown, Message, Record
from tests.conftest import TEST_PARTITIONS
from tests.integration.ledger_world import (
    HOME,
    PATIENCE_S,
    Fuse,
    FusedProducer,
    World,
    batches_of,
    coupon_at,
    create,
    eventually,
    garbage,
    halted,
    issue,
)


async def recreate(world: World, *messages: Message) -> None:
    """The line's topic as another one of the same name."""
    admin = AIOKafkaAdminClient(bootstrap_servers=world.stack.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([world.topics.line])

        async def gone() -> bool:
            return world.topics.line not in await admin.list_topics()

        await eventually(gone)
    finally:
        await admin.close()
    await ensure_topics(
        world.stack.kafka_bootstrap,
        world.topics,
        partitions=TEST_PARTITIONS,
        replication=1,
        deadline=time.monotonic() + PATIENCE_S,
    )
    await world.producer.stop()  # it knows the old topic's leader epochs
    if messages:
        await world.put(*messages)


async def put_in_transactions(world: World, *messages: Message) -> None:
    """Each record is followed by an offset without one."""
    producer = AIOKafkaProducer(bootstrap_servers=world.stack.kafka_bootstrap, transactional_id=world.topics.prefix)
    await producer.start()
    try:
        for message in messages:
            async with producer.transaction():
                await producer.send(
                    world.topics.line, message.value, message.key, partition=HOME, headers=list(message.headers)
                )
    finally:
        await producer.stop()


async def delete_before(world: World, offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=world.stack.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(world.topics.line, HOME): RecordsToDelete(offset)})
    finally:
        await admin.close()


async def why_it_halts(world: World, **ledger: Any) -> str:
    """What a fresh ledger halts for; that it writes nothing before."""
    before = await world.settled_rows()
    one = world.ledger(**ledger)
    with structlog.testing.capture_logs() as logs:
        one.log = structlog.get_logger()
        async with world.running(one):
            why = await halted(one)
    assert [(entry["event"], entry["log_level"]) for entry in logs][-1] == ("partition_halted", "critical")
    assert await world.settled_rows() == before
    assert await world.dead_letters() == []
    return why


# The log must be the log


async def test_a_recreated_topic_with_fewer_records_halts(world: World) -> None:
    await world.settle(create(1), issue("a"), issue("b"))
    await recreate(world, create(1))
    assert "past the log's end 1" in await why_it_halts(world)


async def test_a_recreated_topic_with_other_records_halts(world: World) -> None:
    await world.settle(create(1), issue("a"))
    await recreate(world, create(1), issue("a"), issue("b"))
    assert "the log is another one" in await why_it_halts(world)


@pytest.mark.parametrize("column", ["last_timestamp", "last_checksum"])
async def test_a_last_record_that_differs_halts(world: World, column: str) -> None:
    await world.settle(create(1), issue("a"))
    await world.put(issue("b"))
    await world.execute(f"UPDATE ledger_progress SET {column} = {column} + 1")
    assert "the record at 1 is not the one that was settled" in await why_it_halts(world)


async def test_a_log_that_begins_after_the_position_halts(world: World) -> None:
    await world.settle(create(1))
    await world.put(issue("a"), issue("b"))
    await delete_before(world, 2)
    assert "the log begins at 2" in await why_it_halts(world)


async def test_a_log_that_begins_after_what_is_to_be_published_halts(world: World) -> None:
    await world.settle(create(1), issue("a"), issue("b"))
    await world.execute("UPDATE ledger_progress SET published_offset = 0")
    await delete_before(world, 2)
    assert "the log begins at 2" in await why_it_halts(world)


async def test_an_empty_topic_after_its_beginning_was_deleted_halts_a_new_database(world: World) -> None:
    await world.put(create(1), issue("a"))
    await delete_before(world, 2)
    assert "the log begins at 2" in await why_it_halts(world)


@pytest.mark.parametrize("count", [1, 4])
async def test_another_log_is_noticed_while_the_ledger_runs(world: World, count: int) -> None:
    ledger = world.ledger()
    async with world.running(ledger):
        await world.put(create(1), issue("a"))
        await world.rest()
        before = await world.settled_rows()
        await recreate(world, create(1), *(issue(f"x{n}") for n in range(1, count)))
        why = await halted(ledger)
    assert "past the log's end" in why or "the log is another one" in why
    assert await world.settled_rows() == before


async def test_a_dlq_that_is_another_topic_halts(world: World) -> None:
    await world.settle(create(1))
    await world.execute("UPDATE ledger_progress SET dlq_offset = 7")
    assert "the DLQ has 0 to 0, not the position 7" in await why_it_halts(world)


async def test_offsets_without_records_are_no_gap(world: World) -> None:
    """A transaction's marker takes an offset of its own."""
    await put_in_transactions(world, create(2), issue("a"), issue("b"))
    for _ in range(2):
        ledger = world.ledger()
        async with world.running(ledger):

            async def settled() -> bool:
                row = await world.progress()
                return row is not None and row["published_offset"] == 5

            await eventually(settled)
        assert ledger.halted is None
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "ISSUED 2"]
    rows = await world.fetch("SELECT ticket_offset FROM user_coupon ORDER BY ticket_offset")
    assert [row["ticket_offset"] for row in rows] == [2, 4]


async def test_a_last_record_that_is_missing_halts(world: World) -> None:
    await world.settle(create(1), issue("a"))
    await recreate(world)
    await put_in_transactions(world, create(1), issue("a"))  # nothing is at offset 1
    assert "the record at 1 is not the one that was settled" in await why_it_halts(world)


# Books


async def test_wrong_books_are_doubted_once_then_halt_the_partition_alone(world: World) -> None:
    other = coupon_at(HOME + 1)
    await world.settle(create(5), issue("a"), issue("b"))
    # As if a grant had been undone by hand: the next sequence is taken.
    await world.execute("UPDATE coupon SET issued_count = 1, remaining = 4")
    ledger, neighbour = world.ledger(), world.ledger(HOME + 1)
    with structlog.testing.capture_logs() as logs:
        ledger.log = structlog.get_logger()
        async with world.running(ledger, neighbour):
            await world.put(issue("c"), garbage())
            why = await halted(ledger)
            await world.put(create(1, other), issue("a", other), partition=HOME + 1)
            await world.rest(HOME + 1)
            assert neighbour.halted is None
    assert "user_coupon_sequence_key" in why
    events = [entry["event"] for entry in logs]
    assert events.count("books_doubted") == events.count("partition_halted") == 1
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "ISSUED 2"]
    assert await world.verdicts(HOME + 1) == ["APPLIED", "ISSUED 1"]
    assert await world.dead_letters() == []
    assert (await world.progress())["next_offset"] == 3
    # Once the books are right again, a restart goes on.
    await world.execute("UPDATE coupon SET issued_count = 2, remaining = 3 WHERE topic_partition = 1")
    await world.settle()
    assert (await world.verdicts())[3:] == ["ISSUED 3", "PARKED UNDECODABLE"]
    await world.audit()


async def test_a_clash_that_is_gone_at_the_second_look_does_not_halt(world: World) -> None:
    class Mending(LedgerStore):
        async def settle(self, *arguments: Any) -> Any:
            try:
                return await super().settle(*arguments)
            finally:
                await world.execute("UPDATE coupon SET issued_count = 1, remaining = 4 WHERE remaining = 5")

    await world.settle(create(5), issue("a"))
    await world.execute("UPDATE coupon SET issued_count = 0, remaining = 5")
    ledger = world.ledger(store=Mending(world.engine, world.topics.line, TEST_PARTITIONS))
    async with world.running(ledger):
        await world.put(issue("b"))
        await world.rest()
    assert ledger.halted is None
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "ISSUED 2"]


async def test_what_is_committed_is_published_though_the_rest_of_its_batch_halts(world: World) -> None:
    await world.execute("ALTER TABLE coupon ADD CONSTRAINT few CHECK (issued_count < 2)")
    odd = create(1, coupon_at(HOME, 1), name="\x00")
    # PostgreSQL refuses the whole; the left half is settled in parts, and the books are wrong in the right one.
    await world.put(create(5), issue("a"), odd, issue("b"), issue("c"), issue("d"))
    ledger = world.ledger()
    async with world.running(ledger):
        assert "few" in await halted(ledger)
        await eventually(lambda: world.is_at_rest(HOME, 3))
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "PARKED UNSTORABLE"]
    assert len(await world.outcomes()) == 3
    assert await world.dead_letter_offsets() == [2]
    await world.execute("ALTER TABLE coupon DROP CONSTRAINT few")
    await world.settle()
    await world.audit()


async def test_a_verdict_that_is_missing_where_it_must_be_published_halts(world: World) -> None:
    await world.settle(create(5), issue("a"), issue("b"))
    await world.execute(
        "DELETE FROM user_coupon WHERE user_id = 'a'", "UPDATE ledger_progress SET published_offset = 0"
    )
    why = await why_it_halts(world)
    assert "published_offset is 0" in why
    assert "without a verdict: [1]" in why


# Too many dead letters


async def test_too_many_dead_letters_in_a_row_pause_the_partition_exactly_there(world: World) -> None:
    await world.put(create(1), *(garbage(n) for n in range(2)), issue("a"), *(garbage(n) for n in range(5)), issue("b"))
    ledger = world.ledger(run_max=3)
    async with world.running(ledger):
        assert "FIRSTCOME_DEAD_LETTER_RUN_MAX=0" in await halted(ledger)
    assert (await world.progress())["next_offset"] == 7
    assert await world.dead_letter_offsets() == [1, 2, 4, 5, 6]
    await world.settle(run_max=0)
    assert (await world.verdicts())[-3:] == ["PARKED UNDECODABLE"] * 2 + ["SOLD_OUT"]
    assert await world.dead_letter_offsets() == [1, 2, 4, 5, 6, 7, 8]
    await world.audit()


async def test_a_partition_that_moves_takes_its_run_along(world: World) -> None:
    """A rebalance must not let another thousand through: each ledger that takes over parks one more, and halts."""
    await world.put(create(1), *(garbage(n) for n in range(9)), issue("a"))
    for settled in (5, 6, 7):
        ledger = world.ledger(run_max=4)
        async with world.running(ledger):
            await halted(ledger)
        assert len(await world.verdicts()) == settled
    # What was let through on purpose does not halt who comes after.
    await world.settle(run_max=0)
    await world.settle(issue("b"), garbage(9), garbage(10), run_max=4)
    assert (await world.verdicts())[-4:] == ["ISSUED 1", "SOLD_OUT", *["PARKED UNDECODABLE"] * 2]
    await world.audit()


@pytest.mark.parametrize("size", [1, 2, 4, 9])
async def test_the_run_is_counted_across_batches(world: World, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    batches_of(size, monkeypatch)
    await world.put(create(1), *(garbage(n) for n in range(9)))
    ledger = world.ledger(run_max=4)
    async with world.running(ledger):
        await halted(ledger)
    assert await world.verdicts() == ["APPLIED", *["PARKED UNDECODABLE"] * 4]


async def test_dead_letters_that_are_known_do_not_count(world: World) -> None:
    await world.settle(create(1))
    await world.back_up()
    await world.settle(*(garbage(n) for n in range(6)), issue("a"), run_max=0)
    await world.restore()
    ledger = world.ledger(run_max=3)
    async with world.running(ledger):
        await world.rest()
    assert ledger.halted is None
    assert await world.dead_letter_offsets() == list(range(1, 7))
    await world.audit()


async def test_a_run_of_records_that_postgresql_refuses_pauses_exactly_there_and_skips_nothing(world: World) -> None:
    odd = coupon_at(HOME, 1)
    refused = [create(1, odd, name=f"\x00{n}") for n in range(3)]
    await world.put(create(5), refused[0], garbage(), refused[1], refused[2], issue("a"), issue("b"), issue("c"))
    ledger = world.ledger(run_max=3)
    async with world.running(ledger):
        await halted(ledger)
    assert (await world.progress())["next_offset"] == 4
    assert len(await world.verdicts()) == 4
    await world.settle(run_max=0)
    assert (await world.verdicts())[4:] == ["PARKED UNSTORABLE", "ISSUED 1", "ISSUED 2", "ISSUED 3"]
    await world.audit()


async def test_the_pause_holds_though_the_publication_before_it_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(3, monkeypatch)
    settled = asyncio.Event()

    class Failing(FusedProducer):
        """Does not publish the first batch before the second is settled, and fails then."""

        failed = False

        async def append(self, topic: str, partition: int, messages: Iterable[Message]) -> list[Appended]:
            if not self.failed:
                await settled.wait()
                self.failed = True
                raise DeliveryUnknown("told to fail")
            return await super().append(topic, partition, messages)

    class Telling(LedgerStore):
        async def settle(self, before: Any, *rest: Any) -> Any:
            done = await super().settle(before, *rest)
            if before.next_offset > 0:
                settled.set()
            return done

    await world.put(create(5), issue("a"), issue("b"), *(garbage(n) for n in range(3)), garbage(4), issue("c"))
    store = Telling(world.engine, world.topics.line, TEST_PARTITIONS)
    ledger = world.ledger(run_max=3, store=store, producer=Failing(world.producer, Fuse(1_000)))
    async with world.running(ledger):
        await halted(ledger)
        await eventually(lambda: world.is_at_rest(HOME, 6))  # that publication is made up for


async def test_a_dead_letter_message_that_no_table_takes_does_not_halt(world: World) -> None:
    """The DLQ may hold what no ledger has written."""
    await world.put(create(1), garbage())
    forged: list[tuple[str, bytes | None]] = [
        (kafka.DLQ_ORIGINAL_TOPIC, world.topics.line.encode()),
        (kafka.DLQ_ORIGINAL_PARTITION, str(HOME).encode()),
        (kafka.DLQ_ORIGINAL_OFFSET, b"1"),
        (kafka.DLQ_ORIGINAL_TIMESTAMP, b"0"),
        (kafka.DLQ_REASON, b"INTERNAL"),
        (kafka.DLQ_ERROR_MESSAGE, b"\x00odd"),
    ]
    await world.producer.append(world.topics.dlq, HOME, [Message(b"k", b"v", forged)])
    ledger = world.ledger()
    async with world.running(ledger):
        await world.rest()
    assert ledger.halted is None
    assert await world.verdicts() == ["APPLIED", "PARKED INTERNAL"]


def test_a_record_is_known_by_its_key_value_and_headers() -> None:
    plain = Record(1, 2, b"k", b"v", (("h", b"1"),))
    others = [
        plain._replace(key=None),
        plain._replace(key=b"kv", value=b""),
        plain._replace(value=b"w"),
        plain._replace(headers=()),
        plain._replace(headers=(("h", None),)),
        plain._replace(headers=(("h1", b""),)),
    ]
    assert len({one.checksum() for one in [plain, *others]}) == 1 + len(others)
