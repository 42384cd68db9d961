"""The outcomes topic of one partition against the rows of the tables."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from coupon.v1 import events_pb2

from checker.classify import header
from checker.findings import Check, Findings
from checker.outcomes import (
    NO_DIGEST,
    content_digest,
    digest,
    event_of,
    parse_event,
    time_ms,
)
from checker.records import Record, Ticket, VerdictRow
from checker.tally import Tally


class Published:
    """What the outcomes of one partition must be, by offset, as digests: a million of them take 40 MB."""

    def __init__(self, findings: Findings, tally: Tally, line_topic: str, partition: int) -> None:
        self._findings = findings
        self._tally = tally
        self._line_topic = line_topic
        self._partition = partition
        self._expected = array("q")
        self._envelope = array("q")
        self._seen = array("q")
        self._times_ms = array("q")
        self._first_told_ms = array("q")
        self._stray_grants: dict[tuple[str, str], Ticket] = {}
        self.count = 0
        self.repeated = 0
        self.duplicates = 0
        self._first_offset_seen: int | None = None

    def expect(self, record: Record, row: VerdictRow) -> None:
        """The next record of the line and its row."""
        self._grow(record.offset)
        ce_type, value = event_of(row)
        key = None if row.coupon_id is None else row.coupon_id.encode()
        self._expected[record.offset] = digest(ce_type, value)
        traceparent = header(record.headers, "traceparent") or None
        self._envelope[record.offset] = digest(key, traceparent, b"1.0", b"application/protobuf")
        self._times_ms[record.offset] = record.timestamp_ms

    def add(self, records: Sequence[Record]) -> None:
        """Take in records of the outcomes topic, once the line's partition has been read."""
        for record in records:
            self.count += 1
            offset = self._offset(record)
            if offset is None:
                self._findings.add(
                    Check.OUTCOME_WITHOUT_ROW,
                    f"outcome {Ticket(record.partition, record.offset)} has the ce_id "
                    f"{header(record.headers, 'ce_id')!r}, which is no verdict of this partition",
                )
                self._grant_without_row(record)
                continue
            if self._first_offset_seen is None:
                self._first_offset_seen = offset
            content = content_digest(record)
            earlier = self._seen[offset]
            if earlier != NO_DIGEST:
                self.repeated += 1
                if earlier == content:
                    continue
                self._findings.add(
                    Check.OUTCOME_CONTRADICTORY,
                    f"outcome {Ticket(record.partition, record.offset)} is not what an earlier one said",
                    ticket=Ticket(self._partition, offset),
                )
            else:
                self._seen[offset] = content
                self._first_told_ms[offset] = record.timestamp_ms
            self._compare(record, offset)

    def finish(self, outcomes_begin: int) -> None:
        """To be called behind the last outcome: every row must have had one.

        Outcomes are kept for some days only. If theirs no longer begin at 0, what lies before the first that is left
        may be gone, lawfully.
        """
        count = len(self._times_ms)
        start = 0 if outcomes_begin == 0 else count if self._first_offset_seen is None else self._first_offset_seen
        for offset in range(start, count):
            if self._expected[offset] != NO_DIGEST and self._seen[offset] == NO_DIGEST:
                self._findings.add(
                    Check.OUTCOME_MISSING, "has a row, but no outcome", ticket=Ticket(self._partition, offset)
                )

    def told_us(self, offset: int) -> int:
        """By when the verdict of that record was on the outcomes topic; 0 where it is not there."""
        return self._first_told_ms[offset] * 1000 if offset < len(self._first_told_ms) else 0

    def all_told_us(self, accepted_us_max: int) -> int:
        """By when the verdicts of all records that the line took by then were on the outcomes topic."""
        pairs = zip(self._times_ms, self._first_told_ms, strict=True)
        return max((told_ms for time_ms_, told_ms in pairs if time_ms_ * 1000 <= accepted_us_max), default=0) * 1000

    def _grow(self, offset: int) -> None:
        missing = offset + 1 - len(self._times_ms)
        if missing > 0:
            more = [0] * missing
            for by_offset in (self._expected, self._envelope, self._seen, self._times_ms, self._first_told_ms):
                by_offset.extend(more)

    def _offset(self, record: Record) -> int | None:
        ce_id = (header(record.headers, "ce_id") or b"").decode(errors="replace")
        topic, _, rest = ce_id.rpartition("/")
        if topic != f"{self._line_topic}/{self._partition}" or not rest.isdecimal():
            return None
        offset = int(rest)
        if offset >= len(self._times_ms) or self._expected[offset] == NO_DIGEST:
            return None
        return offset

    def _compare(self, record: Record, offset: int) -> None:
        ticket, place = Ticket(self._partition, offset), Ticket(record.partition, record.offset)
        ce_type = header(record.headers, "ce_type")
        expected = self._expected[offset]
        if digest(ce_type, record.value) != expected:
            event = parse_event(ce_type, record.value)
            # Protobuf may be written in more than one way.
            if event is None or digest(ce_type, event.SerializeToString(deterministic=True)) != expected:
                said = " ".join(str(event).split()) if event is not None else "not an outcome event"
                self._findings.add(
                    Check.OUTCOME_DIFFERS, f"outcome {place} is not as the row has it: {said}", ticket=ticket
                )
                self._grant_without_row(record)
        envelope = digest(
            record.key,
            header(record.headers, "traceparent") or None,
            header(record.headers, "ce_specversion"),
            header(record.headers, "content-type"),
        )
        if (
            envelope != self._envelope[offset]
            or time_ms(header(record.headers, "ce_time")) != self._times_ms[offset]
            or not header(record.headers, "ce_source")
        ):
            self._findings.add(
                Check.OUTCOME_DIFFERS,
                f"outcome {place}: its key or headers do not follow from the line's record: {record.key!r} "
                f"{record.headers}",
                ticket=ticket,
            )

    def _grant_without_row(self, record: Record) -> None:
        """A grant that the tables do not have at that ticket may be the second that its user was told of."""
        event = parse_event(header(record.headers, "ce_type"), record.value)
        if not isinstance(event, events_pb2.CouponIssuedEvent):
            return
        place = Ticket(record.partition, record.offset)
        key = (event.coupon_id, event.user_id)
        other = self._tally.grant_of(*key) or self._stray_grants.get(key)
        if other is not None and str(other) != event.ticket:
            self.duplicates += 1
            self._findings.add(
                Check.TWICE_IN_OUTCOMES,
                f"outcome {place} grants {event.coupon_id} to {event.user_id} by {event.ticket}, who has it by {other}",
                coupon_id=event.coupon_id,
            )
        self._stray_grants.setdefault(key, place)
