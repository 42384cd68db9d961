"""The loop that files one partition of the DLQ topic."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from services.dlq.rows import Content
from services.dlq.store import DeadLetterStore, Filing
from services.domain.dead_letter import DeadLetter, Failure, Filed, RetryPolicy, file
from services.runtime import batch_traces, metrics, wire
from services.runtime.kafka import PartitionReader, Record, Topics, to_records
from services.runtime.partitions import PartitionWorker
from services.runtime.progress import Position, check_log, poll_behind

FILING = "UPDATE ledger_progress; INSERT dead_letter_action dead_letter"
"""The transaction in short, for traces."""
BATCH_RECORDS_MAX = 500
IDLE_MS = 1_000


class PartitionFiler(PartitionWorker):
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
        super().__init__(topics.dlq, partition, dlq)
        self._topics = topics
        self._partition_count = partition_count
        self._dlq = dlq
        self._store = store
        self._policy = policy
        self._clock_us = clock_us

    async def _work_from(self, position: Position) -> None:
        while not self._stopping.is_set():
            began_ns = time.time_ns()
            found = await poll_behind(self._dlq, position, max_records=BATCH_RECORDS_MAX, timeout_ms=IDLE_MS)
            if records := to_records(found):
                self.waiting.begun(records[0].offset, records[0].timestamp_ms)
                position = await self._file(position, records, (began_ns, time.time_ns()))
                self.settled_offset = position.next_offset
            self._pace.succeeded()

    async def _file(self, position: Position, records: Sequence[Record], polled_ns: tuple[int, int]) -> Position:
        filings = [filing for record in records if (filing := self._filing(record)) is not None]
        after = position.behind(records[-1])
        traces = batch_traces.traceparents(records)
        with batch_traces.process(self._topics.dlq, self._partition, len(records), traces, polled_ns, FILING):
            letters = await self._store.file(position, after, filings, self._decide)
            for letter in letters:
                metrics.FILED.add(1, letter.reason, letter.state)
                self.log.debug(
                    "dead_letter_filed",
                    ticket=str(letter.original),
                    reason=letter.reason,
                    state=letter.state,
                    attempt_count=letter.attempt_count,
                )
            if letters:
                self.log.info("dead_letters_filed", count=len(letters), until_offset=records[-1].offset)
        skipped = len(records) - len(filings)
        if skipped:
            self.log.warning("dead_letters_skipped", count=skipped, until_offset=records[-1].offset)
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
            batch_traces.trace_id(found.headers),
        )
        return Filing(failure, content)

    def _decide(self, letter: DeadLetter | None, failure: Failure) -> Filed:
        return file(letter, failure, self._policy, now_us=self._clock_us(), random01=random.random())

    async def _take_position(self) -> Position:
        position = await self._store.position(self._partition)
        await check_log(self._dlq, position, position.next_offset)
        await self._dlq.seek(position.next_offset)
        self.settled_offset = position.next_offset
        self.log.info("position_taken", next_offset=position.next_offset)
        return position
