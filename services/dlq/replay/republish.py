"""REPUBLISH: the outcomes of a range to another topic, for a consumer that is new. They keep their `ce_id`.

They are made from the verdict tables and the line, as the ledger makes them again after a crash, since the outcomes
topic may have let go of old ones. At least once: `ce_id` tells the same from another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncEngine

from services.dlq.replay.job import HeldJob, JobFailed, log_lost
from services.dlq.replay.span import MakeReader, Ranges, Span
from services.runtime import wire
from services.runtime.kafka import TRACEPARENT, Message, Record, RecordProducer, target_faults
from services.runtime.postgres import connection
from services.runtime.rpc_errors import Violation, invalid
from services.runtime.settled import settled_between

PIECE_RECORDS = 1_000


class Republish:
    def __init__(
        self,
        bootstrap: str,
        line_topic: str,
        partition_count: int,
        ranges: Ranges,
        engine: AsyncEngine,
        producer: RecordProducer,
        make_reader: MakeReader,
    ) -> None:
        self._bootstrap = bootstrap
        self._line_topic = line_topic
        self._partition_count = partition_count
        self._ranges = ranges
        self._engine = engine
        self._producer = producer
        self._make_reader = make_reader

    async def run(self, held: HeldJob) -> None:
        """Raises JobLost, JobInterrupted, JobFailed, KafkaAway, DatabaseAway, OutOfLog."""
        job = held.job
        faults = await target_faults(self._bootstrap, self._partition_count, job.target_topic)
        if faults:  # it was in order when the job was created
            raise JobFailed(invalid([Violation("replay_job.target_topic", fault) for fault in faults]).status())
        left = _parse(held.checkpoint) if held.checkpoint else await self._begin(held)
        if job.dry_run and not job.range.coupon_id:
            return
        for number, span in enumerate(left):
            await self._span(held, span, left[number + 1 :])

    async def _begin(self, held: HeldJob) -> list[Span]:
        """What is settled now is the job's; what comes later, a consumer reads from the outcomes."""
        job = held.job
        settled = await self._ranges.settled()
        left = await self._ranges.spans(job.range, await self._ranges.partitions(job.range), settled)
        job.matched_count = sum(len(span) for span in left)
        held.checkpoint = _text(left)
        await held.save()
        return left

    async def _span(self, held: HeldJob, span: Span, behind: Sequence[Span]) -> None:
        line = self._make_reader(self._line_topic, span.partition)
        try:
            begin, end = await line.bounds()
            if len(span) and not begin <= span.start <= span.end <= end:
                raise log_lost(f"partition {span.partition} of the line has {begin} to {end}, not what was settled")
            async for records in line.read(span.start, span.end, max_records=PIECE_RECORDS):
                held.check()
                await self._publish(held, span, behind, records)
                span = replace(span, start=records[-1].offset + 1)
            self._advance(held, span, span.end, behind, matched=0)  # offsets without records
            await held.save()
        finally:
            await line.stop()

    async def _publish(self, held: HeldJob, span: Span, behind: Sequence[Span], records: Sequence[Record]) -> None:
        """The outcomes of these records, in turns of at most the job's rate; each turn is noted."""
        told = await self._outcomes(span, records)
        size = held.batch_max(PIECE_RECORDS)
        for at in range(0, len(told), size):
            turn = told[at : at + size]
            if not held.job.dry_run:
                await held.turn(size)
                await self._producer.append(held.job.target_topic, span.partition, [one.message for one in turn])
            held.job.done_count += len(turn)
            span = self._advance(held, span, turn[-1].offset + 1, behind, matched=len(turn))
            await held.save()
        self._advance(held, span, records[-1].offset + 1, behind, matched=0)
        await held.save_sometimes()

    def _advance(self, held: HeldJob, span: Span, start: int, behind: Sequence[Span], *, matched: int) -> Span:
        """The span from `start` on; what was no match of what is passed does not count."""
        held.job.matched_count -= start - span.start - matched
        left = replace(span, start=start)
        held.checkpoint = _text([left, *behind])
        return left

    async def _outcomes(self, span: Span, records: Sequence[Record]) -> list[_Told]:
        async with connection(self._engine) as db:
            settled = await settled_between(db, span.partition, records[0].offset, records[-1].offset + 1)
        found = {one.outcome.offset: one.outcome for one in settled}
        missing = [record.offset for record in records if record.offset not in found]
        if missing:
            raise log_lost(
                f"partition {span.partition}: settled records without a verdict: {missing[:10]}; run an AUDIT"
            )
        key = None if span.coupon_id is None else span.coupon_id.encode()
        told = []
        for record in records:
            outcome = found[record.offset]
            if key is None or outcome.key == key:
                traceparent = record.header(TRACEPARENT)
                message = wire.outcome_message(self._line_topic, span.partition, outcome, traceparent)
                told.append(_Told(record.offset, message))
        return told


@dataclass(frozen=True, slots=True)
class _Told:
    offset: int
    message: Message


def _text(left: Sequence[Span]) -> str:
    return json.dumps([[one.partition, one.start, one.end, one.coupon_id] for one in left])


def _parse(checkpoint: str) -> list[Span]:
    return [Span(*one) for one in json.loads(checkpoint)]
