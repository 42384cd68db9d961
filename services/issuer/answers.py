"""Values to answers: issuances, coupons and refusals as the contract has them."""

from __future__ import annotations

from functools import lru_cache

from coupon.v1 import coupon_pb2, events_pb2, issuer_pb2

from services.domain.decide import state_at
from services.domain.model import Coupon, CouponId, Reason, RequestId, Ticket, UserId
from services.issuer.outcomes import Told
from services.issuer.store import Granted, Refused
from services.runtime import wire
from services.runtime.coalesce import QueueFull
from services.runtime.postgres import DatabaseAway
from services.runtime.rpc_errors import Refusal, Violation, invalid, unavailable

_Issuance = issuer_pb2.Issuance
CORRECTED = "CORRECTED"
"""reject_reason of a parked request whose redrive was corrected to somebody else's."""

_SENTENCES = {
    Reason.ALREADY_ISSUED: "{user} has coupon {coupon} by another request",
    Reason.SOLD_OUT: "coupon {coupon} is sold out",
    Reason.NOT_OPEN: "coupon {coupon} is not open yet",
    Reason.ENDED: "coupon {coupon} has ended",
    Reason.PAUSED: "coupon {coupon} is paused; try again later",
    Reason.CLOSED: "coupon {coupon} is closed",
    Reason.COUPON_NOT_FOUND: "there is no coupon {coupon}",
    Reason.COUPON_EXISTS: "there is a coupon {coupon} already",
    Reason.ETAG_MISMATCH: "coupon {coupon} has been changed meanwhile; get it and try again with its etag",
    Reason.INSUFFICIENT_STOCK: "coupon {coupon} has less stock left than that",
    Reason.PARKED: "the change could not be processed and waits for an operator",
}


def issuance(coupon_id: CouponId, user_id: UserId, request_id: str, ticket: Ticket | None) -> _Issuance:
    """An issuance without its state."""
    answer = _Issuance()
    _write(answer, coupon_id, user_id, request_id, str(ticket) if ticket is not None else "")
    return answer


def _write(answer: _Issuance, coupon_id: str, user_id: str, request_id: str, ticket: str) -> None:
    coupon = f"coupons/{coupon_id}"
    answer.name = f"{coupon}/issuances/{user_id}"
    answer.coupon = coupon
    answer.user_id = user_id
    answer.request_id = request_id
    answer.ticket = ticket


def accepted(
    answer: _Issuance, coupon_id: str, user_id: str, request_id: str, ticket: str, accept_us: int, position: int
) -> _Issuance:
    """In the line, `position` unsettled requests behind the next to be settled. Written into `answer`, which is empty:
    those of a batch where they stay, for a copy costs as much again."""
    answer.MergeFromString(_accepted_at(accept_us))
    _write(answer, coupon_id, user_id, request_id, ticket)
    answer.position_in_line = position
    return answer


@lru_cache(maxsize=256)
def _accepted_at(accept_us: int) -> bytes:
    """An issuance with its state and time alone. Cached, for what is put into the line together has one time."""
    answer = _Issuance(state=_Issuance.ACCEPTED)
    if accept_us > 0:
        answer.accept_time.CopyFrom(wire.to_timestamp(accept_us))
    return answer.SerializeToString()


def granted(row: Granted) -> _Issuance:
    """The user has the coupon, as the table says."""
    answer = issuance(row.coupon_id, row.user_id, row.grant.request_id, row.grant.ticket)
    answer.state = _Issuance.ISSUED
    answer.sequence = row.grant.sequence
    answer.accept_time.CopyFrom(wire.to_timestamp(row.accept_us))
    answer.settle_time.CopyFrom(wire.to_timestamp(row.settle_us))
    return answer


