"""The loop that settles one partition of the line."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.domain.decide import park, park_known
from services.domain.model import LineRecord, Parked, ParkReason, Unprocessable, Verdict, printable
from services.ledger import tally
from services.ledger.store import DeadLetterRun, LedgerStore, ParkedRun
from services.runtime import batch_traces, failpoints, metrics, wire
from services.runtime.batch_traces import Traces
from services.runtime.fetching import Fetched
from services.runtime.gathering import Gathering
from services.runtime.instruments import Gauge
from services.runtime.kafka import (
    AWAITED,
    KafkaAway,
    Message,
    PartitionReader,
    Record,
    RecordProducer,
    Topics,
    records_again,
    to_records,
)
from services.runtime.partitions import PartitionWorker
from services.runtime.postgres import BooksWrong, DatabaseRefused
from services.runtime.progress import Halted, NotTheLog, Position, check_log, poll_behind

SETTLING = "UPDATE ledger_progress; SELECT coupon user_coupon; COPY user_coupon rejected_issue; UPDATE coupon"
"""The transaction in short, for traces."""
BATCH_RECORDS_MAX = 32_000
ANSWERS_BYTES_MAX = 32 * 1024 * 1024
"""Of the answers that a batch's records came with; those of two batches, and of dead letters, are in memory at once."""
HALVINGS_MAX = 7
"""After each failure in a row a batch has half as many records: what is too much for one transaction's time limits
must not stay so."""
STEP_RECORDS = 100
"""How many records are worked on, less than 1 ms, before other tasks get their turn. They are parsed before they are
decoded, and so few stay in the processor's nearest memory meanwhile."""
IDLE_MS = 1_000
FIRST_IDLE_MS = 100
"""The first idle moment after work is short, for behind it the table is told that all is published."""
GATHER_LEAST_S, GATHER_MOST_S, CROWD = 0.01, 0.08, 20.0
"""Batches of a partition begin so far apart, by how many records come during a transaction, and up to twice as far
where nobody waits for a verdict; see docs/decisions/0015."""
PATIENT_BEHIND = 10
"""Behind so many batches without a record whose sender waits, the next may be further apart."""
ANSWER_MS = 5
"""How long to wait, where batches follow each other closely, for what the broker is known to have."""
_AWAITED = AWAITED.encode()


class TooManyDeadLetters(Halted):
    """So many records in a row were parked that a bad deploy is more likely than bad records."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What records of the line decode to, the last of them, and what they came with, in which they are found again;
    `polled_ns`: from when to when they were read."""

    decoded: Sequence[LineRecord]
    last: Record
    traces: Traces
    answers: Sequence[Fetched]
    polled_ns: tuple[int, int]

    def __len__(self) -> int:
        return len(self.decoded)

    def part(self, start: int, end: int) -> Batch:
        if (start, end) == (0, len(self)):
            return self
        decoded = self.decoded[start:end]
        offset = decoded[-1].offset
        last = self.last if end == len(self) else records_again(self.answers, {offset})[offset]
        traces = batch_traces.only(self.traces, (one.offset for one in decoded))
        return replace(self, decoded=decoded, last=last, traces=traces)


@dataclass(frozen=True, slots=True)
class Settled:
    """The verdicts of a batch, committed, and the position behind it."""

    verdicts: Sequence[Verdict]
    traces: Traces
    answers: Sequence[Fetched]
    position: Position

    def __add__(self, other: Settled) -> Settled:
        """With the part of the same batch behind this one."""
        verdicts, traces = [*self.verdicts, *other.verdicts], {**self.traces, **other.traces}
        return replace(other, verdicts=verdicts, traces=traces)


