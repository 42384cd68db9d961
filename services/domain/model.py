"""The words of the line as values. Times are microseconds since the Unix epoch, offsets are Kafka's.

Values of which there is one for each request are NamedTuples, three times cheaper to make than frozen dataclasses, and
five times where `maker` makes them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, NewType, TypeAlias, TypeVar

CouponId = NewType("CouponId", str)
UserId = NewType("UserId", str)
RequestId = NewType("RequestId", str)
T = TypeVar("T", bound=tuple[Any, ...])

ID_LENGTH_MAX = 128
DISPLAY_NAME_LENGTH_MAX = 256
MESSAGE_BYTES_MAX = 1024
"""Of a dead letter's error message."""
TOTAL_QUANTITY_MAX = 1_000_000_000
# What protobuf's Timestamp allows: 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999Z.
TIME_US_MIN = -62_135_596_800_000_000
TIME_US_MAX = 253_402_300_799_999_999

_ID = re.compile(r"[A-Za-z0-9._~@:+\-]{1,128}")
_REQUEST_ID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_REQUEST_ID_LENGTH = 36
_HYPHENS = 8, 13, 18, 23
_HEX = (string.digits + "abcdefABCDEF").encode()
_OF_IDS = (string.ascii_letters + string.digits + "._~@:+-").encode()
_TICKET = re.compile(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,18})")
_OFFSET_MAX = 2**63 - 1
_PARTITION_MAX = 2**31 - 1


def maker(kind: type[T]) -> Callable[[tuple[Any, ...]], T]:
    """Makes a NamedTuple of all its fields, in their order: what calling it does, without a Python function in between.

    For the few loops that go over every request; nothing tells a wrong number of fields.
    """
    return partial(tuple.__new__, kind)


def is_id(text: str) -> bool:
    """Whether `text` may be a coupon or user id: 1 to 128 of ``A-Z a-z 0-9 . _ ~ @ : + -``."""
    return _ID.fullmatch(text) is not None


def is_request_id(text: str) -> bool:
    """Whether `text` is a UUID in its 36-character form."""
    return _REQUEST_ID.fullmatch(text) is not None


def are_ids(texts: Sequence[str]) -> bool:
    """Whether `is_id` holds for each: of many, their characters are looked at together, for a sixth of its time."""
    joined = "".join(texts)
    lengths = set(map(len, texts))
    return (
        joined.isascii()
        and not joined.encode().translate(None, _OF_IDS)
        and 0 not in lengths
        and max(lengths, default=0) <= ID_LENGTH_MAX
    )


def are_request_ids(texts: Sequence[str]) -> bool:
    """Whether `is_request_id` holds for each; of many, for a quarter of its time."""
    joined = "".join(texts)
    if not joined.isascii() or not set(map(len, texts)) <= {_REQUEST_ID_LENGTH}:
        return False
    characters, hyphens = joined.encode(), b"-" * len(texts)
    return characters.translate(None, _HEX) == hyphens * len(_HYPHENS) and all(
        characters[place::_REQUEST_ID_LENGTH] == hyphens for place in _HYPHENS
    )


def printable(text: str, bytes_max: int = MESSAGE_BYTES_MAX) -> str:
    """`text` fit for a log, a header and a table: odd characters replaced, at most `bytes_max` bytes of UTF-8."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return clean.encode(errors="replace")[:bytes_max].decode(errors="ignore")


class Ticket(NamedTuple):
    """A record's place in the line, written ``<partition>-<offset>``."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Ticket | None:
        """The ticket that `text` writes, or None where it writes none."""
        match = _TICKET.fullmatch(text)
        if match is None:
            return None
        partition, offset = int(match[1]), int(match[2])
        if partition > _PARTITION_MAX or offset > _OFFSET_MAX:
            return None
        return cls(partition, offset)


class Reason(StrEnum):
    """Why a request is not granted or a change not applied; the names are those of the outcomes and of ErrorInfo."""

    COUPON_NOT_FOUND = "COUPON_NOT_FOUND"
    REPEATED = "REPEATED"
    ALREADY_ISSUED = "ALREADY_ISSUED"
    CLOSED = "CLOSED"
    NOT_OPEN = "NOT_OPEN"
    ENDED = "ENDED"
    PAUSED = "PAUSED"
    SOLD_OUT = "SOLD_OUT"
    PARKED = "PARKED"
    # Changes only.
    COUPON_EXISTS = "COUPON_EXISTS"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    INSUFFICIENT_STOCK = "INSUFFICIENT_STOCK"
    INVALID_FIELD = "INVALID_FIELD"


class ParkReason(StrEnum):
    """Why a record can't be processed. INTERNAL alone is worth trying again."""

    UNDECODABLE = "UNDECODABLE"
    EMPTY = "EMPTY"
    WRONG_TYPE = "WRONG_TYPE"
    MISSING_FIELD = "MISSING_FIELD"
    BAD_ID = "BAD_ID"
    KEY_MISMATCH = "KEY_MISMATCH"
    WRONG_PARTITION = "WRONG_PARTITION"
    TOO_LARGE = "TOO_LARGE"
    UNSTORABLE = "UNSTORABLE"
    INTERNAL = "INTERNAL"


