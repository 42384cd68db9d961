"""Dead letters: those on the DLQ against the parked rows and the records of the line, and the table against both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from checker.classify import header, parse_ticket
from checker.compare import park_reason
from checker.findings import Check, Findings
from checker.model import TAKEN_FROM_DLQ
from checker.outcomes import content_digest
from checker.records import DeadLetterRow, Record, RejectedRow, Ticket

ADDED_HEADERS = (
    "dlq-original-topic",
    "dlq-original-partition",
    "dlq-original-offset",
    "dlq-original-timestamp",
    "dlq-reason",
    "dlq-error-message",
    "dlq-attempt",
    "dlq-first-failed-at",
)
ERROR_MESSAGE_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class _DeadLetter:
    """A dead letter in short. `content` stands for the line's bytes in it, `whole` for all of it."""

    place: Ticket
    timestamp_ms: int
    reason: str
    content: int
    whole: int


class DeadLetters:
    """The dead letters of all partitions; what is found goes to `findings`."""

    def __init__(self, findings: Findings, line_topic: str) -> None:
        self._findings = findings
        self._line_topic = line_topic
        self._open: dict[Ticket, _DeadLetter] = {}
        # Original ticket to the digest of its record, or None where a redrive of it failed.
        self._filed: dict[Ticket, int | None] = {}
        self.count = 0

    def add(self, records: Sequence[Record]) -> None:
        """Take in records of a DLQ partition, before the line's partition of the same number is looked at."""
        for record in records:
            self.count += 1
            place = Ticket(record.partition, record.offset)
            ticket, letter = self._parse(record, place)
            if ticket is None or letter is None:
                self._findings.add(
                    Check.DEAD_LETTER_WITHOUT_ROW,
                    f"DLQ record {place} names no record of this partition of the line as its original",
                    ticket=ticket,
                )
                continue
            earlier = self._open.setdefault(ticket, letter)
            if earlier.whole != letter.whole:
                self._findings.add(
                    Check.DEAD_LETTER_DIFFERS, f"DLQ records {earlier.place} and {place} of it differ", ticket=ticket
                )

    def reason_of(self, ticket: Ticket) -> str | None:
        """What the DLQ says of a record, if it speaks of one of the reasons that only it can know."""
        letter = self._open.get(ticket)
        return letter.reason if letter is not None and letter.reason in TAKEN_FROM_DLQ else None

    def settle(self, record: Record, row: RejectedRow) -> None:
        """A PARKED row and its record: the dead letter must be there, with the same bytes."""
        ticket = row.ticket
        original = None if row.redrive_of is None else parse_ticket(row.redrive_of)
        own = content_digest(record)
        if original is None:
            self._filed.setdefault(ticket, own)
        else:
            # Whose bytes the row then has (a correction may have been redriven) is the dlq's business.
            self._filed[original] = None
        letter = self._open.pop(ticket, None)
        if letter is None:
            self._findings.add(Check.DEAD_LETTER_MISSING, f"parked ({row.detail}), but not on the DLQ", ticket=ticket)
        elif letter.content != own:
            self._findings.add(
                Check.DEAD_LETTER_DIFFERS, f"bytes of DLQ record {letter.place} are not the line's", ticket=ticket
            )
        elif letter.timestamp_ms != record.timestamp_ms or letter.reason != park_reason(row):
            self._findings.add(
                Check.DEAD_LETTER_DIFFERS,
                f"DLQ record {letter.place} says {letter.reason} at {letter.timestamp_ms} ms; "
                f"the table {row.detail!r}, the line {record.timestamp_ms} ms",
                ticket=ticket,
            )

    def finish_partition(self, partition: int) -> None:
        """To be called behind the last record of the line's partition."""
        for ticket, letter in [item for item in self._open.items() if item[0].partition == partition]:
            del self._open[ticket]
            self._findings.add(
                Check.DEAD_LETTER_WITHOUT_ROW,
                f"DLQ record {letter.place} ({letter.reason}), but the ticket is not PARKED",
                ticket=ticket,
            )

    def compare_rows(self, rows: Sequence[DeadLetterRow]) -> None:
        """Take in rows of the table `dead_letter`, once every partition is finished."""
        for row in rows:
            if row.ticket not in self._filed:
                self._findings.add(
                    Check.DEAD_LETTER_WITHOUT_ROW, f"row {row.state} of a ticket that is not PARKED", ticket=row.ticket
                )
                continue
            own = self._filed.pop(row.ticket)
            as_record = Record(row.ticket.partition, row.ticket.offset, 0, row.key, row.value, row.headers)
            if own is not None and content_digest(as_record) != own:
                self._findings.add(
                    Check.DEAD_LETTER_DIFFERS, "bytes in the table dead_letter are not the line's", ticket=row.ticket
                )

    def finish(self) -> None:
        """To be called behind the last row of the table `dead_letter`."""
        for ticket in self._filed:
            self._findings.add(Check.DEAD_LETTER_NOT_STORED, "parked, but not in the table dead_letter", ticket=ticket)

    def _parse(self, record: Record, place: Ticket) -> tuple[Ticket | None, _DeadLetter | None]:
        added = record.headers[-len(ADDED_HEADERS) :]
        if tuple(name for name, _ in added) != ADDED_HEADERS:
            return None, None
        # From the added ones alone: the line's own headers may have any name.
        topic, partition, offset, time_ms, reason, message, attempt, failed_at = (
            (header((pair,), pair[0]) or b"").decode(errors="replace") for pair in added
        )
        ticket = parse_ticket(f"{partition}-{offset}")
        plausible = (
            topic == self._line_topic
            and ticket is not None
            and ticket.partition == record.partition
            and time_ms.isdecimal()
            and attempt.isdecimal()
            and int(attempt) >= 1
            and failed_at != ""
            and len(message.encode()) <= ERROR_MESSAGE_BYTES_MAX
        )
        if not plausible:
            return ticket, None
        content = content_digest(record, len(record.headers) - len(ADDED_HEADERS))
        return ticket, _DeadLetter(place, int(time_ms), reason, content, content_digest(record))
