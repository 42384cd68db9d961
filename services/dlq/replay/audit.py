"""AUDIT: runs the log through the model and names every difference to the tables, while traffic runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

from coupon.v1 import replay_pb2

from services.dlq.replay.audit_model import Difference, PartitionModel, stray
from services.dlq.replay.audit_rows import AuditRows, Rows, Snapshot, parked_by_the_service
from services.dlq.replay.job import DIFFERENCES_SHOWN_MAX, HeldJob, log_lost
from services.dlq.replay.span import MakeReader, Ranges, Span
from services.domain.decide import park_known
from services.domain.model import LineRecord, ParkReason, Ticket
from services.runtime import wire
from services.runtime.kafka import PartitionReader, Record
from services.runtime.progress import LastRecord, Position

PIECE_RECORDS = 2_000
"""How many records are compared at once."""
STEP_RECORDS = 250
"""How many are decoded, about 1 ms, before other tasks get their turn."""
DIFFERENCES_MAX = 100_000
"""Beyond it the tables are not those of this log, and there is nothing more to learn."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the log, start <= offset < end, beside the rows that the tables have of it."""

    start: int
    end: int
    records: list[Record]
    decoded: list[LineRecord]
    rows: Rows


@dataclass(frozen=True, slots=True)
class _Done:
    """What a taken-over audit begins with: the partitions that are done, and the counts as they were behind them."""

    partitions: tuple[int, ...] = ()
    done_count: int = 0
    difference_count: int = 0

    @classmethod
    def parse(cls, checkpoint: str) -> _Done:
        if not checkpoint:
            return cls()
        partitions, done_count, difference_count = json.loads(checkpoint)
        return cls(tuple(partitions), done_count, difference_count)

    def text(self) -> str:
        return json.dumps([self.partitions, self.done_count, self.difference_count])


class Audit:
    """Reads the line, the DLQ and the tables, partition by partition. Changes nothing."""

    def __init__(
        self,
        line_topic: str,
        dlq_topic: str,
        partition_count: int,
        ranges: Ranges,
        rows: AuditRows,
        make_reader: MakeReader,
    ) -> None:
        self._line_topic = line_topic
        self._dlq_topic = dlq_topic
        self._partition_count = partition_count
        self._ranges = ranges
        self._rows = rows
        self._make_reader = make_reader

    async def run(self, held: HeldJob) -> None:
        """Audit what is not done yet. Raises JobLost, JobInterrupted, JobFailed, KafkaAway, DatabaseAway, OutOfLog."""
        job, done = held.job, _Done.parse(held.checkpoint)
        job.done_count, job.difference_count = done.done_count, done.difference_count
        del job.differences[min(done.difference_count, DIFFERENCES_SHOWN_MAX) :]
        partitions = [p for p in await self._ranges.partitions(job.range) if p not in done.partitions]
        ends = await self._ranges.settled()
        ahead = {span.partition: len(span) for span in await self._ranges.spans(job.range, partitions, ends)}
        job.matched_count = job.done_count + sum(ahead.values())
        await held.save()
        if job.dry_run and not job.range.coupon_id:
            return
        for partition in partitions:
            await self._partition(held, partition, ahead.pop(partition, 0))
            done = _Done((*done.partitions, partition), job.done_count, job.difference_count)
            job.matched_count = job.done_count + sum(ahead.values())
            held.checkpoint = done.text()
            await held.save()
        if job.range == replay_pb2.LogRange() and not job.dry_run:
            _report(job, (stray(table, ticket, row) for table, ticket, row in await self._rows.nowhere()))

    async def _partition(self, held: HeldJob, partition: int, expected_length: int) -> None:
        """Audit one partition up to where it is settled now: what is settled meanwhile is another audit's."""
        job = held.job
        snapshot = await self._rows.snapshot(partition)
        (span,) = await self._ranges.spans(job.range, [partition], {partition: snapshot.next_offset})
        job.matched_count += len(span) - expected_length
        line = self._make_reader(self._line_topic, partition)
        dlq = self._make_reader(self._dlq_topic, partition)
        try:
            await _PartitionAudit(held, self._partition_count, self._line_topic, self._rows, span, snapshot).run(
                line, dlq
            )
        finally:
            await asyncio.gather(line.stop(), dlq.stop())


