"""Builds an empty database from Kafka alone: the ledger's own loop, which publishes nothing and ends where the
published outcomes do. `python -m services.ledger rebuild`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import override

from services.ledger.consumer import BATCH_RECORDS_MAX, Batch, PartitionLedger, Settled
from services.ledger.rebuild_store import NotEmpty, RebuildStore
from services.ledger.store import LedgerStore
from services.runtime import lifecycle
from services.runtime.config import LedgerConfig
from services.runtime.kafka import CE_ID, KafkaAway, OutOfLog, PartitionReader, Record, RecordProducer, Topics
from services.runtime.postgres import BooksWrong, DatabaseAway, create_engine
from services.runtime.progress import Halted, NotTheLog, Overtaken, Position

OUTCOMES_LOOKED_AT = 3 * BATCH_RECORDS_MAX
"""More than a ledger publishes again, two batches: the highest of so many last outcomes is the highest of all."""
TELL_EVERY_S = 1.0
AGAIN = "the same command goes on from there"


@dataclass(frozen=True, slots=True)
class Goal:
    """How far to go in a partition of the line.

    `published_offset` is behind the highest record whose outcome is on the topic; None where the topic has none any
    more, or had none yet. What is behind it another ledger may have settled, whose dead letters are not on the DLQ yet:
    that is left to the ledger that is started on the new database.
    """

    end_offset: int
    published_offset: int | None


class RebuildingLedger(PartitionLedger):
    """Settles one partition of the line up to its goal. Until all is done the table says that nothing is published: a
    ledger that is started on the database too early would at worst publish the same outcomes once more."""

    goal: Goal
    filed: frozenset[int] = frozenset()
    """The offsets of the line that are on the DLQ."""

    @property
    def done(self) -> bool:
        return self.settled_offset is not None and self.settled_offset >= self.goal.end_offset

    @override
    async def _next_batch(self, position: Position) -> Batch | None:
        if position.next_offset < self.goal.end_offset:
            batch = await super()._next_batch(position)
            if batch is not None and batch.decoded[0].offset < self.goal.end_offset:
                return batch.part(0, sum(one.offset < self.goal.end_offset for one in batch.decoded))
            if not await self._is_more_behind(position):  # what is left are offsets without records
                self.goal = replace(self.goal, end_offset=position.next_offset)
        return None

    async def _is_more_behind(self, position: Position) -> bool:
        """Whether nothing came because Kafka is slow, rather than because nothing is there."""
        async for _ in self._line.read(position.next_offset, self.goal.end_offset):
            await self._line.seek(position.next_offset)
            return True
        return False

    @override
    async def _read_dead_letters(self, position: Position) -> set[int]:
        behind = await super()._read_dead_letters(position)
        self.filed = frozenset(behind | self._known.keys())
        return behind

    @override
    async def _publish(self, settled: Settled) -> None:
        """It is on the topics already."""

    @override
    async def _publish_again(self, position: Position, published: set[int]) -> None:
        """It is on the topics already."""

    @override
    def _acknowledged(self, position: Position) -> Position:
        return position

    @override
    async def _acknowledge(self, position: Position) -> Position:
        if position.next_offset >= self.goal.end_offset:
            self.stop()
        return position


async def rebuild(config: LedgerConfig, stopping: asyncio.Event) -> None:
    """Build the database; telling how far it is. Raises lifecycle.Unfinished, with what to do."""
    common = config.common
    topics = Topics(common.topic_prefix)
    engine = create_engine(common.postgres_dsn, "firstcome-rebuild", pool_size=common.pool_size)
    producer = RecordProducer(common.kafka_bootstrap, "rebuild")  # nothing is appended to it, so it never connects
    try:
        partition_count = await lifecycle.wait_for_dependencies(common, engine, stopping)
        store = LedgerStore(engine, topics.line, partition_count)
        rebuilds = RebuildStore(engine, topics.line)
        partitions = range(partition_count)
        goals = await asyncio.gather(*(_goal(common.kafka_bootstrap, topics, partition) for partition in partitions))
        _tell("goes on with a rebuild that was stopped" if await rebuilds.begin() else "the database is empty: begins")

        def reader(topic: str, partition: int) -> PartitionReader:
            return PartitionReader(common.kafka_bootstrap, "rebuild", topic, partition)

        ledgers = []
        for partition, goal in enumerate(goals):
            readers = reader(topics.line, partition), reader(topics.dlq, partition)
            run_max = config.dead_letter_run_max
            ledger = RebuildingLedger(partition, topics, *readers, producer, store, run_max)
            ledger.goal = goal
            ledgers.append(ledger)
        await _run(ledgers, stopping)
        await rebuilds.finish([await _published_offset(rebuilds, p, ledger) for p, ledger in enumerate(ledgers)])
        _tell(f"done: {_settled_count(ledgers):,} records; start a ledger on it, or compare: state-hash")
    except (NotEmpty, Halted) as error:
        raise lifecycle.Unfinished(str(error)) from error
    except Overtaken as error:
        raise lifecycle.Unfinished(f"a ledger is at work on this database: {error}") from error
    except (KafkaAway, DatabaseAway, OutOfLog, BooksWrong) as error:
        raise lifecycle.Unfinished(f"{type(error).__name__}: {error}; {AGAIN}") from error
    finally:
        await producer.stop()
        await engine.dispose()


async def _goal(bootstrap: str, topics: Topics, partition: int) -> Goal:
    """Read before the DLQ is: whatever has an outcome has its dead letter there."""
    line = PartitionReader(bootstrap, "rebuild", topics.line, partition)
    outcomes = PartitionReader(bootstrap, "rebuild", topics.outcomes, partition)
    try:
        published = await _published(outcomes, topics.line, partition)
        begin, end = await line.bounds()
    finally:
        await asyncio.gather(line.stop(), outcomes.stop())
    if begin > 0:
        raise NotTheLog(f"{topics.line}/{partition} begins at {begin}: a rebuild needs all of the line")
    if published is not None and published > end:
        raise NotTheLog(f"{topics.line}/{partition} ends at {end}, but there are outcomes up to {published - 1}")
    return Goal(end if published is None else published, published)


async def _published(outcomes: PartitionReader, line_topic: str, partition: int) -> int | None:
    begin, end = await outcomes.bounds()
    offsets = [
        offset
        async for records in outcomes.read(max(begin, end - OUTCOMES_LOOKED_AT), end)
        for record in records
        if (offset := _decided_by(record, f"{line_topic}/{partition}")) is not None
    ]
    return max(offsets) + 1 if offsets else None


def _decided_by(outcome: Record, line: str) -> int | None:
    """The offset in the line of the record that an outcome is of, from its `ce_id`."""
    of, _, digits = (outcome.header(CE_ID) or b"").decode(errors="replace").rpartition("/")
    return int(digits) if of == line and digits.isascii() and digits.isdecimal() else None


async def _run(ledgers: Sequence[RebuildingLedger], stopping: asyncio.Event) -> None:
    """Until all are done. Raises Unfinished when told to stop before, or when one has halted."""
    tasks = [asyncio.create_task(ledger.run()) for ledger in ledgers]
    telling = asyncio.create_task(_tell_progress(ledgers))
    asked = asyncio.create_task(stopping.wait())
    try:
        while not all(task.done() for task in tasks) and not stopping.is_set():
            if any(ledger.halted for ledger in ledgers):
                break
            waiting = [task for task in tasks if not task.done()]
            await asyncio.wait([*waiting, asked], timeout=TELL_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for ledger in ledgers:
            ledger.stop()
        await asyncio.gather(*tasks)
        for task in (telling, asked):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    for partition, ledger in enumerate(ledgers):
        if ledger.halted is not None:
            raise lifecycle.Unfinished(f"partition {partition} halted: {ledger.halted}")
    if not all(ledger.done for ledger in ledgers):
        raise lifecycle.Unfinished(f"stopped at {_settled_count(ledgers):,} of {_total(ledgers):,} records; {AGAIN}")


async def _tell_progress(ledgers: Sequence[RebuildingLedger]) -> None:
    began_s, before = time.monotonic(), None
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        if any(ledger.settled_offset is None for ledger in ledgers):
            continue  # the dead letters are being read
        settled, total = _settled_count(ledgers), _total(ledgers)
        if before is None:
            began_s, before = time.monotonic(), settled
            continue
        per_s = (settled - before) / (time.monotonic() - began_s)
        left = f"{(total - settled) / per_s:,.0f} s left" if per_s else "waiting"
        offsets = " ".join(f"{p}:{one.settled_offset}/{one.goal.end_offset}" for p, one in enumerate(ledgers))
        _tell(f"{settled:,} of {total:,} records, {per_s:,.0f} records/s, {left} ({offsets})")


def _settled_count(ledgers: Sequence[RebuildingLedger]) -> int:
    return sum(ledger.settled_offset or 0 for ledger in ledgers)


def _total(ledgers: Sequence[RebuildingLedger]) -> int:
    return sum(ledger.goal.end_offset for ledger in ledgers)


async def _published_offset(rebuilds: RebuildStore, partition: int, ledger: RebuildingLedger) -> tuple[Position, int]:
    """The rebuilt position, and from where on a ledger has to publish: the outcomes that the topic does not have, and
    the dead letters that the DLQ does not have, though the record has its outcome."""
    position = await rebuilds.position(partition)
    if ledger.goal.published_offset is None:
        return position, 0
    missing = [offset for offset in await rebuilds.parked(partition) if offset not in ledger.filed]
    if missing:
        _tell(f"not on the DLQ, will be published by the ledger: {partition}-{missing[0]} (of {len(missing)})")
    return position, min([position.next_offset, ledger.goal.published_offset, *missing])


def _tell(text: str) -> None:
    print(f"rebuild: {text}", flush=True)
