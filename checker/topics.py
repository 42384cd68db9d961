"""Reads the three topics with plain consumers that belong to no group and commit nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from checker.records import Record

CLIENT_ID = "firstcome-checker"
METADATA_TIMEOUT_S = 30.0
POLL_TIMEOUT_MS = 1_000
POLLS_EMPTY_MAX = 30
"""How many polls in a row may bring nothing before the end that the broker has promised."""
POLL_RECORDS_MAX = 5_000
FETCH_BYTES_MAX = 8 * 1024 * 1024


class TopicError(Exception):
    """A topic can't be read; the message says which and why."""


@dataclass(frozen=True, slots=True)
class TopicNames:
    """The names of the three topics, with the prefix that sets several systems on one cluster apart."""

    prefix: str = ""

    @property
    def line(self) -> str:
        return f"{self.prefix}coupon.issue-requests.v1"

    @property
    def dlq(self) -> str:
        return f"{self.prefix}coupon.issue-requests.v1.dlq"

    @property
    def outcomes(self) -> str:
        return f"{self.prefix}coupon.issue-outcomes.v1"


@dataclass(frozen=True, slots=True)
class Extent:
    """The offsets of a partition: begin <= offset < end."""

    begin: int
    end: int


async def extents(bootstrap: str, topics: Sequence[str]) -> Mapping[str, tuple[Extent, ...]]:
    """For each topic the extent of each partition, in their order. Raises TopicError."""
    try:
        async with asyncio.timeout(METADATA_TIMEOUT_S):
            counts = await _partition_counts(bootstrap, topics)
            consumer = _consumer(bootstrap)
            try:
                await consumer.start()
                return {topic: await _extents(consumer, topic, count) for topic, count in counts.items()}
            finally:
                await _stop(consumer)
    except (KafkaError, TimeoutError) as error:
        raise TopicError(f"{bootstrap}: {type(error).__name__}: {error}") from error


async def _partition_counts(bootstrap: str, topics: Sequence[str]) -> Mapping[str, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, client_id=CLIENT_ID)
    try:
        await admin.start()
        described = await admin.describe_topics(list(topics))
    finally:
        await admin.close()
    counts = {topic["topic"]: len(topic["partitions"]) for topic in described if topic["error_code"] == 0}
    for topic in topics:
        if topic not in counts:
            raise TopicError(f"topic {topic} does not exist at {bootstrap}")
    return counts


async def _extents(consumer: AIOKafkaConsumer, topic: str, count: int) -> tuple[Extent, ...]:
    partitions = [TopicPartition(topic, number) for number in range(count)]
    begins = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    return tuple(Extent(begins[partition], ends[partition]) for partition in partitions)


async def read(bootstrap: str, topic: str, partition: int, extent: Extent) -> AsyncIterator[Sequence[Record]]:
    """The records of a partition within the extent, in batches of at most POLL_RECORDS_MAX. Raises TopicError."""
    if extent.begin >= extent.end:
        return
    here = TopicPartition(topic, partition)
    consumer = _consumer(bootstrap)
    try:
        await consumer.start()
        consumer.assign([here])
        consumer.seek(here, extent.begin)
        empty_polls = 0
        # The position also passes what is no record (a transaction's marker).
        while await consumer.position(here) < extent.end:
            polled = await consumer.getmany(here, timeout_ms=POLL_TIMEOUT_MS, max_records=POLL_RECORDS_MAX)
            batch = [
                Record(partition, raw.offset, raw.timestamp, raw.key, raw.value, tuple(raw.headers))
                for raw in polled.get(here, ())
                if raw.offset < extent.end
            ]
            if batch:
                empty_polls = 0
                yield batch
                continue
            empty_polls += 1
            if empty_polls >= POLLS_EMPTY_MAX:
                raise TopicError(f"{topic}/{partition}: nothing comes at {await consumer.position(here)} of {extent}")
    # The client decodes the names of headers by itself, and gives up at one that is no UTF-8.
    except (KafkaError, UnicodeDecodeError) as error:
        raise TopicError(f"{topic}/{partition}: {type(error).__name__}: {error}") from error
    finally:
        await _stop(consumer)


def _consumer(bootstrap: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        client_id=CLIENT_ID,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        fetch_max_bytes=FETCH_BYTES_MAX,
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
    )


async def _stop(consumer: AIOKafkaConsumer) -> None:
    # A task of the consumer that has not run yet would answer its cancellation with one of ours.
    await asyncio.sleep(0)
    await consumer.stop()
