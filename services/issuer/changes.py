"""Operators' changes: put into the coupon's line, answered once the ledger has applied them."""

from __future__ import annotations

import time

from coupon.v1 import coupon_pb2, events_pb2

from services.domain.model import CouponId, Reason, RequestId, Ticket, UserId
from services.issuer import answers
from services.issuer.admission import Admission
from services.issuer.issue import Caller
from services.issuer.line import Line
from services.issuer.outcomes import NO_USER, OutcomesTail
from services.issuer.store import ChangeRow, IssuerStore, Refused
from services.runtime import telemetry, wire
from services.runtime.coalesce import QueueFull
from services.runtime.kafka import KafkaAway, Message
from services.runtime.log import get_logger
from services.runtime.postgres import DatabaseAway
from services.runtime.rpc_errors import unavailable

log = get_logger(__name__)

_LOOK_UP_USER = UserId("")
"""Nobody's id: a change asks for the coupon alone."""


class ChangePath:
    """Answers checked changes of coupons."""

    def __init__(self, admission: Admission, line: Line, tail: OutcomesTail, store: IssuerStore) -> None:
        self._admission = admission
        self._line = line
        self._tail = tail
        self._store = store

    async def change(self, event: events_pb2.CouponChangeRequestedEvent, caller: Caller) -> coupon_pb2.Coupon:
        """The coupon as the change left it. Raises Refusal."""
        try:
            return await self._change(event, caller)
        except (DatabaseAway, KafkaAway, QueueFull) as error:
            log.warning("change_unavailable", error=f"{type(error).__name__}: {error}")
            # It tells the request_id, which may be of our making: only with it is the change safe to repeat.
            raise answers.away(error, RequestId(event.request_id)) from error

    async def _change(self, event: events_pb2.CouponChangeRequestedEvent, caller: Caller) -> coupon_pb2.Coupon:
        coupon_id, request_id = CouponId(event.coupon_id), RequestId(event.request_id)
        (known,) = await self._admission.look_up([(coupon_id, _LOOK_UP_USER)])
        key = coupon_id, NO_USER, request_id
        waiter = self._tail.register(key)
        try:
            with telemetry.send(self._line.topic, known.partition, coupon_id):
                message = _message(event, telemetry.traceparent())
                (where,) = await self._line.append(known.partition, [message])
            ticket = Ticket(known.partition, where.offset)
            waiter.bind(ticket)
            with telemetry.step("wait for the verdict"):
                told = await waiter.wait(caller.wait_s())
        finally:
            self._tail.leave(key, waiter)
        if told is not None and isinstance(told.event, events_pb2.CouponChangedEvent):
            return await self._answer(event, told.event, ticket)
        if told is not None:
            raise answers.refusal(Reason.PARKED, coupon_id, None, request_id, ticket)
        return await self._answer_from_tables(event, ticket)

    async def _answer_from_tables(
        self, asked: events_pb2.CouponChangeRequestedEvent, ticket: Ticket
    ) -> coupon_pb2.Coupon:
        coupon_id, request_id = CouponId(asked.coupon_id), RequestId(asked.request_id)
        row = await self._store.verdict(ticket)
        if isinstance(row, ChangeRow):
            event, _ = wire.parse_change_outcome(row.outcome)
            return await self._answer(asked, event, ticket)
        if isinstance(row, Refused):
            raise answers.refusal(Reason.PARKED, coupon_id, None, request_id, ticket)
        message = "the change is in the line but not yet applied; calling again with this request_id is harmless"
        raise unavailable("LEDGER_UNAVAILABLE", message, request_id)

    async def _answer(
        self, asked: events_pb2.CouponChangeRequestedEvent, event: events_pb2.CouponChangedEvent, ticket: Ticket
    ) -> coupon_pb2.Coupon:
        if not event.reason:
            return event.coupon
        coupon_id, request_id = CouponId(event.coupon_id), RequestId(event.request_id)
        reason = Reason(event.reason)
        if reason is Reason.INVALID_FIELD:
            first = await self._store.first_payload_hash(coupon_id, request_id)
            reused = first is not None and first != wire.change_payload_hash(asked)
            raise answers.bad_change(request_id, ticket, reused=reused)
        raise answers.refusal(reason, coupon_id, None, request_id, ticket)


def _message(event: events_pb2.CouponChangeRequestedEvent, traceparent: bytes | None) -> Message:
    ce_id = f"{event.coupon_id}/{event.request_id}"
    ce_time = wire.rfc3339(time.time_ns() // 1_000_000 * 1_000)
    headers = wire.request_headers(wire.CHANGE_REQUESTED, ce_id, ce_time, traceparent, awaited=True)
    return Message(event.coupon_id.encode(), event.SerializeToString(), headers)
