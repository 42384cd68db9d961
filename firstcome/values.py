"""What the contract speaks of, as frozen values. All times are aware datetimes in UTC."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from coupon.v1 import coupon_pb2, issuer_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from firstcome.errors import FirstcomeError


class CouponState(StrEnum):
    """What a newcomer would be told."""

    UNSPECIFIED = "UNSPECIFIED"  # also a state that this client is too old to know
    SCHEDULED = "SCHEDULED"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    SOLD_OUT = "SOLD_OUT"
    ENDED = "ENDED"
    CLOSED = "CLOSED"


class IssuanceState(StrEnum):
    """What became of a request."""

    UNSPECIFIED = "UNSPECIFIED"  # also a state that this client is too old to know
    ACCEPTED = "ACCEPTED"  # in the line, no verdict yet
    ISSUED = "ISSUED"
    REJECTED = "REJECTED"
    PARKED = "PARKED"  # waits for an operator


@dataclass(frozen=True, slots=True)
class Coupon:
    """A coupon at one moment. Without `start_time` it is open at once, without `end_time` it never ends."""

    coupon_id: str
    display_name: str
    state: CouponState
    total_quantity: int
    issued_count: int
    remaining_count: int
    start_time: datetime | None
    end_time: datetime | None
    etag: str
    create_time: datetime | None
    update_time: datetime | None


@dataclass(frozen=True, slots=True)
class Issuance:
    """A user's request for a coupon, and what became of it.

    `ticket`: its place in the line, "<partition>-<offset>". `position_in_line`: unsettled requests ahead of it.
    `sequence`: the 1-based order of grant, 0 unless ISSUED. `reject_reason`: only with REJECTED.
    """

    coupon_id: str
    user_id: str
    request_id: str
    state: IssuanceState
    reject_reason: str
    ticket: str
    position_in_line: int
    sequence: int
    accept_time: datetime | None
    settle_time: datetime | None

    @property
    def settled(self) -> bool:
        """Whether there is a verdict; a parked request has none, but an operator must act first."""
        return self.state is not IssuanceState.ACCEPTED


def new_request_id() -> str:
    """A fresh UUID."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """One of many requests. Sending the same value again is harmless, for it keeps its `request_id`."""

    coupon_id: str
    user_id: str
    wait: bool = False
    request_id: str = field(default_factory=new_request_id)


@dataclass(frozen=True, slots=True)
class IssueResult:
    """What one of many requests came to: an issuance or an error, never both."""

    request: IssueRequest
    issuance: Issuance | None
    error: FirstcomeError | None


def coupon_from(message: coupon_pb2.Coupon) -> Coupon:
    """The value of coupon.v1.Coupon."""
    return Coupon(
        coupon_id=message.name.removeprefix("coupons/"),
        display_name=message.display_name,
        state=_coupon_state(message.state),
        total_quantity=message.total_quantity,
        issued_count=message.issued_count,
        remaining_count=message.remaining_count,
        start_time=optional_time(message, "start_time"),
        end_time=optional_time(message, "end_time"),
        etag=message.etag,
        create_time=optional_time(message, "create_time"),
        update_time=optional_time(message, "update_time"),
    )


def issuance_from(message: issuer_pb2.Issuance) -> Issuance:
    """The value of coupon.v1.Issuance."""
    return Issuance(
        coupon_id=message.coupon.removeprefix("coupons/"),
        user_id=message.user_id,
        request_id=message.request_id,
        state=_issuance_state(message.state),
        reject_reason=message.reject_reason,
        ticket=message.ticket,
        position_in_line=message.position_in_line,
        sequence=message.sequence,
        accept_time=optional_time(message, "accept_time"),
        settle_time=optional_time(message, "settle_time"),
    )


def time_from(message: Timestamp) -> datetime:
    """To the microsecond."""
    return message.ToDatetime(tzinfo=UTC)


def optional_time(message: Any, field_name: str) -> datetime | None:
    """A field's time, None where it is not set."""
    return time_from(getattr(message, field_name)) if message.HasField(field_name) else None


def timestamp(moment: datetime) -> Timestamp:
    """Raises ValueError for a time without a zone: guessing one would open a sale at the wrong hour."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    message = Timestamp()
    message.FromDatetime(moment.astimezone(UTC))
    return message


def _coupon_state(number: int) -> CouponState:
    name = coupon_pb2.Coupon.State.Name(number) if number in coupon_pb2.Coupon.State.values() else ""
    return CouponState(name) if name in CouponState.__members__ else CouponState.UNSPECIFIED


def _issuance_state(number: int) -> IssuanceState:
    name = issuer_pb2.Issuance.State.Name(number) if number in issuer_pb2.Issuance.State.values() else ""
    return IssuanceState(name) if name in IssuanceState.__members__ else IssuanceState.UNSPECIFIED