class PartitionLedger(PartitionWorker):
    """Settles one partition of the line. Safe beside another on the same partition: see LedgerStore.settle."""

    def __init__(
        self,
        partition: int,
        topics: Topics,
        line: PartitionReader,
        dlq: PartitionReader,
        producer: RecordProducer,
        store: LedgerStore,
        dead_letter_run_max: int,
    ) -> None:
        super().__init__(topics.line, partition, line, dlq)
        self._topics = topics
        self._line = line
        self._dlq = dlq
        self._producer = producer
        self._store = store
        self._run = ParkedRun(0, dead_letter_run_max)
        self._known: dict[int, wire.DeadLetterRecord] = {}
        self._published_offset = 0
        self._dlq_offset = 0
        self._gathering = Gathering(least_s=GATHER_LEAST_S, most_s=GATHER_MOST_S, crowd=CROWD)
        self._unawaited = 0
        """How many batches there were since the last with a record whose sender waits."""
        self._filled = False
        """Whether the last batch was as large as one may be."""

    def figures(self) -> Mapping[Gauge, float]:
        unpublished = max(0, (self.settled_offset or 0) - self._published_offset)
        return {**super().figures(), metrics.PARKED_RUN: self._run.length, metrics.UNPUBLISHED_RECORDS: unpublished}

    async def _work_from(self, position: Position) -> None:
        await self._store.check_key()  # here: what is committed is published also without
        publishing: asyncio.Task[None] | None = None
        reading = asyncio.create_task(self._next_batch(position))
        try:
            while not self._stopping.is_set():
                self._check_run()  # here, so that it also holds when a publication has failed meanwhile
                batch = await reading
                if batch is not None:
                    failpoints.reach("ledger.read")
                    self.waiting.begun(batch.decoded[0].offset, batch.decoded[0].time_us // 1_000)
                    # The next batch is read and decoded while PostgreSQL works on this one: only reading runs ahead.
                    reading = asyncio.create_task(self._next_batch(position.behind(batch.last)))
                    settled = await self._settle(position, batch)  # the one transaction: before anything is told
                    position = settled.position
                    if publishing is not None:
                        await publishing  # at most one batch is committed and not yet published
                    # The next batch settles while this one is published: outcomes are of committed verdicts only.
                    publishing = asyncio.create_task(self._publish(settled))
                    # Kept by the publication alone, so that the end of its verdicts comes while PostgreSQL is busy.
                    del batch, settled
                    self._pace.succeeded()
                else:
                    reading = asyncio.create_task(self._next_batch(position))
                    if publishing is not None:
                        await publishing
                        publishing = None
                    position = await self._acknowledge(position)
                    await self._store.confirm(position)  # a restored database must not wait for the next record
            if publishing is not None:
                await publishing
                publishing = None
            await self._acknowledge(position)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if publishing is not None:
                await self._give_up(publishing)

    async def _next_batch(self, position: Position) -> Batch | None:
        """What comes next in the line, or nothing after an idle moment."""
        crowded = self._filled or await self._gathering.wait()  # where more is there than fits, nothing is gathered
        self._filled = False
        began_ns = time.time_ns()
        idle_ms = IDLE_MS if position.published_offset == position.next_offset else FIRST_IDLE_MS
        step = await poll_behind(self._line, position, max_records=STEP_RECORDS, timeout_ms=idle_ms)
        decoded: list[LineRecord] = []
        traces: dict[int, bytes] = {}
        answers: list[Fetched] = []
        size = 0
        last = None
        records_max = max(BATCH_RECORDS_MAX >> min(self._pace.failures, HALVINGS_MAX), 1)
        while step:
            found, traced = wire.decode_all(step)
            decoded += found
            traces |= traced
            last = step[-1]
            if self._line.answer not in answers[-1:]:
                answers.append(self._line.answer)
                size += self._line.answer.size
                if self._line.answer.has(_AWAITED):
                    self._unawaited = 0
            self._filled = len(decoded) >= records_max or size >= ANSWERS_BYTES_MAX
            if self._filled:
                break
            await asyncio.sleep(0)  # in small steps: the transaction under way must not wait for its turn
            more = crowded and self._line.known_end() > self._line.position()
            step_max = min(STEP_RECORDS, records_max - len(decoded))
            step = await self._line.take(max_records=step_max, timeout_ms=ANSWER_MS if more else 0)
        if last is None:
            return None
        self._unawaited += 1
        self._gathering.begin(len(decoded), patient=self._unawaited > PATIENT_BEHIND)
        if self._known:
            decoded = [self._as_known(one) for one in decoded]
        (kept,) = to_records([last])
        return Batch(decoded, kept, traces, answers, (began_ns, time.time_ns()))

    def _as_known(self, decoded: LineRecord) -> LineRecord:
        known = self._known.get(decoded.offset)
        return decoded if known is None else park_known(decoded, known.reason, known.message)

    async def _settle(self, position: Position, batch: Batch, *, again: bool = False) -> Settled:
        """Settle the batch; what PostgreSQL can't store is bisected, left half first, until the one is found."""
        after = self._acknowledged(position.behind(batch.last))
        began_s = time.monotonic()
        try:
            line = self._topics.line, self._partition
            with batch_traces.process(*line, len(batch), batch.traces, batch.polled_ns, SETTLING):
                verdicts, self._run = await self._store.settle(position, after, batch.decoded, self._run)
        except DatabaseRefused as error:
            if len(batch) == 1:
                return await self._settle(position, _unstorable(batch, error), again=again)
            middle = len(batch) // 2
            left = await self._settle(position, batch.part(0, middle), again=again)
            if self._run.reached:
                return left  # it may be shorter than asked for, and what is behind it waits for a person
            return left + await self._settle(left.position, batch.part(middle, len(batch)), again=again)
        except DeadLetterRun as error:
            return await self._settle(position, batch.part(0, error.length), again=again)
        except BooksWrong as error:
            if again:
                raise
            self.log.error("books_doubted", error=str(error))
            return await self._settle(position, batch, again=True)
        took_s = time.monotonic() - began_s
        self._gathering.took(took_s)
        self.settled_offset = after.next_offset
        tally.count(verdicts, took_s)
        if self._known:
            self._known = {offset: found for offset, found in self._known.items() if offset >= after.next_offset}
        return Settled(verdicts, batch.traces, batch.answers, after)

    async def _publish(self, settled: Settled) -> None:
        """Outcomes and dead letters of a committed batch; the published position moves once both are acknowledged."""
        told = wire.outcome_messages(self._topics.line, self._partition, settled.verdicts, settled.traces)
        parked = [verdict for verdict in settled.verdicts if isinstance(verdict, Parked) and not verdict.known]
        records = records_again(settled.answers, {verdict.offset for verdict in parked}) if parked else {}
        traces, next_offset = settled.traces, settled.position.next_offset
        del settled  # the answers are not needed any more
        await self._append(told, [(records[verdict.offset], verdict) for verdict in parked], traces)
        self._published_offset = next_offset

    async def _append(self, told: Iterable[Message], parked: Sequence[tuple[Record, Parked]], traces: Traces) -> None:
        dlq_offset = self._dlq_offset
        if parked:
            batch_traces.dead_lettered(self._topics.line, self._partition, parked)
            dead = (
                wire.dead_letter_message(self._topics.line, self._partition, record, verdict.reason, verdict.message)
                for record, verdict in parked
            )
            began_ns = time.time_ns()
            appended = await self._producer.append(self._topics.dlq, self._partition, dead)
            dead_traces = batch_traces.only(traces, (record.offset for record, _ in parked))
            batch_traces.sent(self._topics.dlq, self._partition, dead_traces, began_ns)
            dlq_offset = appended[-1].offset + 1
            failpoints.reach("ledger.dead_letters_published")
        began_ns = time.time_ns()
        # Made while they are sent: the broker has the first of them before the last is there.
        await self._producer.append(self._topics.outcomes, self._partition, told)
        batch_traces.sent(self._topics.outcomes, self._partition, traces, began_ns)
        failpoints.reach("ledger.outcomes_published")
        # Now, not before: a crash must find again the dead letters of what it publishes again, and of what is to come.
        if not self._known:
            self._dlq_offset = dlq_offset

    async def _acknowledge(self, position: Position) -> Position:
        """Note in the table that all is published, while there is nothing to settle."""
        after = self._acknowledged(position)
        if after != position:
            await self._store.acknowledge(position, after)
            failpoints.reach("ledger.acknowledged")
        return after

    def _acknowledged(self, position: Position) -> Position:
        return replace(position, published_offset=self._published_offset, dlq_offset=self._dlq_offset)

    async def _take_position(self) -> Position:
        """The table's position, once the log is known to be the log and all that is committed is published."""
        position = await self._store.position(self._partition)
        if not self._run.reached:  # one that is stays so, whatever has interrupted it
            self._run = await self._store.parked_run(position, self._run.limit)
        await check_log(self._line, position, position.published_offset)
        published = await self._read_dead_letters(position)
        await self._publish_again(position, published)
        failpoints.reach("ledger.published_again")
        self._published_offset = position.next_offset
        await self._line.seek(position.next_offset)
        self.settled_offset = position.next_offset
        self.log.info("position_taken", next_offset=position.next_offset, published_offset=position.published_offset)
        return await self._acknowledge(position)

    async def _read_dead_letters(self, position: Position) -> set[int]:
        """Learn which tickets ahead are dead letters already; returns those behind the position that are, too."""
        begin, end = await self._dlq.bounds()
        if not begin <= position.dlq_offset <= end:
            raise NotTheLog(f"the DLQ has {begin} to {end}, not the position {position.dlq_offset}: another topic")
        self._known.clear()
        published: set[int] = set()
        async for records in self._dlq.read(position.dlq_offset, end):
            for record in records:
                found = wire.parse_dead_letter(record)
                if found is None or (found.line_topic, found.failed.partition) != (self._topics.line, self._partition):
                    continue
                if found.failed.offset >= position.next_offset:
                    self._known[found.failed.offset] = found
                else:
                    published.add(found.failed.offset)
        self._dlq_offset = position.dlq_offset if self._known else end
        return published

    async def _publish_again(self, position: Position, published: set[int]) -> None:
        """What is committed but not known to be published, from the tables; `published` dead letters are there."""
        start = position.published_offset
        async for records in self._line.read(start, position.next_offset):
            end = records[-1].offset + 1
            rows = await self._store.verdicts(self._partition, start, end)
            found = {outcome.offset: (outcome, parked) for outcome, parked in rows}
            missing = [record.offset for record in records if record.offset not in found]
            if missing:
                await self._store.confirm(position)  # a database that was restored meanwhile is taken as it is
                raise Halted(
                    f"published_offset is {position.published_offset}, and behind it are settled records without a "
                    f"verdict: {missing[:10]}; restore their rows from a backup and restart; if they were removed on "
                    f"purpose, set published_offset to {missing[-1] + 1} first: all before it stays unpublished then"
                )
            settled = [(record, *found[record.offset]) for record in records]
            parked = [(r, verdict) for r, _, verdict in settled if verdict is not None and r.offset not in published]
            traces = batch_traces.traceparents(records)
            line = self._topics.line, self._partition
            told = [wire.outcome_message(*line, outcome, traces.get(outcome.offset)) for _, outcome, _ in settled]
            await self._append(told, parked, traces)
            start = end

    def _check_run(self) -> None:
        if self._run.reached:
            raise TooManyDeadLetters(
                f"{self._run.length} records in a row were parked; after the cause is known, "
                "a restart with FIRSTCOME_DEAD_LETTER_RUN_MAX=0 lets them through"
            )

    async def _before_standing_still(self, error: Exception) -> None:
        """Publish what is committed, as far as that works: the left part of a batch, or a publication that failed."""
        if isinstance(error, (BooksWrong, TooManyDeadLetters)):  # never where the log is not the log
            try:
                await self._take_position()
            except Exception as left:
                self.log.warning("publication_left_to_the_restart", error=f"{type(left).__name__}: {left}")

    async def _give_up(self, publishing: asyncio.Task[None]) -> None:
        """Let a publication end by itself or by its own time limit; taking the position again publishes the rest."""
        with contextlib.suppress(KafkaAway):
            await publishing


def _unstorable(batch: Batch, error: DatabaseRefused) -> Batch:
    record = batch.decoded[0]
    if isinstance(record, Unprocessable):
        raise BooksWrong(f"the parked record at {record.offset} can't be stored: {error}") from error
    return replace(batch, decoded=[park(record, ParkReason.UNSTORABLE, printable(str(error)))])