class Switch(StrEnum):
    """What an operator has set; the state that people see follows from it, the window and the stock."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    CLOSED = "CLOSED"


class CouponState(StrEnum):
    """A coupon's state at a time, named as in coupon.proto."""

    SCHEDULED = "SCHEDULED"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    SOLD_OUT = "SOLD_OUT"
    ENDED = "ENDED"
    CLOSED = "CLOSED"


class Action(StrEnum):
    """What a change does, named as in events.proto."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    ADJUST_STOCK = "ADJUST_STOCK"
    PAUSE = "PAUSE"
    RESUME = "RESUME"
    CLOSE = "CLOSE"


@dataclass(frozen=True, slots=True)
class Coupon:
    """A coupon as the ledger's row has it. total = remaining + issued, always."""

    coupon_id: CouponId
    partition: int
    display_name: str
    total: int
    remaining: int
    issued: int
    start_us: int | None
    end_us: int | None
    switch: Switch
    etag: str
    create_us: int
    update_us: int


class Grant(NamedTuple):
    """What is remembered of an issued coupon."""

    request_id: RequestId
    sequence: int
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Redrive:
    """A record that puts a dead letter into the line again: its window is judged by the original's time."""

    original: Ticket
    original_time_us: int


class IssueRequest(NamedTuple):
    offset: int
    time_us: int
    coupon_id: CouponId
    user_id: UserId
    request_id: RequestId
    redrive: Redrive | None = None


make_issue_request = maker(IssueRequest)


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """An operator's change. `payload_hash` tells whether a repeated request_id asks for the same thing."""

    offset: int
    time_us: int
    coupon_id: CouponId
    request_id: RequestId
    action: Action
    display_name: str
    total: int
    start_us: int | None
    end_us: int | None
    update_paths: tuple[str, ...]
    stock_delta: int
    etag: str
    caller: str
    payload_hash: bytes
    redrive: Redrive | None = None


@dataclass(frozen=True, slots=True)
class Unprocessable:
    """A record that gets the verdict PARKED. `known`: its dead letter is on the DLQ topic already."""

    offset: int
    time_us: int
    reason: ParkReason
    message: str
    coupon_id: CouponId | None = None
    user_id: UserId | None = None
    request_id: RequestId | None = None
    redrive: Redrive | None = None
    known: bool = False


LineRecord: TypeAlias = IssueRequest | ChangeRequest | Unprocessable


class Issued(NamedTuple):
    """Verdict: the user has the coupon. `sequence` is the 1-based order of grant within it."""

    offset: int
    time_us: int
    coupon_id: CouponId
    user_id: UserId
    request_id: RequestId
    sequence: int
    redrive_of: Ticket | None = None


make_issued = maker(Issued)


class Rejected(NamedTuple):
    """Verdict: this record is not granted. With REPEATED, `grant` is what it repeats, where that is a grant."""

    offset: int
    time_us: int
    coupon_id: CouponId
    user_id: UserId
    request_id: RequestId
    reason: Reason
    grant: Grant | None = None
    redrive_of: Ticket | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """Verdict: this record could not be processed and becomes a dead letter, unless it is `known` as one."""

    offset: int
    time_us: int
    reason: ParkReason
    message: str
    coupon_id: CouponId | None
    user_id: UserId | None
    request_id: RequestId | None
    redrive_of: Ticket | None
    known: bool


@dataclass(frozen=True, slots=True)
class ChangeOutcome:
    """What a change came to: no `reason` means applied. `coupon` as it then was, `state` as judged at the record."""

    reason: Reason | None
    coupon: Coupon | None
    state: CouponState | None


@dataclass(frozen=True, slots=True)
class Changed:
    """Verdict of a change. `repeated`: its request_id was seen before, so the row is no first of its kind."""

    offset: int
    time_us: int
    coupon_id: CouponId
    request_id: RequestId
    payload_hash: bytes
    repeated: bool
    outcome: ChangeOutcome
    caller: str
    redrive_of: Ticket | None = None


Verdict: TypeAlias = Issued | Rejected | Parked | Changed


@dataclass(frozen=True, slots=True)
class PastChange:
    payload_hash: bytes
    outcome: ChangeOutcome


@dataclass(frozen=True, slots=True)
class LineState:
    """All that decides a batch of one partition, read before it: only what the batch's records ask for.

    `foreign` holds the coupon ids that belong to another partition. `redriven` maps the original ticket of a redrive
    that has an ISSUED or REJECTED row to its grant, or to None where it was rejected.
    """

    partition: int
    coupons: Mapping[CouponId, Coupon]
    foreign: frozenset[CouponId]
    grants: Mapping[tuple[CouponId, UserId], Grant]
    changes: Mapping[tuple[CouponId, RequestId], PastChange]
    redriven: Mapping[Ticket, Grant | None]


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict for each record, in their order, and the coupons that they changed, as they then are."""

    verdicts: tuple[Verdict, ...]
    coupons: tuple[Coupon, ...]
