"""A corrected retry: other bytes for a dead letter, checked by the same decoding as the line's."""

from __future__ import annotations

from dataclasses import dataclass

from coupon.v1 import events_pb2
from google.protobuf.message import DecodeError

from services.dlq.rows import Content, Correction
from services.domain.model import CouponId, ParkReason, RequestId, Ticket, Unprocessable
from services.runtime import batch_traces, wire
from services.runtime.fields import Fields
from services.runtime.kafka import TRACEPARENT, Record

_TRACEPARENT_WIDEST = b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"
_TICKET_WIDEST = Ticket(2**31 - 1, 2**63 - 1)
_TIME_MS_WIDEST = 10**15 - 1
_ATTEMPT_WIDEST = 99_999_999


@dataclass(frozen=True, slots=True)
class Corrected:
    """Bytes that the line can process in place of a dead letter's. `request_id` is the call's, and so the event's."""

    value: bytes
    ce_type: str
    request_id: RequestId
    time_us: int

    def of(self, original: Content) -> Correction:
        """The correction of that dead letter: an event of its own, which goes on with the original's trace."""
        return self._with(_traceparent(original))

    def _with(self, traceparent: bytes | None) -> Correction:
        headers = wire.corrected_headers(self.ce_type, self.request_id, self.time_us, traceparent)
        coupon_id, _, _ = wire.ids_of(headers, self.value)
        return Correction(coupon_id or CouponId(""), self.value, tuple(headers))

    def fault(self) -> Unprocessable | None:
        """Why the line would park it again; None if it would not. Judged with headers at their longest."""
        made = self._with(_TRACEPARENT_WIDEST)
        key = made.coupon_id.encode()
        message = wire.redrive_message(_TICKET_WIDEST, _TIME_MS_WIDEST, _ATTEMPT_WIDEST, key, made.value, made.headers)
        decoded = wire.decode(Record(0, 0, message.key, message.value, tuple(message.headers)))
        return decoded if isinstance(decoded, Unprocessable) else None


def corrected(
    fields: Fields, value: bytes, ce_type: str, *, caller: str, request_id: RequestId, time_us: int
) -> Corrected | None:
    """What the request's corrected_value and corrected_type ask for, None for neither; what is wrong with them goes to
    `fields`. A change is recorded as the `caller`'s, who corrects it, whatever its bytes say."""
    if not value and not ce_type:
        return None
    if ce_type == wire.CHANGE_REQUESTED:
        value = _change(fields, value, caller)
    made = Corrected(value, ce_type, request_id, time_us)
    if not ce_type:
        fields.bad(
            "corrected_type", f"is required with corrected_value: {wire.ISSUE_REQUESTED} or {wire.CHANGE_REQUESTED}"
        )
    elif not value:
        fields.bad("corrected_value", "is required with corrected_type")
    elif (fault := made.fault()) is not None:
        if fault.reason is ParkReason.WRONG_TYPE:
            fields.bad("corrected_type", f"must be {wire.ISSUE_REQUESTED} or {wire.CHANGE_REQUESTED}")
        else:
            fields.bad("corrected_value", f"would be parked again: {fault.reason}: {fault.message}")
    return made


def _change(fields: Fields, value: bytes, caller: str) -> bytes:
    try:
        event = events_pb2.CouponChangeRequestedEvent.FromString(value)
    except DecodeError:
        return value  # which decoding it as the line does will tell
    if value:
        fields.display_name("corrected_value.coupon.display_name", event.coupon.display_name)
        event.caller = caller
    return event.SerializeToString()


def _traceparent(original: Content) -> bytes | None:
    if batch_traces.trace_id(original.headers) is None:
        return None
    return next(value for name, value in original.headers if name == TRACEPARENT)
