"""What must be on the outcomes topic for a row of the tables."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

from coupon.v1 import coupon_pb2, events_pb2
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from checker.model import CouponView, ExpectChanged
from checker.records import ChangeRow, IssuedRow, Record, RejectedRow, Ticket, VerdictRow

Event: TypeAlias = events_pb2.CouponIssuedEvent | events_pb2.CouponRejectedEvent | events_pb2.CouponChangedEvent

_EVENTS: dict[bytes, type[Event]] = {
    b"coupon.v1.CouponIssuedEvent": events_pb2.CouponIssuedEvent,
    b"coupon.v1.CouponRejectedEvent": events_pb2.CouponRejectedEvent,
    b"coupon.v1.CouponChangedEvent": events_pb2.CouponChangedEvent,
}
NO_DIGEST = 0


def event_of(row: VerdictRow) -> tuple[bytes, bytes]:
    """The `ce_type` and the value that a row's outcome has."""
    ticket = str(row.ticket)
    if isinstance(row, ChangeRow):
        return b"coupon.v1.CouponChangedEvent", row.outcome
    if isinstance(row, IssuedRow):
        issued = events_pb2.CouponIssuedEvent(
            coupon_id=row.coupon_id,
            user_id=row.user_id,
            request_id=row.request_id,
            ticket=ticket,
            sequence=row.sequence,
            redrive_of=row.redrive_of or "",
        )
        return b"coupon.v1.CouponIssuedEvent", issued.SerializeToString(deterministic=True)
    rejected = events_pb2.CouponRejectedEvent(
        coupon_id=row.coupon_id or "",
        user_id=row.user_id or "",
        request_id=row.request_id or "",
        ticket=ticket,
        reason=row.reason,
        issued_ticket=row.issued_ticket or "",
        issued_sequence=row.issued_sequence or 0,
        redrive_of=row.redrive_of or "",
    )
    return b"coupon.v1.CouponRejectedEvent", rejected.SerializeToString(deterministic=True)


def parse_event(ce_type: bytes | None, value: bytes | None) -> Event | None:
    """The outcome event, or None where it is none."""
    kind = _EVENTS.get(ce_type or b"")
    if kind is None or value is None:
        return None
    event = kind()
    try:
        event.ParseFromString(value)
    except DecodeError:
        return None
    return event


def digest(*parts: bytes | None) -> int:
    """64 bits that stand for the parts within this process: Python's keyed hash. Never NO_DIGEST."""
    return hash(parts) or 1


def content_digest(record: Record, headers_end: int | None = None) -> int:
    """Stands for key, value and headers (the first `headers_end` of them) of a record."""
    parts: list[bytes | None] = [record.key, record.value]
    for name, value in record.headers[:headers_end]:
        parts += (name.encode(), value)
    return digest(*parts)


def change_event(ticket: Ticket, expected: ExpectChanged) -> events_pb2.CouponChangedEvent:
    """The CouponChangedEvent that the model expects."""
    return events_pb2.CouponChangedEvent(
        coupon_id=expected.coupon_id,
        request_id=expected.request_id,
        ticket=str(ticket),
        reason=expected.reason,
        coupon=None if expected.coupon is None else _coupon_message(expected.coupon),
    )


def _coupon_message(view: CouponView) -> coupon_pb2.Coupon:
    return coupon_pb2.Coupon(
        name=f"coupons/{view.coupon_id}",
        display_name=view.display_name,
        total_quantity=view.total,
        issued_count=view.issued,
        remaining_count=view.remaining,
        start_time=_timestamp(view.start_us),
        end_time=_timestamp(view.end_us),
        state=view.state,
        etag=view.etag,
        create_time=_timestamp(view.create_us),
        update_time=_timestamp(view.update_us),
    )


def _timestamp(time_us: int | None) -> Timestamp | None:
    if time_us is None:
        return None
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)


def time_ms(ce_time: bytes | None) -> int | None:
    """An RFC 3339 time in milliseconds since the epoch, or None where it is none."""
    try:
        time = datetime.fromisoformat((ce_time or b"").decode())
    except ValueError:
        return None
    return None if time.tzinfo is None else round(time.timestamp() * 1000)


def describe(row: VerdictRow | RejectedRow) -> str:
    """A row in a few words."""
    if isinstance(row, IssuedRow):
        return f"ISSUED #{row.sequence} {row.user_id} {row.request_id}" + _redrive(row.redrive_of)
    if isinstance(row, ChangeRow):
        return f"change {row.result} {row.coupon_id} {row.request_id}" + _redrive(row.redrive_of)
    repeated = f" of {row.issued_ticket} #{row.issued_sequence}" if row.issued_ticket else ""
    return f"{row.reason}{repeated} {row.user_id} {row.request_id}" + _redrive(row.redrive_of)


def _redrive(original: str | None) -> str:
    return f" (redrive of {original})" if original else ""
