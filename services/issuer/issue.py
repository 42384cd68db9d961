"""The issue path: take places in the line, wait for the verdicts if asked to, answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from coupon.v1 import issuer_pb2

from services.domain.model import Reason, Ticket
from services.issuer import answers
from services.issuer.admission import Admission
from services.issuer.entry import Entry, Place
from services.issuer.line import Line
from services.issuer.outcomes import OutcomesTail, Waiter
from services.issuer.store import ChangeRow, Granted, IssuerStore, Verdict
from services.issuer.validation import IssueCall
from services.runtime import telemetry
from services.runtime.coalesce import Coalescer, QueueFull
from services.runtime.log import Seldom
from services.runtime.postgres import DatabaseAway
from services.runtime.rpc_errors import Refusal

seldom_log = Seldom(__name__)

LOOK_UP = "SELECT ledger_progress coupon user_coupon"
"""The question to the tables in short, for traces."""
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


NOBODY = Caller(None)
"""Of calls that do not wait for their verdicts."""
Answer = Place | issuer_pb2.Issuance | Refusal


class IssuePath:
    """Answers checked IssueCoupon calls."""

    def __init__(
        self, admission: Admission, line: Line, tail: OutcomesTail, store: IssuerStore, *, unsettled_max: int
    ) -> None:
        self._entry = Entry(admission, line, tail, unsettled_max=unsettled_max)
        self._topic = line.topic
        self._tail = tail
        self._store = store
        # A stopped ledger lets all waiting calls time out together: their looks into the tables go together, too.
        self._verdicts = Coalescer[Ticket, Verdict | None](
            store.verdicts, batch_max=VERDICT_BATCH_MAX, waiting_max=VERDICTS_WAITING_MAX, queue="verdicts"
        )

    async def issue(self, call: IssueCall, caller: Caller) -> Answer:
        """The answer to a call that comes alone: it enters the line with others'."""
        sending = telemetry.begin_send()
        place = Place(call, sending.traceparent)
        try:
            await self._traced(sending, (place,), self._entry.enter_together(place))
            if place.waiter is not None and place.offset >= 0:
                await self._await_verdict(place, place.waiter, caller)
        finally:
            if place.waiter is not None:
                self._tail.leave(place.wait_key, place.waiter)
        return _answer(place)

    async def issue_batch(self, calls: Sequence[IssueCall], caller: Caller) -> list[Answer]:
        """An answer for each of the calls that come together, in their order; none raises for the others."""
        if len(calls) == 1:
            return [await self.issue(calls[0], caller)]
        sending = telemetry.begin_send()
        places = [Place(call, sending.traceparent) for call in calls]
        try:
            await self._traced(sending, places, self._entry.enter(places))
            waiting = [
                self._await_verdict(place, place.waiter, caller)
                for place in places
                if place.waiter is not None and place.offset >= 0
            ]
            if waiting:
                await asyncio.gather(*waiting)
        finally:
            for place in places:
                if place.waiter is not None:
                    self._tail.leave(place.wait_key, place.waiter)
        return [_answer(place) for place in places]

    async def _traced(self, sending: telemetry.Sending, places: Sequence[Place], entering: Awaitable[None]) -> None:
        began_ns = time.time_ns()
        try:
            await entering
        except BaseException as error:
            self._trace(sending, began_ns, places, error)
            raise
        self._trace(sending, began_ns, places)

    async def _await_verdict(self, place: Place, waiter: Waiter, caller: Caller) -> None:
        call = place.call
        try:
            with telemetry.step("wait for the verdict"):
                told = await waiter.wait(caller.wait_s())
            if told is not None:
                place.answer = answers.told(call.coupon_id, call.user_id, call.request_id, told)
            else:
                place.answer = await self._verdict_in_tables(place)
        except Refusal as refusal:
            place.answer = refusal

    async def _verdict_in_tables(self, place: Place) -> issuer_pb2.Issuance | None:
        """On timeout, one look into the tables; without a verdict there the request is in the line."""
        call = place.call
        row: Verdict | None = None
        with contextlib.suppress(DatabaseAway, QueueFull):
            (row,) = await self._verdicts.submit([place.ticket])
        if isinstance(row, Granted):
            return answers.granted(row)
        if row is None or isinstance(row, ChangeRow):
            place.ahead = self._tail.unsettled(place.partition, place.offset)
            return None
        if row.reason is Reason.PARKED:
            return answers.refused(call.coupon_id, call.user_id, row, row.reason)
        grant = await self._store.grant((call.coupon_id, call.user_id)) if row.reason is Reason.REPEATED else None
        if grant is not None:
            return answers.granted(grant)
        raise answers.refusal(row.reason, call.coupon_id, call.user_id, call.request_id, place.ticket)

    def _trace(
        self,
        sending: telemetry.Sending,
        began_ns: int,
        places: Sequence[Place],
        failure: BaseException | None = None,
    ) -> None:
        """The parts of a sampled call that were done for it, perhaps together with others'."""
        if sending.span is None:
            return
        failures = (place.failure for place in places if place.failure is not None)
        failure = failure or next(failures, None)
        error = None if failure is None else type(failure).__name__
        looked_up_ns = max(place.looked_up_ns for place in places)
        if not looked_up_ns:
            telemetry.queried(LOOK_UP, len(places), began_ns, time.time_ns(), error)
            return
        telemetry.queried(LOOK_UP, len(places), began_ns, looked_up_ns, None)
        sent = [place for place in places if place.partition >= 0]
        if sent:
            partitions = {place.partition for place in sent}
            telemetry.end_send(
                sending,
                self._topic,
                partitions.pop() if len(partitions) == 1 else None,
                sent[0].call.coupon_id,
                count=len(sent),
                start_ns=looked_up_ns,
                offset=sent[0].offset,
                error=error,
            )


def _answer(place: Place) -> Answer:
    if place.failure is not None:
        seldom_log.warning("issue_unavailable", error=f"{type(place.failure).__name__}: {place.failure}")
        return answers.away(place.failure, place.call.request_id)
    return place if place.answer is None else place.answer
