"""Following one issuance until it is settled."""

from __future__ import annotations

from collections.abc import AsyncIterator

from coupon.v1 import issuer_pb2

from services.domain.model import CouponId, RequestId, Ticket, UserId
from services.issuer.outcomes import OutcomesTail, WaitKey
from services.issuer.reading import Reading

LOOK_AGAIN_S = 1.0
"""How often the place in the line is looked up while nothing is told."""
_ACCEPTED = issuer_pb2.Issuance.ACCEPTED


async def watch(
    reading: Reading, tail: OutcomesTail, coupon_id: CouponId, user_id: UserId, ticket: Ticket | None
) -> AsyncIterator[issuer_pb2.Issuance]:
    """The issuance now and at each change, its place in the line included; ends when it is settled.

    Raises Refusal, DatabaseAway, KafkaAway.
    """
    current = await reading.issuance(coupon_id, user_id, ticket)
    yield current
    if current.state != _ACCEPTED:
        return
    key = coupon_id, user_id, RequestId(current.request_id)
    while current.state == _ACCEPTED:
        await _something_told(tail, key, ticket)
        latest = await reading.issuance(coupon_id, user_id, ticket)
        if latest != current:
            current = latest
            yield current


async def _something_told(tail: OutcomesTail, key: WaitKey, ticket: Ticket | None) -> None:
    waiter = tail.register(key)
    try:
        if ticket is not None:
            waiter.bind(ticket)
        await waiter.wait(LOOK_AGAIN_S)
    finally:
        tail.leave(key, waiter)