class _PartitionAudit:
    """One partition. The model begins with the first record, whatever the span; only the span is reported."""

    def __init__(
        self,
        held: HeldJob,
        partition_count: int,
        line_topic: str,
        rows: AuditRows,
        span: Span,
        snapshot: Snapshot,
    ) -> None:
        self._held = held
        self._job = held.job
        self._line_topic = line_topic
        self._rows = rows
        self._span = span
        self._snapshot = snapshot
        self._partition = span.partition
        self._model = PartitionModel(span.partition, partition_count)
        self._known: dict[int, tuple[ParkReason, str]] = {}

    async def run(self, line: PartitionReader, dlq: PartitionReader) -> None:
        begin, log_end = await line.bounds()
        if begin > 0 and self._span.end > 0:
            raise log_lost(f"partition {self._partition} of the line begins at {begin}: the model needs it from 0 on")
        await self._read_dead_letters(dlq)
        last: Record | None = None
        async for piece in self._pieces(line):
            await self._compare(piece)
            last = piece.records[-1] if piece.records else last
            await self._held.save_sometimes()
        if self._job.dry_run:
            return
        if self._span.end == self._snapshot.next_offset:
            self._report(self._model.coupon_differences(self._snapshot.coupons), whole=True)
            if self._span.coupon_id is None:
                strays = (stray(t, Ticket(self._partition, row[0]), row) for t, row in self._snapshot.strays)
                self._report(strays, whole=True)
                self._report(self._progress_differences(last, log_end), whole=True)

    async def _pieces(self, line: PartitionReader) -> AsyncIterator[_Piece]:
        """The log up to the span's end, without gaps; the next piece is read while one is compared."""
        pieces = self._read_pieces(line)
        reading = asyncio.ensure_future(anext(pieces, None))
        try:
            while (piece := await reading) is not None:
                reading = asyncio.ensure_future(anext(pieces, None))
                yield piece
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await pieces.aclose()

    async def _read_pieces(self, line: PartitionReader) -> AsyncGenerator[_Piece, None]:
        start, size = 0, self._held.batch_max(PIECE_RECORDS)
        async for records in line.read(0, self._span.end, max_records=size):
            await self._held.turn(size)
            yield await self._piece(start, records[-1].offset + 1, records)
            start = records[-1].offset + 1
        if start < self._span.end:
            yield await self._piece(start, self._span.end, [])  # offsets without records have no rows

    async def _piece(self, start: int, end: int, records: list[Record]) -> _Piece:
        rows = asyncio.ensure_future(self._rows.between(self._partition, start, end))
        decoded: list[LineRecord] = []
        try:
            for at in range(0, len(records), STEP_RECORDS):
                await asyncio.sleep(0)
                step, _ = wire.decode_all(records[at : at + STEP_RECORDS])
                decoded += map(self._as_known, step)
        finally:
            found = await rows
        unpublished = parked_by_the_service(found, self._snapshot.published_offset)
        if unpublished:
            decoded = [
                park_known(one, *unpublished[one.offset]) if one.offset in unpublished else one for one in decoded
            ]
        return _Piece(start, end, records, decoded, found)

    def _as_known(self, decoded: LineRecord) -> LineRecord:
        known = self._known.get(decoded.offset)
        return decoded if known is None else park_known(decoded, *known)

    async def _compare(self, piece: _Piece) -> None:
        span, job = self._span, self._job
        inside = [one for one in piece.decoded if one.offset >= span.start]
        if span.coupon_id is not None:
            mine = sum(one.coupon_id == span.coupon_id for one in inside)
            job.matched_count -= max(piece.end - max(piece.start, span.start), 0) - mine
        else:
            mine = max(piece.end - max(piece.start, span.start), 0)
        job.done_count += mine
        if job.dry_run:
            return
        unknown = self._model.unknown(piece.decoded)
        elsewhere = await self._rows.elsewhere(self._partition, unknown) if unknown else frozenset()
        keys = self._model.lookups(piece.decoded, piece.rows)
        earlier = await self._rows.grants_before(self._partition, piece.start, keys) if keys else {}
        self._report(self._model.compare(piece.decoded, piece.rows, earlier, elsewhere))

    async def _read_dead_letters(self, dlq: PartitionReader) -> None:
        """What the DLQ says decides over what a record decodes to; and the dlq has stored what it has read of it."""
        begin, end = await dlq.bounds()
        if begin > 0:
            raise log_lost(f"partition {self._partition} of the DLQ begins at {begin}: the model needs it from 0 on")
        texts: dict[tuple[ParkReason, str], tuple[ParkReason, str]] = {}
        position, last = self._snapshot.dlq_position, None
        stored = position.next_offset if position is not None else 0
        async for records in dlq.read(0, end, max_records=STEP_RECORDS):
            fresh: dict[Ticket, wire.DeadLetterRecord] = {}
            for record in records:
                last = record if record.offset < stored else last
                found = wire.parse_dead_letter(record)
                if found is None or (found.line_topic, found.failed.partition) != (self._line_topic, self._partition):
                    continue
                told = found.reason, found.message
                self._known[found.failed.offset] = texts.setdefault(told, told)  # few texts, many dead letters
                if record.offset < stored and found.failed == found.original:
                    fresh[found.failed] = found
            if fresh and not self._job.dry_run:
                await self._compare_dead_letters(fresh)
        if position is not None and self._whole:
            self._report(_position_differences("DLQ", position, last, end), whole=True)

    async def _compare_dead_letters(self, told: Mapping[Ticket, wire.DeadLetterRecord]) -> None:
        rows = await self._rows.dead_letters(list(told))
        for ticket, found in told.items():
            row = rows.get(ticket)
            if row != (found.key, found.value):
                coupon_id, user_id, _ = wire.ids_of(found.headers, found.value)
                texts = _dead_letter_text((found.key, found.value)), _dead_letter_text(row)
                self._report([Difference(ticket, coupon_id or "", user_id or "", *texts)])

    @property
    def _whole(self) -> bool:
        """Whether the audit is of all that the partition has."""
        span = self._span
        return (span.start, span.end, span.coupon_id) == (0, self._snapshot.next_offset, None) and not self._job.dry_run

    def _progress_differences(self, last: Record | None, log_end: int) -> list[Difference]:
        position = self._snapshot.position
        if position is None:
            return []
        differences = _position_differences("line", position, last, log_end)
        if not 0 <= position.published_offset <= position.next_offset:
            bounds = f"ledger_progress: published_offset from 0 to {position.next_offset}"
            found = f"ledger_progress: published_offset={position.published_offset}"
            differences.append(Difference(Ticket(self._partition, position.next_offset), "", "", bounds, found))
        return differences

    def _report(self, differences: Iterable[Difference], *, whole: bool = False) -> None:
        """`whole`: not of one ticket, so the span's offsets do not matter."""
        span = self._span
        _report(
            self._job,
            (
                one
                for one in differences
                if (whole or one.ticket is None or span.start <= one.ticket.offset < span.end)
                and (span.coupon_id is None or one.coupon_id == span.coupon_id)
            ),
        )


