"""A record whose header name is not UTF-8 stands in nobody's way."""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from services.runtime.kafka import Message, PartitionReader, Record, RecordProducer, Topics
from stack import Stack

READ_TIMEOUT_MS = 5_000


class _OddName(str):
    """A name that is encoded to bytes that are no UTF-8."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"x\xff\xfe"


async def test_a_header_name_that_is_not_utf8_is_read_with_backslashes_between_its_neighbours(
    stack: Stack, topics: Topics
) -> None:
    producer = RecordProducer(stack.kafka_bootstrap, "test")
    reader = PartitionReader(stack.kafka_bootstrap, "test", topics.line, 0)
    try:
        await producer.append(topics.line, 0, [Message(b"k", b"before", [("a", b"1")])])
        await _send_odd(stack.kafka_bootstrap, topics.line)
        await producer.append(topics.line, 0, [Message(b"k", b"after", [("b", b"2")])])
        records: list[Record] = []
        async for some in reader.read(0, 4):
            records += some
    finally:
        await producer.stop()
        await reader.stop()
    assert [(r.offset, r.value, r.headers) for r in records] == [
        (0, b"before", (("a", b"1"),)),
        (1, b"odd", (("first", b"0"), ("x\\xff\\xfe", b"3"))),
        (2, b"neighbour", ()),
        (3, b"after", (("b", b"2"),)),
    ]
    assert all(record.timestamp_ms > 0 for record in records)


async def _send_odd(bootstrap: str, topic: str) -> None:
    producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        batch = producer.create_batch()
        batch._builder = _DefaultRecordBatchBuilderPy(
            2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0, batch_size=16_384
        )
        odd = [("first", b"0"), (_OddName("x"), b"3")]
        batch.append(key=b"k", value=b"odd", timestamp=None, headers=odd)
        batch.append(key=b"k", value=b"neighbour", timestamp=None, headers=[])
        await (await producer.send_batch(batch, topic, partition=0))
    finally:
        await producer.stop()
