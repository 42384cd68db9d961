"""The issue path: look up, refuse what can be refused without the line, take places in it, wait if asked to."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from coupon.v1 import events_pb2, issuer_pb2

from services.domain.model import CouponId, Reason, Ticket
from services.issuer import answers
from services.issuer.admission import Admission, Known, refusal_now
from services.issuer.line import Line
from services.issuer.outcomes import OutcomesTail, Waiter, WaitKey
from services.issuer.store import ChangeRow, Granted, IssuerStore, Verdict
from services.issuer.validation import IssueCall
from services.runtime import telemetry, wire
from services.runtime.coalesce import Coalescer, QueueFull
from services.runtime.kafka import Appended, KafkaAway, Message, make_message
from services.runtime.log import Seldom
from services.runtime.postgres import DatabaseAway
from services.runtime.rpc_errors import Refusal, unavailable

seldom_log = Seldom(__name__)

WAIT_S_MAX = 30.0
VERDICT_BATCH_MAX = 2_000
VERDICTS_WAITING_MAX = 100_000
ANSWER_MARGIN_S = 0.2
"""How long before the caller's deadline a waiting call answers ACCEPTED."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for the answer: until when, on the monotonic clock, if not for ever."""

    deadline_s: float | None

    def wait_s(self) -> float:
        """How long the call may be held."""
        if self.deadline_s is None:
            return WAIT_S_MAX
        return min(WAIT_S_MAX, self.deadline_s - time.monotonic() - ANSWER_MARGIN_S)


@dataclass(slots=True)
class Place:
    """One request on its way into the line, and once it is there, the answer to whoever does not wait for the verdict.

    `ahead`: how many of the line, before it, are unsettled. The waiter, if there is one, waits for the verdict.
    """

    index: int
    call: IssueCall
    waiter: Waiter | None
    partition: int
    offset: int = -1
    accept_us: int = 0
    ahead: int = 0

    @property
    def ticket(self) -> Ticket:
        return Ticket(self.partition, self.offset)

    def write(self, answer: issuer_pb2.Issuance) -> issuer_pb2.Issuance:
        """ACCEPTED, into that empty message."""
        coupon_id, user_id, request_id, _ = self.call
        ticket = f"{self.partition}-{self.offset}"
        return answers.accepted(answer, coupon_id, user_id, request_id, ticket, self.accept_us, self.ahead)


Answer = Place | issuer_pb2.Issuance | Refusal


