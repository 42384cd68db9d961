"""The supervised producer: a batch that expired or was refused must not wedge what comes after it."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, OutOfOrderSequenceNumber

from services.runtime.kafka import (
    Appended,
    DeliveryUnknown,
    KafkaAway,
    Message,
    PartitionReader,
    RecordProducer,
    Topics,
)
from stack import Link, Stack
from tests.conftest import TEST_PARTITIONS

SMALL, LARGE = b"small", b"x" * 5_000
LIMIT_BYTES = 1_000


@pytest.fixture
async def strict(stack: Stack, topics: Topics) -> Topics:
    """Topics whose line takes no batch larger than LIMIT_BYTES."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    limit = {"max.message.bytes": str(LIMIT_BYTES)}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topics.line, limit)])
    await admin.close()
    # The broker takes the setting over a little later.
    probe = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap)
    await probe.start()
    try:
        while True:
            await probe.send_and_wait(topics.line, LARGE, partition=TEST_PARTITIONS - 1)
    except KafkaError:
        return topics
    finally:
        await probe.stop()


def message(value: bytes) -> Message:
    return Message(b"k", value, [])


async def values(stack: Stack, topic: str, partition: int) -> dict[int, bytes | None]:
    reader = PartitionReader(stack.kafka_bootstrap, "test", topic, partition)
    try:
        begin, end = await reader.bounds()
        return {record.offset: record.value async for records in reader.read(begin, end) for record in records}
    finally:
        await reader.stop()


async def test_aiokafkas_own_producer_wedges_after_a_refused_batch(stack: Stack, strict: Topics) -> None:
    """What the supervision is for. When this fails, aiokafka has mended it."""
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap, enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(strict.line, SMALL, partition=0)
        with pytest.raises(KafkaError):
            await producer.send_and_wait(strict.line, LARGE, partition=0)
        with pytest.raises(OutOfOrderSequenceNumber):
            await producer.send_and_wait(strict.line, SMALL, partition=0)
    finally:
        await producer.stop()


async def test_after_a_refused_batch_the_next_one_goes_through(stack: Stack, strict: Topics) -> None:
    producer = RecordProducer(stack.kafka_bootstrap, "test")
    try:
        for number in range(3):
            await producer.append(strict.line, 0, [message(b"%d" % number)])
            with pytest.raises(DeliveryUnknown):
                await producer.append(strict.line, 0, [message(LARGE)])
        await producer.append(strict.line, 0, [message(SMALL)])
        assert producer.recycled_count == 3
    finally:
        await producer.stop()
    assert list((await values(stack, strict.line, 0)).values()) == [b"0", b"1", b"2", SMALL]


async def test_after_an_expired_batch_the_next_one_goes_through(stack: Stack, topics: Topics, link: Link) -> None:
    producer = RecordProducer(link.address, "test", delivery_timeout_s=2.0)
    try:
        await producer.append(topics.line, 0, [message(b"before")])
        link.silent = True
        for _ in range(2):
            with pytest.raises(KafkaAway):
                await producer.append(topics.line, 0, [message(b"lost")])
        link.heal()
        (after,) = await producer.append(topics.line, 0, [message(b"after")])
    finally:
        await producer.stop()
    kept = await values(stack, topics.line, 0)
    assert (kept[0], kept[after.offset]) == (b"before", b"after")


async def test_a_producer_that_is_replaced_under_another_partitions_appends_loses_none_that_it_acknowledged(
    stack: Stack, strict: Topics
) -> None:
    """The partitions of a ledger share one: what wedges it in one partition must do no harm in the others."""
    producer = RecordProducer(stack.kafka_bootstrap, "test")
    acknowledged: dict[int, bytes] = {}
    unknown = 0
    refusing = asyncio.Event()

    async def steady() -> None:
        nonlocal unknown
        number = 0
        while not refusing.is_set():
            value = b"%d" % number
            try:
                (where,) = await producer.append(strict.line, 1, [message(value)])
                acknowledged[where.offset] = value
            except DeliveryUnknown:
                unknown += 1
            number += 1

    async def refused() -> None:
        for _ in range(10):
            with pytest.raises(DeliveryUnknown):
                await producer.append(strict.line, 0, [message(LARGE)])
            before = len(acknowledged)
            while len(acknowledged) < before + 2:  # noqa: ASYNC110 - of the new producer
                await asyncio.sleep(0.01)
        refusing.set()

    try:
        await asyncio.gather(steady(), refused())
        await producer.append(strict.line, 0, [message(SMALL)])
    finally:
        await producer.stop()
    kept = await values(stack, strict.line, 1)
    assert producer.recycled_count >= 10
    assert len(acknowledged) > 10
    assert {offset: kept.get(offset) for offset in acknowledged} == acknowledged
    # In the order in which they were appended, and none twice: a late one of a retired producer would show here.
    numbers = [int(value or b"-1") for value in kept.values()]
    assert numbers == sorted(set(numbers))
    assert len(kept) <= len(acknowledged) + unknown


async def test_an_append_that_is_cancelled_wedges_nothing(stack: Stack, topics: Topics) -> None:
    """A worker that is late at a hand-over is cancelled in whatever it does."""
    producer = RecordProducer(stack.kafka_bootstrap, "test")
    try:
        await producer.start()
        for number in range(8):
            append = asyncio.create_task(producer.append(topics.line, 0, [message(b"cancelled")] * 200))
            await asyncio.sleep(number * 0.001)
            append.cancel()
            await asyncio.gather(append, return_exceptions=True)
            appended: list[Appended] = await producer.append(topics.line, 0, [message(b"%d" % number)])
            assert (await values(stack, topics.line, 0))[appended[0].offset] == b"%d" % number
    finally:
        await producer.stop()
