"""A partition's log as its leader tells it: one request, one answer, and the records in it.

aiokafka's consumer fetches nothing while it has records that were not taken, and makes two objects a record. Here the
same client is asked directly, so that who reads can have an answer on its way while taking what the last one brought.
"""

from __future__ import annotations

import asyncio
import struct
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CorruptRecordException, KafkaError, LeaderNotAvailableError, RecordTooLargeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint
from aiokafka.structs import TopicPartition

from services.runtime.log import Seldom

seldom_log = Seldom(__name__)

FETCH_BYTES_MAX = 2 * 1024 * 1024
"""Of one answer; a larger batch of the log still comes, alone."""
FETCH_WAIT_MS = 500
"""For how long the broker may keep a request that it has nothing for. What is asked next waits behind it."""
RETRY_S = 0.1
EARLIEST, LATEST = -2, -1
"""Kafka's timestamps for the log's first offset and the one after its last."""

_READ_UNCOMMITTED = 0
_CONSUMER = -1
_BATCH_HEADER = struct.Struct(">qi")  # base offset, bytes behind it
_COUNT = struct.Struct(">i")
_COUNT_AT = 57
_RECORDS_AT = _COUNT_AT + _COUNT.size
"""Where a batch has the number of its records, and the records."""


class LogRecord(Protocol):
    """A record as it is parsed. It is not kept: see `Fetched.again`."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """In milliseconds since the epoch."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class Fetched:
    """What a fetch at an offset has brought, to be taken in steps."""

    def __init__(self, raw: bytes, offset: int, log_end: int) -> None:
        """Raises RecordTooLargeError."""
        batches = list(_batches(raw))
        if raw and not batches:
            raise RecordTooLargeError(f"the answer at {offset} ends within the first batch of the log")
        self._raw = raw
        self._whole = batches
        """While nothing of them has been taken."""
        self._records = _records(batches, offset)
        self.log_end = log_end
        """The offset behind the log's last record, as it was then."""
        self.next_offset = batches[-1].next_offset if batches else offset
        """Where the next fetch goes on; there may be offsets without records before it."""
        self.offset = offset
        """Of the next record to be taken, or less."""

    def take(self, count: int) -> list[LogRecord]:
        """The next records; none at the end. Raises KafkaError, after which no more can be taken."""
        self._whole = []  # they would keep what they decompress
        try:
            found = list(islice(self._records, count))
        except UnicodeDecodeError:
            seldom_log.warning("header_name_not_utf8", offset=self.offset)
            self._records = _records(_lenient_batches(self._raw), self.offset)
            found = list(islice(self._records, count))
        self.offset = found[-1].offset + 1 if found else self.next_offset
        return found

    def skim(self, telling: bytes) -> list[LogRecord]:
        """The last record instead of all, if nothing was taken yet and the bytes `telling` are in none of them.

        Else none: they are to be taken. To parse those that tell nothing takes longer than all else that is done.
        Raises KafkaError.
        """
        if not self._whole or self.has(telling):
            return []
        if any(one.compression_type or one.is_control_batch or not one.validate_crc() for one in self._whole):
            return []
        (batch,) = deque(_slices(self._raw), maxlen=1)
        if len(batch) == _RECORDS_AT:  # what compaction leaves of one
            return []
        try:
            (last,) = DefaultRecordBatch(_last_alone(batch))
        except UnicodeDecodeError:
            return []
        self._whole, self._records = [], iter(())
        self.offset = last.offset + 1
        return [last]

    def again(self, offsets: Collection[int]) -> list[LogRecord]:
        """The records at these offsets, as far as they are among these, parsed once more. Raises KafkaError.

        For the few that are needed later: all of a batch, kept as objects, are six times as many bytes as they are
        here, and come from far memory again and again.
        """
        try:
            return _among(_batches(self._raw), offsets)
        except UnicodeDecodeError:
            return _among(_lenient_batches(self._raw), offsets)

    def has(self, text: bytes) -> bool:
        """Whether these bytes are in it, in whatever place of whatever record; in a compressed one none are found."""
        return text in self._raw

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self._raw)