def refused(coupon_id: CouponId, user_id: UserId, row: Refused, reason: str) -> _Issuance:
    """Never granted (or, for PARKED, not for now), as the table says."""
    answer = issuance(coupon_id, user_id, row.request_id or "", row.ticket)
    answer.state = _Issuance.PARKED if reason == Reason.PARKED else _Issuance.REJECTED
    if answer.state == _Issuance.REJECTED:
        answer.reject_reason = reason
    answer.accept_time.CopyFrom(wire.to_timestamp(row.accept_us))
    answer.settle_time.CopyFrom(wire.to_timestamp(row.settle_us))
    return answer


def told(coupon_id: CouponId, user_id: UserId, request_id: RequestId, outcome: Told) -> _Issuance:
    """The verdict as the outcomes topic told it. Raises Refusal where the verdict is a refusal."""
    event = outcome.event
    ticket: Ticket | None = outcome.ticket
    if isinstance(event, events_pb2.CouponRejectedEvent) and outcome.is_grant:
        ticket = Ticket.parse(event.issued_ticket)
    answer = issuance(coupon_id, user_id, request_id, ticket)
    if isinstance(event, events_pb2.CouponIssuedEvent):
        answer.state, answer.sequence = _Issuance.ISSUED, event.sequence
    elif isinstance(event, events_pb2.CouponRejectedEvent) and outcome.is_grant:
        answer.state, answer.sequence = _Issuance.ISSUED, event.issued_sequence
    elif event.reason == Reason.PARKED:
        answer.state = _Issuance.PARKED
    else:
        raise refusal(Reason(event.reason), coupon_id, user_id, request_id, outcome.ticket)
    if ticket == outcome.ticket:  # of an earlier grant only its place is known here
        answer.accept_time.CopyFrom(wire.to_timestamp(outcome.accept_us))
        answer.settle_time.CopyFrom(wire.to_timestamp(outcome.publish_us))
    return answer


def refusal(
    reason: Reason,
    coupon_id: CouponId,
    user_id: UserId | None,
    request_id: RequestId,
    ticket: Ticket | None = None,
) -> Refusal:
    """The error of a refused request or change; with `ticket` it is a verdict."""
    resource = f"coupons/{coupon_id}"
    if reason is Reason.ALREADY_ISSUED:
        resource += f"/issuances/{user_id}"
    metadata = {"request_id": str(request_id)}
    if ticket is not None:
        metadata["ticket"] = str(ticket)
    message = _SENTENCES[reason].format(coupon=coupon_id, user=user_id)
    return Refusal(reason.value, message, resource=resource, metadata=metadata)


def bad_change(request_id: RequestId, ticket: Ticket, *, reused: bool) -> Refusal:
    """The ledger's INVALID_FIELD: a request_id with another payload, or values that do not fit the coupon."""
    if reused:
        violation = Violation("request_id", "was used for another change of this coupon; use a new one")
    else:
        violation = Violation("coupon", "the new values do not fit the coupon as it is, as an end before its start")
    error = invalid([violation], request_id)
    error.metadata = {**error.metadata, "ticket": str(ticket)}
    return error


def away(error: Exception, request_id: RequestId) -> Refusal:
    """DatabaseAway, KafkaAway or QueueFull as the answer to a request, which may be in the line or not."""
    if isinstance(error, DatabaseAway):
        return unavailable("DATABASE_UNAVAILABLE", "the database does not answer; call again", request_id)
    if isinstance(error, QueueFull):
        return unavailable("OVERLOADED", "too many calls wait; call again", request_id)
    return unavailable(
        "KAFKA_UNAVAILABLE",
        "whether the request is in the line is unknown; calling again with this request_id is harmless",
        request_id,
    )


def not_found(reason: str, name: str) -> Refusal:
    """NOT_FOUND of that name."""
    return Refusal(reason, f"there is no {name}", resource=name)


def coupon(value: Coupon, now_us: int) -> coupon_pb2.Coupon:
    """The coupon in its state now."""
    return wire.coupon_message(value, state_at(value, now_us))
