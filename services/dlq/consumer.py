"""The loop that files one partition of the DLQ topic, and what it does when something is away, lost or wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from services.dlq.store import Contended, Content, DeadLetterStore, Filing, LastRecord, Position, PositionLost
from services.domain.dead_letter import DeadLetter, Failure, Filed, RetryPolicy, file
from services.runtime import telemetry, wire
from services.runtime.kafka import KafkaAway, OutOfLog, PartitionReader, Record, Topics
from services.runtime.log import get_logger
from services.runtime.pace import Pace
from services.runtime.postgres import BooksWrong, DatabaseAway

log = get_logger(__name__)

BATCH_RECORDS_MAX = 500
IDLE_MS = 1_000


class Halted(Exception):
    """The partition must not go on without a person: the log is not the log, or the books are wrong."""


class PartitionFiler:
    """Files one partition of the DLQ topic. Safe beside another on the same partition: see DeadLetterStore.file."""

    def __init__(
        self,
        partition: int,
        topics: Topics,
        partition_count: int,
        dlq: PartitionReader,
        store: DeadLetterStore,
        policy: RetryPolicy,
        clock_us: Callable[[], int],
    ) -> None:
        self._partition = partition
        self._topics = topics
        self._partition_count = partition_count
        self._dlq = dlq
        self._store = store
        self._policy = policy
        self._clock_us = clock_us
        self._stopping = asyncio.Event()
        self._pace = Pace(self._stopping)
        self.settled_offset: int | None = None
        self.halted: str | None = None
        self.skipped_count = 0
        self.log = log.bind(topic=topics.dlq, partition=partition)

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """File until stopped. Away is not broken: whatever may pass is tried again from the table's position."""
        try:
            while not self._stopping.is_set():
                try:
                    await self._file_from(await self._take_position())
                except (KafkaAway, DatabaseAway, PositionLost, Contended, OutOfLog) as error:
                    self.log.warning("filing_interrupted", error=f"{type(error).__name__}: {error}")
                    await self._pace.failed()
                except (Halted, BooksWrong) as error:
                    await self._halt(f"{type(error).__name__}: {error}")
                except Exception as error:
                    # Not foreseen, so not known to be harmless: stand still and call for help rather than guess.
                    self.log.exception("filing_failed")
                    await self._halt(f"{type(error).__name__}: {error}")
        finally:
            await self._dlq.stop()

    async def _file_from(self, position: Position) -> None:
        while not self._stopping.is_set():
            records = await self._next_records(position)
            if records:
                position = await self._file(position, records)
                self.settled_offset = position.next_offset
            self._pace.succeeded()

    async def _next_records(self, position: Position) -> Sequence[Record]:
        """What comes next in the DLQ; after an idle moment the last record is read once more, to know the log."""
        records = await self._dlq.poll(max_records=BATCH_RECORDS_MAX, timeout_ms=IDLE_MS)
        if not records:
            if position.last is not None:
                await self._dlq.seek(position.last.offset)
            return records
        if records[0].offset < position.next_offset:
            _check_same(position.last, records[0])
            records = [record for record in records if record.offset >= position.next_offset]
        return records

    async def _file(self, position: Position, records: Sequence[Record]) -> Position:
        filings = [filing for record in records if (filing := self._filing(record)) is not None]
        record = records[-1]
        last = LastRecord(record.offset, record.timestamp_ms, record.checksum())
        after = Position(self._partition, record.offset + 1, last)
        with telemetry.process_batch(self._topics.dlq, self._partition, records):
            for letter in await self._store.file(position, after, filings, self._decide):
                self.log.info(
                    "dead_letter_filed",
                    ticket=str(letter.original),
                    reason=letter.reason,
                    state=letter.state,
                    attempt_count=letter.attempt_count,
                )
        skipped = len(records) - len(filings)
        if skipped:
            self.skipped_count += skipped
            self.log.warning("dead_letters_skipped", count=skipped, until_offset=record.offset)
        return after

    def _filing(self, record: Record) -> Filing | None:
        """The dead letter in a record of the DLQ; None where it is none that the line's ledger wrote here."""
        found = wire.parse_dead_letter(record)
        if found is None or (found.line_topic, found.failed.partition) != (self._topics.line, self._partition):
            self.log.debug("dead_letter_skipped", offset=record.offset)
            return None
        again = wire.redrive_message(
            found.original,
            found.record_timestamp_ms,
            self._policy.attempts_max,
            found.key,
            found.value,
            found.original_headers,
        )
        failure = Failure(
            original=found.original,
            failed=found.failed,
            reason=found.reason,
            message=found.message,
            failed_us=record.timestamp_ms * 1_000,
            redrivable=wire.fits_line(again) and found.original.partition < self._partition_count,
        )
        content = Content(
            found.key,
            found.value,
            found.original_headers,
            # Never below 0, which no redrive could write in its header.
            max(found.record_timestamp_ms, 0) * 1_000,
            *wire.ids_of(found.headers, found.value),
            telemetry.trace_id(found.headers),
        )
        return Filing(failure, content)

    def _decide(self, letter: DeadLetter | None, failure: Failure) -> Filed:
        return file(letter, failure, self._policy, now_us=self._clock_us(), random01=random.random())

    async def _take_position(self) -> Position:
        """The table's position, once the log is known to be the log."""
        position = await self._store.position(self._partition)
        begin, end = await self._dlq.bounds()
        if position.next_offset > end:
            raise Halted(f"the position {position.next_offset} is past the log's end {end}: truncated or recreated")
        if begin > position.next_offset:
            raise Halted(f"the log begins at {begin}, after the position {position.next_offset}")
        if position.last is not None:
            _check_same(position.last, await self._dlq.read_one(position.last.offset))
        await self._dlq.seek(position.next_offset)
        self.settled_offset = position.next_offset
        self.log.info("position_taken", next_offset=position.next_offset)
        return position

    async def _halt(self, reason: str) -> None:
        self.halted = reason
        self.log.critical("partition_halted", reason=reason)
        await self._stopping.wait()


def _check_same(last: LastRecord | None, record: Record | None) -> None:
    if last is None:
        return
    if record is None or (record.offset, record.timestamp_ms, record.checksum()) != (
        last.offset,
        last.timestamp_ms,
        last.checksum,
    ):
        raise Halted(f"the record at {last.offset} is not the one that was filed: the log is another one")