class IssuePath:
    """Answers checked IssueCoupon calls, one or many at once."""

    def __init__(
        self, admission: Admission, line: Line, tail: OutcomesTail, store: IssuerStore, *, unsettled_max: int
    ) -> None:
        self._admission = admission
        self._line = line
        self._tail = tail
        self._store = store
        self._unsettled_max = unsettled_max
        # A stopped ledger lets all waiting calls time out together: their looks into the tables go together, too.
        self._verdicts = Coalescer[Ticket, Verdict | None](
            store.verdicts, batch_max=VERDICT_BATCH_MAX, waiting_max=VERDICTS_WAITING_MAX, queue="verdicts"
        )

    async def issue(self, calls: Sequence[IssueCall], caller: Caller) -> list[Answer]:
        """An answer for each call, in their order; none raises for the others."""
        answers_: list[Answer | None] = [None] * len(calls)
        try:
            with telemetry.query("SELECT ledger_progress coupon user_coupon", len(calls)):
                known = await self._admission.look_up([(call.coupon_id, call.user_id) for call in calls])
        except (DatabaseAway, QueueFull) as error:
            return [_away(error, call) for call in calls]
        by_partition: dict[int, list[Place]] = defaultdict(list)
        now_us = time.time_ns() // 1000
        waiting: list[Place] = []
        open_coupons: set[CouponId] = set()
        try:
            for index, (call, found) in enumerate(zip(calls, known, strict=True)):
                try:
                    # Who has nothing of a coupon is let through, or not, together with all others who have not.
                    if found.granted is not None or call.coupon_id not in open_coupons:
                        answer = answers_[index] = self._known_answer(call, found, now_us)
                        if answer is not None:
                            continue
                        open_coupons.add(call.coupon_id)
                    waiter = self._tail.register(_key(call)) if call.wait else None
                    place = Place(index, call, waiter, found.partition)
                    by_partition[found.partition].append(place)
                    if waiter is not None:
                        waiting.append(place)
                except Refusal as refusal:
                    answers_[index] = refusal
            sending = [self._take_places(*item, caller, answers_) for item in by_partition.items()]
            if len(sending) == 1:
                await sending[0]
            elif sending:
                await asyncio.gather(*sending)
            if waiting:
                await asyncio.gather(*(self._await_verdict(place, caller, answers_) for place in waiting))
        finally:
            for place in waiting:
                if place.waiter is not None:
                    self._tail.leave(_key(place.call), place.waiter)
        return [answer for answer in answers_ if answer is not None]

    def _known_answer(self, call: IssueCall, known: Known, now_us: int) -> Answer | None:
        reason = refusal_now(known, call.request_id, now_us)
        if reason is Reason.REPEATED and known.granted is not None:
            return answers.granted(known.granted)
        if reason is not None:
            if known.behind:
                return _behind(call)
            return answers.refusal(reason, call.coupon_id, call.user_id, call.request_id)
        unsettled = self._tail.unsettled(known.partition, self._line.end(known.partition))
        if unsettled > self._unsettled_max:
            return unavailable("OVERLOADED", f"{unsettled} requests are in the line already", call.request_id)
        return None

    async def _take_places(
        self, partition: int, places: Sequence[Place], caller: Caller, answers_: list[Answer | None]
    ) -> None:
        first = places[0].call
        try:
            with telemetry.send(self._line.topic, partition, first.coupon_id, len(places)) as sending:
                traceparent = telemetry.traceparent()
                ce_time = wire.rfc3339(time.time_ns() // 1_000_000 * 1_000)
                messages = _messages([place.call for place in places], ce_time, traceparent)
                appended: Sequence[Appended] = await self._line.append(partition, messages)
                sending.attributes["messaging.kafka.offset"] = appended[0].offset
        except (KafkaAway, QueueFull) as error:
            for place in places:
                answers_[place.index] = _away(error, place.call)
            return
        for place, (offset, timestamp_ms) in zip(places, appended, strict=True):
            place.offset = offset
            place.accept_us = timestamp_ms * 1000
            place.ahead = self._tail.unsettled(partition, offset)
            if place.waiter is None:
                answers_[place.index] = place
            else:
                place.waiter.bind(place.ticket)

    async def _await_verdict(self, place: Place, caller: Caller, answers_: list[Answer | None]) -> None:
        if place.waiter is None or place.offset < 0:
            return
        try:
            with telemetry.step("wait for the verdict"):
                told = await place.waiter.wait(caller.wait_s())
            if told is not None:
                call = place.call
                answers_[place.index] = answers.told(call.coupon_id, call.user_id, call.request_id, told)
            else:
                answers_[place.index] = await self._verdict_in_tables(place)
        except Refusal as refusal:
            answers_[place.index] = refusal

    async def _verdict_in_tables(self, place: Place) -> Place | issuer_pb2.Issuance:
        """On timeout, one look into the tables; without a verdict there the request is in the line."""
        call = place.call
        try:
            (row,) = await self._verdicts.submit([place.ticket])
        except (DatabaseAway, QueueFull):
            return self._still_in_line(place)
        if isinstance(row, Granted):
            return answers.granted(row)
        if row is None or isinstance(row, ChangeRow):
            return self._still_in_line(place)
        if row.reason is Reason.PARKED:
            return answers.refused(call.coupon_id, call.user_id, row, row.reason)
        grant = await self._store.grant((call.coupon_id, call.user_id)) if row.reason is Reason.REPEATED else None
        if grant is not None:
            return answers.granted(grant)
        raise answers.refusal(row.reason, call.coupon_id, call.user_id, call.request_id, place.ticket)

    def _still_in_line(self, place: Place) -> Place:
        place.ahead = self._tail.unsettled(place.partition, place.offset)
        return place


def _key(call: IssueCall) -> WaitKey:
    return call.coupon_id, call.user_id, call.request_id


def _messages(calls: Sequence[IssueCall], ce_time: bytes, traceparent: bytes | None) -> list[Message]:
    event = events_pb2.CouponIssueRequestedEvent()  # one for all: to make one costs more than to fill it
    messages = []
    for coupon_id, user_id, request_id, _ in calls:
        event.coupon_id, event.user_id, event.request_id = coupon_id, user_id, request_id
        headers = wire.request_headers(
            wire.ISSUE_REQUESTED, f"{coupon_id}/{user_id}/{request_id}", ce_time, traceparent
        )
        messages.append(make_message((coupon_id.encode(), event.SerializeToString(), headers)))
    return messages


def _behind(call: IssueCall) -> Refusal:
    return unavailable("LEDGER_UNAVAILABLE", "the tables are older than the log and catching up", call.request_id)


def _away(error: Exception, call: IssueCall) -> Refusal:
    seldom_log.warning("issue_unavailable", error=f"{type(error).__name__}: {error}")
    return answers.away(error, call.request_id)