class PartitionLog:
    """A partition's log over a client that is its own. What may pass is asked again, until the caller's time is over.

    All calls raise KafkaError.
    """

    def __init__(self, client: AIOKafkaClient, topic: str, partition: int) -> None:
        self._client = client
        self._tp = TopicPartition(topic, partition)

    async def start(self) -> None:
        await self._client.bootstrap()
        await self._client.set_topics([self._tp.topic])

    async def fetch(self, offset: int, *, bytes_max: int = FETCH_BYTES_MAX, wait_ms: int = FETCH_WAIT_MS) -> Fetched:
        """What there is from `offset` on, or nothing when the time is over. Raises OffsetOutOfRangeError."""
        topics = [(self._tp.topic, [(self._tp.partition, offset, bytes_max)])]
        request = FetchRequest(wait_ms, 1, bytes_max, _READ_UNCOMMITTED, topics)
        log_end, *_, raw = await self._ask(request)
        return Fetched(raw or b"", offset, log_end)

    async def offset_at(self, timestamp_ms: int) -> int:
        """The offset of the first record at or after that time, -1 where there is none; see EARLIEST and LATEST."""
        topics = [(self._tp.topic, [(self._tp.partition, timestamp_ms)])]
        _, offset = await self._ask(OffsetRequest(_CONSUMER, _READ_UNCOMMITTED, topics))
        return int(offset)

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, request: FetchRequest | OffsetRequest) -> tuple[Any, ...]:
        """What the leader answers of the partition, behind the error code."""
        while True:
            try:
                return await self._ask_once(request)
            except KafkaError as error:
                if not error.retriable:
                    raise
                seldom_log.warning(
                    "log_asked_again", topic=self._tp.topic, partition=self._tp.partition, error=str(error)
                )
                if error.invalid_metadata:
                    self._client.force_metadata_update()
                await asyncio.sleep(RETRY_S)

    async def _ask_once(self, request: FetchRequest | OffsetRequest) -> tuple[Any, ...]:
        leader = self._client.cluster.leader_for_partition(self._tp)
        if leader is None or leader == -1:
            raise LeaderNotAvailableError(f"{self._tp.topic}/{self._tp.partition} has no leader")
        response = await self._client.send(leader, request)
        ((_, ((_, error_code, *told),)),) = response.topics
        if error_code:
            raise for_code(error_code)(f"{self._tp.topic}/{self._tp.partition}")
        return tuple(told)


def _batches(raw: bytes) -> Iterator[Any]:
    """The whole batches; the last one of an answer may be cut off by its size."""
    batches = MemoryRecords(raw)
    while (batch := batches.next_batch()) is not None:
        yield batch


def _slices(raw: bytes) -> Iterator[bytes]:
    """The same as bytes."""
    start = 0
    while start + _BATCH_HEADER.size <= len(raw):
        _, length = _BATCH_HEADER.unpack_from(raw, start)
        end = start + _BATCH_HEADER.size + length
        if end > len(raw):
            return
        yield raw[start:end]
        start = end


def _last_alone(batch: bytes) -> bytes:
    """A batch of the last record, without the others before it and with a checksum that is not its own."""
    start = end = _RECORDS_AT
    while end < len(batch):
        start = end
        length, end = decode_varint(batch, start)
        end += length
    return b"".join((batch[:_COUNT_AT], _COUNT.pack(1), batch[start:]))


def _records(batches: Iterable[Any], offset: int) -> Iterator[Any]:
    for batch in batches:
        if not batch.validate_crc():
            raise CorruptRecordException(f"the batch at {batch.base_offset} does not have its checksum")
        if batch.is_control_batch:
            continue
        if batch.base_offset < offset:  # asked for from its middle on
            yield from (record for record in batch if record.offset >= offset)
        else:
            yield from batch


def _among(batches: Iterable[Any], offsets: Collection[int]) -> list[LogRecord]:
    wanted = sorted(offsets)

    def has_one(batch: Any) -> bool:
        return bisect_left(wanted, batch.base_offset) < bisect_left(wanted, batch.next_offset)

    return [record for record in _records(filter(has_one, batches), 0) if record.offset in offsets]


# A producer may write any bytes as a header's name, which aiokafka's parsers refuse. One such record must not stand in
# everybody's way, so the answer is then parsed by its Python parser over a buffer that decodes such names with
# backslashes. What a record means does not depend on them; only its dead letter shows the replaced name.


class _Name(bytes):
    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


class _Buffer(bytearray):
    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Name(found) if isinstance(at, slice) else found


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    _buffer: bytearray

    def __iter__(self) -> Iterator[Any]:
        records: Iterator[Any] = super().__iter__()
        self._buffer = _Buffer(self._buffer)
        return records


def _lenient_batches(raw: bytes) -> Iterator[Any]:
    return map(_LenientBatch, _slices(raw))
