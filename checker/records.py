"""What the checker reads, as values: records of the topics and rows of the tables. Times are microseconds since the
Unix epoch unless a name says `_ms`; offsets are Kafka's.

Named tuples, as is whatever there is one of for each record: frozen dataclasses take several times as long to make."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Headers: TypeAlias = tuple[tuple[str, bytes | None], ...]

PRELOADED_PARTITION = -1
"""Rows under this ticket partition were put into the tables by hand (a benchmark's old winners): nobody's line."""


class Ticket(NamedTuple):
    """A place in the line, written ``<partition>-<offset>``."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"


class Record(NamedTuple):
    """A record of any of the three topics, bytes as they are on the broker."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class IssuedRow(NamedTuple):
    """A row of `user_coupon`."""

    ticket: Ticket
    coupon_id: str
    user_id: str
    request_id: str
    sequence: int
    redrive_of: str | None
    accepted_us: int
    settled_us: int


class RejectedRow(NamedTuple):
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


class ChangeRow(NamedTuple):
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


class CouponRow(NamedTuple):
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


class DeadLetterRow(NamedTuple):
    """A row of `dead_letter`, filed under the original ticket. `headers` as on the line."""

    ticket: Ticket
    state: str
    reason: str
    attempt_count: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Progress(NamedTuple):
    """A row of `ledger_progress`."""

    topic: str
    partition: int
    next_offset: int
    published_offset: int
