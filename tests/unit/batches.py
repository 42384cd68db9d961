"""Batches as they are in the log of a partition, and a reader of a log that is made up."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from services.runtime.kafka import Message, PartitionReader

_ATTRIBUTES_AT = 21
_CRC_AT = 17


def batch(base: int, messages: Iterable[Message], *, attributes: int = 0) -> bytes:
    """`attributes` other than 0 are said of it, whatever is in it."""
    builder = DefaultRecordBatchBuilder(
        2, 0, is_transactional=0, producer_id=1, producer_epoch=0, base_sequence=0, batch_size=99_999
    )
    for place, (key, value, headers) in enumerate(messages):
        builder.append(place, 1_000 + place, key, value, list(headers))
    made = builder.build()
    struct.pack_into(">q", made, 0, base)
    if attributes:
        struct.pack_into(">h", made, _ATTRIBUTES_AT, attributes)
    return with_checksum(bytes(made))


def with_checksum(raw: bytes) -> bytes:
    """The batch with its own, whatever was changed in it."""
    return raw[:_CRC_AT] + struct.pack(">I", calc_crc32c(raw[_ATTRIBUTES_AT:])) + raw[_ATTRIBUTES_AT:]


def reader_of(log: Any) -> PartitionReader:
    """Of a log with `start`, `fetch` and whatever else of PartitionLog a test needs."""
    reader = PartitionReader("127.0.0.1:1", "test", "line", 0)
    reader._log = log
    return reader
