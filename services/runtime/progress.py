"""How far a partition of a log has been worked through: the row that says so, and whether the log is still that log."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from services.runtime.fetching import LogRecord
from services.runtime.kafka import PartitionReader, Record, to_records
from services.runtime.postgres import BooksWrong, Connection


class Overtaken(Exception):
    """Another process of the service was first: do it again, from where that has left it."""


class PositionLost(Overtaken):
    """Another process has moved the partition's progress: what was read from here on is not ours to store."""


class Halted(Exception):
    """The partition must not go on without a person."""


class NotTheLog(Halted):
    """The log is not the one that the progress was made on: its topic was recreated, or it lost records."""


@dataclass(frozen=True, slots=True)
class LastRecord:
    """What tells whether the log is still the same log."""

    offset: int
    timestamp_ms: int
    checksum: int

    @classmethod
    def of(cls, record: Record) -> LastRecord:
        return cls(record.offset, record.timestamp_ms, record.checksum())


@dataclass(frozen=True, slots=True)
class Position:
    """A partition's progress as its row has it. Where outcomes are published of it, `published_offset` is how far, and
    `dlq_offset` is one of the DLQ partition; elsewhere both stay 0."""

    partition: int
    next_offset: int
    published_offset: int
    dlq_offset: int
    last: LastRecord | None

    def behind(self, record: Record) -> Position:
        return replace(self, next_offset=record.offset + 1, last=LastRecord.of(record))


@dataclass(frozen=True, slots=True)
class ProgressRows:
    """The rows of one topic's partitions."""

    topic: str

    async def take(self, db: Connection, partition: int) -> Position:
        """The partition's position; a missing row is inserted at 0. Raises BooksWrong."""
        await db.execute(_INSERT, self.topic, partition)
        row = await db.fetchrow(_SELECT, self.topic, partition)
        if row is None:
            raise BooksWrong(f"ledger_progress has no row for {self.topic}/{partition}")
        last = None
        if row["last_offset"] is not None:
            last = LastRecord(row["last_offset"], row["last_timestamp"], row["last_checksum"])
        return Position(partition, row["next_offset"], row["published_offset"], row["dlq_offset"], last)

    async def move(self, db: Connection, before: Position, after: Position) -> None:
        """The compare-and-set, which takes the row's lock: of two on one partition only one gets through.

        Raises PositionLost.
        """
        last: tuple[Any, ...] = (None, None, None)
        if after.last is not None:
            last = after.last.offset, after.last.timestamp_ms, after.last.checksum
        offsets = before.next_offset, after.next_offset, after.published_offset, after.dlq_offset
        if await db.execute(_MOVE, self.topic, before.partition, *offsets, *last) != "UPDATE 1":
            raise self._lost(before)

    async def confirm(self, db: Connection, position: Position) -> None:
        """Whether the row still has the position. Raises PositionLost."""
        row = await db.fetchrow(_SELECT, self.topic, position.partition)
        if row is None or row["next_offset"] != position.next_offset:
            raise self._lost(position)

    def _lost(self, position: Position) -> PositionLost:
        return PositionLost(f"{self.topic}/{position.partition} is no longer at {position.next_offset}")


async def check_log(reader: PartitionReader, position: Position, needed_offset: int) -> None:
    """That the log is the one that was read up to the position, and still has what is needed, from that offset on.

    Raises NotTheLog, KafkaAway, OutOfLog.
    """
    begin, end = await reader.bounds()
    if position.next_offset > end:
        raise NotTheLog(f"the position {position.next_offset} is past the log's end {end}: truncated or recreated")
    if begin > needed_offset:
        raise NotTheLog(f"the log begins at {begin}, after the position {needed_offset}")
    if position.last is not None:
        _check_same(position.last, await reader.read_one(position.last.offset))


async def poll_behind(
    reader: PartitionReader, position: Position, *, max_records: int, timeout_ms: int
) -> list[LogRecord]:
    """What comes next in the log; after an idle moment the last record is read once more, to know the log.

    Raises NotTheLog, KafkaAway, OutOfLog.
    """
    records = await reader.take(max_records=max_records, timeout_ms=timeout_ms)
    if position.last is not None:
        if not records:
            if reader.position() <= position.last.offset:
                # It did not come back: another log may end just there, which Kafka finds nothing wrong with.
                await check_log(reader, position, position.next_offset)
            await reader.seek(position.last.offset)
        elif records[0].offset < position.next_offset:
            _check_same(position.last, *to_records(records[:1]))
    return [record for record in records if record.offset >= position.next_offset]


def _check_same(last: LastRecord, record: Record | None) -> None:
    if record is None or LastRecord.of(record) != last:
        raise NotTheLog(f"the record at {last.offset} is not the one that was settled: the log is another one")


_INSERT = """
INSERT INTO ledger_progress (topic, partition, next_offset, published_offset, dlq_offset) VALUES ($1, $2, 0, 0, 0)
ON CONFLICT DO NOTHING"""
_SELECT = """
SELECT next_offset, published_offset, dlq_offset, last_offset, last_timestamp, last_checksum
FROM ledger_progress WHERE topic = $1 AND partition = $2"""
_MOVE = """
UPDATE ledger_progress SET next_offset = $4, published_offset = $5, dlq_offset = $6,
    last_offset = $7, last_timestamp = $8, last_checksum = $9
WHERE topic = $1 AND partition = $2 AND next_offset = $3"""
