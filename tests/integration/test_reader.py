"""The reader of one partition, on a real broker."""

from __future__ import annotations

import time
import uuid

import pytest
from aiokafka import AIOKafkaProducer

from services.runtime.kafka import KafkaAway, Message, OutOfLog, PartitionReader, Record, RecordProducer, Topics
from stack import Link, Stack

PART_BYTES = 500_000
"""Ten of them are more than one fetch brings."""
PARTS = 20


async def put(stack: Stack, topic: str, *values: bytes) -> None:
    producer = RecordProducer(stack.kafka_bootstrap, "test")
    try:
        numbered = (Message(b"k", value, [("number", b"%d" % number)]) for number, value in enumerate(values))
        await producer.append(topic, 0, numbered)
    finally:
        await producer.stop()


async def polled(reader: PartitionReader, count: int, *, step: int = 3, timeout_s: float = 30) -> list[Record]:
    """So many records, by as many polls as it takes."""
    found: list[Record] = []
    deadline_s = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline_s:
        found += await reader.poll(max_records=min(step, count - len(found)), timeout_ms=500)
    return found


async def test_a_seek_among_more_than_one_answer_brings_what_is_there_and_nothing_twice(
    stack: Stack, topics: Topics
) -> None:
    await put(stack, topics.line, *(b"%d " % number * (PART_BYTES // 3) for number in range(PARTS)))
    reader = PartitionReader(stack.kafka_bootstrap, "test", topics.line, 0)
    try:
        await reader.seek(0)
        assert [record.offset for record in await polled(reader, 4)] == [0, 1, 2, 3]
        await reader.seek(1)  # the answer behind is on its way, and must not be mistaken for this one
        assert [record.offset for record in await polled(reader, PARTS - 1)] == list(range(1, PARTS))
        assert (reader.position(), reader.known_end()) == (PARTS, PARTS)
        one = await reader.read_one(7)
        assert one is not None
        assert (one.offset, (one.value or b"")[:2], one.headers) == (7, b"7 ", (("number", b"7"),))
        assert await reader.read_one(PARTS) is None
        assert await reader.read_one(PARTS + 1) is None
        assert await reader.poll(max_records=1, timeout_ms=0) == []
        await put(stack, topics.line, b"next")
        assert [record.value for record in await polled(reader, 1)] == [b"next"]
    finally:
        await reader.stop()


async def test_an_offset_that_the_log_does_not_have_is_told_and_read_on_from_another(
    stack: Stack, topics: Topics
) -> None:
    await put(stack, topics.line, b"a", b"b")
    reader = PartitionReader(stack.kafka_bootstrap, "test", topics.line, 0)
    try:
        await reader.seek(3)
        with pytest.raises(OutOfLog):
            await polled(reader, 1)
        await reader.seek(1)
        assert [record.value for record in await polled(reader, 1)] == [b"b"]
    finally:
        await reader.stop()


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_and_transactions_are_read_from_anywhere(
    stack: Stack, topics: Topics, compression: str
) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.kafka_bootstrap, compression_type=compression, transactional_id=str(uuid.uuid4())
    )
    await producer.start()
    try:
        for _ in range(2):  # records 0 to 2 and 4 to 6; a marker behind each three
            async with producer.transaction():
                batch = producer.create_batch()
                for value in (b"a", b"b", b"c"):
                    batch.append(key=b"k", value=value * 100, timestamp=None)
                await (await producer.send_batch(batch, topics.line, partition=0))
    finally:
        await producer.stop()
    reader = PartitionReader(stack.kafka_bootstrap, "test", topics.line, 0)
    try:
        await reader.seek(1)
        found = await polled(reader, 5)
        assert [(record.offset, (record.value or b"")[:1]) for record in found] == [
            (1, b"b"),
            (2, b"c"),
            (4, b"a"),
            (5, b"b"),
            (6, b"c"),
        ]
        now_ms = time.time() * 1000
        assert all(abs(record.timestamp_ms - now_ms) < 600_000 for record in found)  # LogAppendTime
        assert (await reader.bounds(), await reader.read_one(3)) == ((0, 8), None)
        assert await reader.offset_at(found[2].timestamp_ms + 600_000) == 8
        assert await reader.offset_at(0) == 0
    finally:
        await reader.stop()


async def test_while_the_broker_is_away_nothing_comes_and_then_it_goes_on_where_it_was(
    stack: Stack, topics: Topics, link: Link
) -> None:
    await put(stack, topics.line, b"a", b"b")
    reader = PartitionReader(link.address, "test", topics.line, 0)
    unstarted = PartitionReader(link.address, "test", topics.line, 0)
    try:
        await reader.seek(0)
        assert [record.value for record in await polled(reader, 1)] == [b"a"]
        link.go_down()
        assert [record.value for record in await polled(reader, 1)] == [b"b"]  # it is here already
        assert await polled(reader, 1, timeout_s=1) == []
        with pytest.raises(KafkaAway):
            await unstarted.seek(0)
        await put(stack, topics.line, b"c")
        link.heal()
        assert [record.value for record in await polled(reader, 1)] == [b"c"]
        await unstarted.seek(2)
        assert [record.value for record in await polled(unstarted, 1)] == [b"c"]
    finally:
        await reader.stop()
        await unstarted.stop()
