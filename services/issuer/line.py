"""Putting records into the line, and looking at one that is in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from services.domain.model import LineRecord, Ticket
from services.runtime import failpoints, wire
from services.runtime.coalesce import Coalescer
from services.runtime.kafka import Appended, Message, PartitionReader, RecordProducer

APPEND_BATCH_MAX = 4_000
APPENDS_WAITING_MAX = 100_000
"""Of one partition; more are refused as OVERLOADED."""

RECORDS_KEPT_MAX = 10_000
"""Records never change, and whoever watches a place in the line asks for the same one each second."""


class Line:
    """The topic of requests, as the issuer uses it."""

    def __init__(
        self,
        producer: RecordProducer,
        topic: str,
        partition_count: int,
        make_reader: Callable[[int], PartitionReader],
    ) -> None:
        self.topic = topic
        self.partition_count = partition_count
        self._producer = producer
        self._make_reader = make_reader
        self._readers: dict[int, tuple[asyncio.Lock, PartitionReader]] = {}
        self._ends: dict[int, int] = {}
        self._records: dict[Ticket, LineRecord] = {}
        self._appends = [self._coalescer(partition) for partition in range(partition_count)]

    async def append(self, partition: int, asked: Sequence[wire.Asked | Message]) -> Sequence[Appended]:
        """Take places at the end of the partition, for requests and changes; calls that wait go together.

        Raises KafkaAway (after DeliveryUnknown the records may be in the line), QueueFull.
        """
        return await self._appends[partition].submit(asked)

    def end(self, partition: int) -> int:
        """The offset behind the last record that was put into the partition from here."""
        return self._ends.get(partition, 0)

    async def record(self, ticket: Ticket) -> LineRecord | None:
        """The record at that place, if there is one. Raises KafkaAway."""
        if ticket.partition >= self.partition_count:
            return None
        if (known := self._records.get(ticket)) is not None:
            return known
        if ticket.partition not in self._readers:
            self._readers[ticket.partition] = asyncio.Lock(), self._make_reader(ticket.partition)
        lock, reader = self._readers[ticket.partition]
        async with lock:
            record = await reader.read_one(ticket.offset)
        if record is None:
            return None
        if len(self._records) >= RECORDS_KEPT_MAX:
            self._records.pop(next(iter(self._records)))
        decoded = self._records[ticket] = wire.decode(record)
        return decoded

    async def stop(self) -> None:
        await asyncio.gather(*(reader.stop() for _, reader in self._readers.values()))

    def _coalescer(self, partition: int) -> Coalescer[wire.Asked | Message, Appended]:
        async def append(asked: Sequence[wire.Asked | Message]) -> Sequence[Appended]:
            failpoints.reach("issuer.sending")
            messages = wire.line_messages(asked, time.time_ns() // 1_000_000 * 1_000)
            appended = await self._producer.append(self.topic, partition, messages)
            failpoints.reach("issuer.acknowledged")
            self._ends[partition] = max(appended[-1].offset + 1, self._ends.get(partition, 0))
            return appended

        return Coalescer(append, batch_max=APPEND_BATCH_MAX, waiting_max=APPENDS_WAITING_MAX, queue="append")
