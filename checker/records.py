"""What the checker reads, as values: records of the topics and rows of the tables. Times are microseconds since the
Unix epoch unless a name says `_ms`; offsets are Kafka's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[str, bytes | None], ...]

PRELOADED_PARTITION = -1
"""Rows under this ticket partition were put into the tables by hand (a benchmark's old winners): nobody's line."""


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """A place in the line, written ``<partition>-<offset>``."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"


@dataclass(frozen=True, slots=True)
class Record:
    """A record of any of the three topics, bytes as they are on the broker."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class IssuedRow:
    """A row of `user_coupon`."""

    ticket: Ticket
    coupon_id: str
    user_id: str
    request_id: str
    sequence: int
    redrive_of: str | None
    accepted_us: int
    settled_us: int


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row of `rejected_issue`; the reason PARKED is one of them."""

    ticket: Ticket
    coupon_id: str | None
    user_id: str | None
    request_id: str | None
    reason: str
    detail: str | None
    issued_ticket: str | None
    issued_sequence: int | None
    redrive_of: str | None
    accepted_us: int
    settled_us: int


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A row of `coupon_change`; `outcome` is the CouponChangedEvent that was published."""

    ticket: Ticket
    coupon_id: str
    request_id: str
    result: str
    outcome: bytes
    caller: str
    redrive_of: str | None
    accepted_us: int
    settled_us: int


VerdictRow: TypeAlias = IssuedRow | RejectedRow | ChangeRow


@dataclass(frozen=True, slots=True)
class CouponRow:
    """A row of `coupon`."""

    coupon_id: str
    partition: int
    display_name: str
    total: int
    remaining: int
    issued: int
    start_us: int | None
    end_us: int | None
    switch: str
    etag: str
    create_us: int
    update_us: int


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """A row of `dead_letter`, filed under the original ticket. `headers` as on the line."""

    ticket: Ticket
    state: str
    reason: str
    attempt_count: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class Progress:
    """A row of `ledger_progress`."""

    topic: str
    partition: int
    next_offset: int
    published_offset: int