def _position_differences(of: str, position: Position, last: Record | None, log_end: int) -> list[Difference]:
    """Whether a row of ledger_progress is about this log. `last`: the log's last record before its next_offset."""
    differences = []
    ticket = Ticket(position.partition, position.next_offset)
    if position.next_offset > log_end:
        expected = f"ledger_progress of the {of}: next_offset at most {log_end}"
        found = f"ledger_progress of the {of}: next_offset={position.next_offset}"
        differences.append(Difference(ticket, "", "", expected, found))
    known = LastRecord.of(last) if last is not None else None
    if position.last != known:
        differences.append(
            Difference(ticket, "", "", _last_text(of, known), _last_text(of, position.last)),
        )
    return differences


def _last_text(of: str, last: LastRecord | None) -> str:
    if last is None:
        return f"ledger_progress of the {of}: no last record"
    return (
        f"ledger_progress of the {of}: last_offset={last.offset} last_timestamp={last.timestamp_ms} "
        f"last_checksum={last.checksum}"
    )


def _dead_letter_text(row: tuple[bytes | None, bytes | None] | None) -> str:
    if row is None:
        return "no row"
    key, value = (("NULL" if part is None else part.hex()) for part in row)
    return f"dead_letter: key={key} value={value}"[:512]


def _report(job: replay_pb2.ReplayJob, differences: Iterable[Difference]) -> None:
    """Count them, and show the first. Raises JobFailed where there are too many to go on."""
    for one in differences:
        job.difference_count += 1
        if len(job.differences) < DIFFERENCES_SHOWN_MAX:
            job.differences.add(
                ticket="" if one.ticket is None else str(one.ticket),
                coupon_id=one.coupon_id,
                user_id=one.user_id,
                expected=one.expected,
                found=one.found,
            )
        if job.difference_count >= DIFFERENCES_MAX:
            raise log_lost(f"stopped after {DIFFERENCES_MAX} differences: the tables are not those of this log")
