"""The checker's own reading of one record of the line: what it asks for, or why it can't be processed.

Written from the contract alone. It shares no code with the services, so a mistake of theirs is not repeated here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from coupon.v1 import coupon_pb2, events_pb2
from google.protobuf.message import DecodeError

from checker.records import Headers, Record, Ticket

RECORD_BYTES_MAX = 64 * 1024
ISSUE_TYPE = b"coupon.v1.CouponIssueRequestedEvent"
CHANGE_TYPE = b"coupon.v1.CouponChangeRequestedEvent"

_ID = re.compile(r"[A-Za-z0-9._~@:+-]{1,128}", re.ASCII)
_UUID = re.compile(r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}", re.ASCII)
_TICKET = re.compile(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,18})", re.ASCII)
_MILLISECONDS = re.compile(r"[0-9]{1,15}", re.ASCII)
_ACTIONS = frozenset({"CREATE", "UPDATE", "ADJUST_STOCK", "PAUSE", "RESUME", "CLOSE"})


class Redrive(NamedTuple):
    """A record that brings a dead letter back; its window is judged by the time of the original."""

    original: Ticket
    original_us: int


class Issue(NamedTuple):
    coupon_id: str
    user_id: str
    request_id: str
    redrive: Redrive | None


@dataclass(frozen=True, slots=True)
class Change:
    """`payload` is the request without its caller: what a repeated request_id has to equal."""

    coupon_id: str
    request_id: str
    action: str
    display_name: str
    total: int
    start_us: int | None
    end_us: int | None
    update_paths: tuple[str, ...]
    stock_delta: int
    etag: str
    caller: str
    payload: bytes
    redrive: Redrive | None


@dataclass(frozen=True, slots=True)
class Garbage:
    """A record that must be parked, with such of its ids as could be read and pass the id rule.

    `ids_known` says that the ids follow from the contract; otherwise the record is so broken that whether one looks
    for ids in it at all is a matter of taste.
    """

    reason: str
    coupon_id: str | None
    user_id: str | None
    request_id: str | None
    redrive_of: Ticket | None
    ids_known: bool


Request: TypeAlias = Issue | Change | Garbage


def murmur2(data: bytes) -> int:
    """The hash of Kafka's default partitioner, as an unsigned 32-bit number."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    length = len(data)
    h = 0x9747B28C ^ length
    whole = length & ~3
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


def home_partition(coupon_id: str, partition_count: int) -> int:
    """The partition of a coupon: where Kafka's default partitioner puts a record with its id as the key."""
    return (murmur2(coupon_id.encode()) & 0x7FFFFFFF) % partition_count


def parse_ticket(text: str) -> Ticket | None:
    """The ticket that `text` writes, or None."""
    match = _TICKET.fullmatch(text)
    if match is None or int(match[1]) >= 2**31 or int(match[2]) >= 2**63:
        return None
    return Ticket(int(match[1]), int(match[2]))


def header(headers: Headers, name: str) -> bytes | None:
    """The first header of that name, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def size_bytes(record: Record) -> int:
    """What counts against the limit of a record: key, value, and the names and values of the headers."""
    headers = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def classify(record: Record) -> Request:
    """What a record of the line asks for. Its partition is not looked at: that is the model's part."""
    redrive, redrive_ok = _redrive(record.headers)
    original = redrive.original if redrive else None
    if size_bytes(record) > RECORD_BYTES_MAX:
        return Garbage("TOO_LARGE", None, None, None, original, ids_known=False)
    if not record.value:
        return Garbage("EMPTY", None, None, None, original, ids_known=True)
    kind = header(record.headers, "ce_type")
    event: events_pb2.CouponIssueRequestedEvent | events_pb2.CouponChangeRequestedEvent
    if kind == ISSUE_TYPE:
        event = events_pb2.CouponIssueRequestedEvent()
    elif kind == CHANGE_TYPE:
        event = events_pb2.CouponChangeRequestedEvent()
    else:
        return Garbage("WRONG_TYPE", None, None, None, original, ids_known=True)
    try:
        event.ParseFromString(record.value)
    except DecodeError:
        return Garbage("UNDECODABLE", None, None, None, original, ids_known=True)
    if isinstance(event, events_pb2.CouponIssueRequestedEvent):
        return _issue(record, event, redrive, redrive_ok)
    return _change(record, event, redrive, redrive_ok)


def _redrive(headers: Headers) -> tuple[Redrive | None, bool]:
    """The redrive that the headers speak of, and whether they make sense. Both headers or neither must be there."""
    of, at = header(headers, "redrive-of"), header(headers, "redrive-original-timestamp")
    if of is None and at is None:
        return None, True
    try:
        ticket, time_ms = parse_ticket((of or b"").decode()), (at or b"").decode()
    except UnicodeDecodeError:
        return None, False
    if ticket is None or _MILLISECONDS.fullmatch(time_ms) is None:
        return None, False
    return Redrive(ticket, int(time_ms) * 1000), True


def _issue(
    record: Record, event: events_pb2.CouponIssueRequestedEvent, redrive: Redrive | None, redrive_ok: bool
) -> Issue | Garbage:
    coupon_id, user_id, request_id = event.coupon_id, event.user_id, event.request_id
    reason = _fault(record, redrive_ok, (coupon_id, user_id), request_id)
    if reason is None:
        return Issue(coupon_id, user_id, request_id, redrive)
    return _garbage(reason, coupon_id, user_id, request_id, redrive)


def _change(
    record: Record, event: events_pb2.CouponChangeRequestedEvent, redrive: Redrive | None, redrive_ok: bool
) -> Change | Garbage:
    numbers = events_pb2.CouponChangeRequestedEvent.Action
    action = numbers.Name(event.action) if event.action in numbers.values() else ""
    reason = _fault(record, redrive_ok and action in _ACTIONS, (event.coupon_id,), event.request_id)
    if reason is not None:
        return _garbage(reason, event.coupon_id, None, event.request_id, redrive)
    payload = events_pb2.CouponChangeRequestedEvent()
    payload.CopyFrom(event)
    payload.ClearField("caller")
    wanted = event.coupon
    return Change(
        event.coupon_id,
        event.request_id,
        action,
        wanted.display_name,
        wanted.total_quantity,
        _time_us(wanted, "start_time"),
        _time_us(wanted, "end_time"),
        tuple(event.update_paths),
        event.stock_delta,
        event.etag,
        event.caller,
        payload.SerializeToString(deterministic=True),
        redrive,
    )


def _time_us(coupon: coupon_pb2.Coupon, field: str) -> int | None:
    if not coupon.HasField(field):
        return None
    time = getattr(coupon, field)
    return int(time.seconds) * 1_000_000 + int(time.nanos) // 1000


def _fault(record: Record, decodable: bool, ids: tuple[str, ...], request_id: str) -> str | None:
    if not decodable:
        return "UNDECODABLE"
    if not request_id or not all(ids):
        return "MISSING_FIELD"
    if _UUID.fullmatch(request_id) is None or not all(_ID.fullmatch(text) for text in ids):
        return "BAD_ID"
    if record.key != ids[0].encode():
        return "KEY_MISMATCH"
    return None


def _garbage(reason: str, coupon_id: str, user_id: str | None, request_id: str, redrive: Redrive | None) -> Garbage:
    return Garbage(
        reason,
        coupon_id if _ID.fullmatch(coupon_id) else None,
        user_id if user_id is not None and _ID.fullmatch(user_id) else None,
        request_id if _UUID.fullmatch(request_id) else None,
        redrive.original if redrive else None,
        ids_known=reason != "UNDECODABLE",
    )
