"""Reading records whose header names are not UTF-8, which aiokafka's parser refuses.

Kafka lets a producer write any bytes as a header's name. One such record must not stand in everybody's way, so where
aiokafka gives up, the batches are fetched once more and parsed with its Python parser over a buffer that decodes such
names with backslashes. What a record means does not depend on them; only its dead letter shows the replaced name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy

_BATCH_HEADER = struct.Struct(">qi")  # base offset, bytes behind it
_MAX_WAIT_MS = 100
_READ_UNCOMMITTED = 0


class _Name(bytes):
    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


class _Buffer(bytearray):
    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Name(found) if isinstance(at, slice) else found


async def fetch_leniently(consumer: Any, tp: TopicPartition, offset: int, bytes_max: int) -> list[Any]:
    """aiokafka's records from `offset` on, as many as one fetch brings. Raises KafkaError."""
    client = consumer._client
    leader = client.cluster.leader_for_partition(tp)
    if leader is None or leader == -1:
        raise KafkaError(f"{tp.topic}/{tp.partition} has no leader")
    topics = [(tp.topic, [(tp.partition, offset, bytes_max)])]
    request = FetchRequest(_MAX_WAIT_MS, 1, bytes_max, _READ_UNCOMMITTED, topics, rack_id="")
    response = await client.send(leader, request)
    for _, partitions in response.topics:
        for _, error_code, *rest in partitions:
            if error_code:
                raise for_code(error_code)()
            return [record for record in _records(rest[-1]) if record.offset >= offset]
    return []


def _records(raw: bytes) -> Iterator[Any]:
    start = 0
    while start + _BATCH_HEADER.size <= len(raw):
        _, length = _BATCH_HEADER.unpack_from(raw, start)
        end = start + _BATCH_HEADER.size + length
        if end > len(raw):
            return  # cut off by the fetch's size
        batch = _DefaultRecordBatchPy(raw[start:end])
        if not batch.is_control_batch:
            records = iter(batch)
            batch._buffer = _Buffer(batch._buffer)
            yield from records
        start = end
