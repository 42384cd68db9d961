"""Which part of the log a job is about: a range as offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from coupon.v1 import replay_pb2
from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.model import CouponId
from services.runtime.kafka import PartitionReader, home_partition
from services.runtime.postgres import connection
from services.runtime.wire import from_timestamp

MakeReader = Callable[[str, int], PartitionReader]
"""A reader of a topic's partition; whoever makes one stops it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets of one partition, start <= offset < end; and of these only the records of a coupon, if one is named."""

    partition: int
    start: int
    end: int
    coupon_id: CouponId | None

    def __len__(self) -> int:
        return max(self.end - self.start, 0)


class Ranges:
    """Ranges of the line as spans of what is settled of it. Every method raises DatabaseAway, KafkaAway."""

    def __init__(self, engine: AsyncEngine, line_topic: str, partition_count: int, make_reader: MakeReader) -> None:
        self._engine = engine
        self._line_topic = line_topic
        self._partition_count = partition_count
        self._make_reader = make_reader

    async def settled(self) -> Mapping[int, int]:
        """How far each partition is settled: the offset behind it."""
        async with connection(self._engine) as db:
            rows = await db.fetch(
                "SELECT partition, next_offset FROM ledger_progress WHERE topic = $1", self._line_topic
            )
        return {row["partition"]: row["next_offset"] for row in rows}

    async def partitions(self, log_range: replay_pb2.LogRange) -> list[int]:
        """Which partitions the range is about: a coupon's is where it was created, or would be. Where offsets are
        named, only the partitions that they name are meant."""
        found = range(self._partition_count)
        if log_range.coupon_id:
            async with connection(self._engine) as db:
                own = await db.fetchval("SELECT topic_partition FROM coupon WHERE coupon_id = $1", log_range.coupon_id)
            home = home_partition(log_range.coupon_id.encode(), self._partition_count)
            found = range(home, home + 1) if own is None else range(own, own + 1)
        named = {*log_range.start_offsets, *log_range.end_offsets}
        return [partition for partition in found if not named or partition in named]

    async def spans(
        self, log_range: replay_pb2.LogRange, partitions: Iterable[int], ends: Mapping[int, int]
    ) -> list[Span]:
        """What the range means in each of these partitions; nothing lies behind `ends`.

        Times mean the records from the first at or after `start_time` to before the first at or after `end_time`; with
        offsets, what both include.
        """
        return [await self._span(log_range, partition, ends.get(partition, 0)) for partition in partitions]

    async def _span(self, log_range: replay_pb2.LogRange, partition: int, end: int) -> Span:
        start = log_range.start_offsets.get(partition, 0)
        end = min(end, log_range.end_offsets.get(partition, end))
        if log_range.HasField("start_time"):
            start = max(start, await self._offset_at(partition, from_timestamp(log_range.start_time)))
        if log_range.HasField("end_time"):
            end = min(end, await self._offset_at(partition, from_timestamp(log_range.end_time)))
        return Span(partition, min(start, end), end, CouponId(log_range.coupon_id) if log_range.coupon_id else None)

    async def _offset_at(self, partition: int, time_us: int) -> int:
        reader = self._make_reader(self._line_topic, partition)
        try:
            return await reader.offset_at(-(-time_us // 1_000))  # the log counts in milliseconds
        finally:
            await reader.stop()
