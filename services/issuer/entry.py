"""The way into the line: look up, refuse what can be refused without it, take places at its end.

Calls for one request each go this way together, in rounds: what a round costs is shared by all who are in it.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import defaultdict
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coupon.v1 import issuer_pb2

from services.domain.model import CouponId, Reason, Ticket
from services.issuer import answers
from services.issuer.admission import Admission, Known, refusal_now
from services.issuer.line import Line
from services.issuer.outcomes import OutcomesTail, Waiter, WaitKey
from services.issuer.validation import IssueCall
from services.runtime.coalesce import QueueFull
from services.runtime.gathering import Gathering
from services.runtime.kafka import KafkaAway
from services.runtime.postgres import DatabaseAway
from services.runtime.rpc_errors import Refusal, unavailable

ROUND_LEAST_S, ROUND_MOST_S, CROWD = 0.002, 0.02, 4.0
"""Rounds begin so far apart at most, by how many calls come during one look-up; see docs/decisions/0015."""
ROUND_MAX = 2_000
WAITING_MAX = 100_000
"""Places that wait for their round, and those of a partition that wait to be sent; more are refused as OVERLOADED."""


@dataclass(slots=True)
class Place:
    """One request on its way into the line, and once it is there, the answer to whoever does not wait for the verdict.

    `traceparent`: the header of its record. `answer`: of one that need not go into the line. `failure`: it was not
    looked up, or it is unknown whether it is in the line. `looked_up_ns`: when the tables had answered. `ahead`: how
    many of the line, before it, are unsettled. The waiter, if there is one, waits for the verdict, and whoever made
    the place lets it go. `told` wakes the caller of one that came alone.
    """

    call: IssueCall
    traceparent: bytes | None
    waiter: Waiter | None = None
    answer: issuer_pb2.Issuance | Refusal | None = None
    failure: Exception | None = None
    looked_up_ns: int = 0
    partition: int = -1
    offset: int = -1
    accept_us: int = 0
    ahead: int = 0
    told: asyncio.Future[None] | None = None

    @property
    def ticket(self) -> Ticket:
        return Ticket(self.partition, self.offset)

    @property
    def is_through(self) -> bool:
        """Whether there is nothing more to be done for it."""
        return self.offset >= 0 or self.answer is not None or self.failure is not None

    @property
    def is_left(self) -> bool:
        """Whether its caller, who came alone, has gone: nobody waits for what becomes of it."""
        return self.told is not None and self.told.done()

    @property
    def wait_key(self) -> WaitKey:
        coupon_id, user_id, request_id, _ = self.call
        return coupon_id, user_id, request_id

    def write(self, answer: issuer_pb2.Issuance) -> issuer_pb2.Issuance:
        """ACCEPTED, into that empty message."""
        coupon_id, user_id, request_id, _ = self.call
        ticket = f"{self.partition}-{self.offset}"
        return answers.accepted(answer, coupon_id, user_id, request_id, ticket, self.accept_us, self.ahead)


class Entry:
    """Brings requests into the line. After either call each place has an offset, an answer or a failure."""

    def __init__(self, admission: Admission, line: Line, tail: OutcomesTail, *, unsettled_max: int) -> None:
        self._admission = admission
        self._line = line
        self._tail = tail
        self._unsettled_max = unsettled_max
        self._gathered: list[Place] = []
        self._there = 0
        """Callers of one on their way into the line: gathered, in a round, or behind a broker that is away."""
        self._rounds: asyncio.Task[None] | None = None
        self._gathering = Gathering(least_s=ROUND_LEAST_S, most_s=ROUND_MOST_S, crowd=CROWD)
        self._queued: dict[int, list[Place]] = defaultdict(list)
        self._sending: dict[int, asyncio.Task[None]] = {}

    async def enter(self, places: Sequence[Place]) -> None:
        """All of a call that brings many."""
        groups = await self._admit(places)
        await asyncio.gather(*(self._take_places(*group) for group in groups.items()))

    async def enter_together(self, place: Place) -> None:
        """The one of a call, with those of the others that come meanwhile."""
        if len(self._gathered) >= WAITING_MAX:
            place.failure = QueueFull(f"{WAITING_MAX} waiting")
            return
        place.told = asyncio.get_running_loop().create_future()
        self._gathered.append(place)
        self._there += 1
        self._gathering.came(len(self._gathered), self._there)
        if self._rounds is None:
            self._rounds = _of_no_caller(self._run_rounds())
        try:
            await place.told
        finally:
            self._there -= 1

    async def _run_rounds(self) -> None:
        try:
            while self._gathered:
                await self._gathering.wait()
                gathered = [place for place in self._gathered if not place.is_left]
                places, self._gathered = gathered[:ROUND_MAX], gathered[ROUND_MAX:]
                if places:
                    self._gathering.begin(len(places))
                    await _tell_after(self._round(places), places)
        finally:
            self._rounds = None

    async def _round(self, places: Sequence[Place]) -> None:
        began_s = time.monotonic()
        groups = await self._admit(places)
        self._gathering.took(time.monotonic() - began_s)
        # Partitions do not wait for each other, nor the next round for any of them: a broker may be away.
        for partition, group in groups.items():
            queued = self._queued[partition]
            if len(queued) + len(group) > WAITING_MAX:
                for place in group:
                    place.failure = QueueFull(f"{len(queued)} waiting")
                continue
            queued += group
            if partition not in self._sending:
                self._sending[partition] = _of_no_caller(self._send_queued(partition))

    async def _send_queued(self, partition: int) -> None:
        try:
            while self._queued[partition]:
                # Whoever has left while a broker was slow must not take a place before those who wait.
                queued = [place for place in self._queued[partition] if not place.is_left]
                places, self._queued[partition] = queued[:ROUND_MAX], queued[ROUND_MAX:]
                if places:
                    await _tell_after(self._take_places(partition, places), places)
        finally:
            del self._sending[partition]

    async def _admit(self, places: Sequence[Place]) -> Mapping[int, Sequence[Place]]:
        """By partition those that are to go into the line; the others are given their answers."""
        groups: dict[int, list[Place]] = defaultdict(list)
        try:
            known = await self._admission.look_up([(place.call.coupon_id, place.call.user_id) for place in places])
        except (DatabaseAway, QueueFull) as error:
            for place in places:
                place.failure = error.with_traceback(None)  # it would keep the frame that keeps the places
            return groups
        now_ns = time.time_ns()
        open_coupons: set[CouponId] = set()
        for place, found in zip(places, known, strict=True):
            if place.is_left:
                continue
            call = place.call
            place.looked_up_ns = now_ns
            # Who has nothing of a coupon is let through, or not, together with all others who have not.
            if found.granted is not None or call.coupon_id not in open_coupons:
                place.answer = self._known_answer(call, found, now_ns // 1000)
                if place.answer is not None:
                    continue
                open_coupons.add(call.coupon_id)
            if call.wait:
                try:
                    place.waiter = self._tail.register(place.wait_key)
                except Refusal as refusal:
                    place.answer = refusal.with_traceback(None)
                    continue
            place.partition = found.partition
            groups[found.partition].append(place)
        return groups

    def _known_answer(self, call: IssueCall, known: Known, now_us: int) -> issuer_pb2.Issuance | Refusal | None:
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

    async def _take_places(self, partition: int, places: Sequence[Place]) -> None:
        try:
            asked = [(*place.call[:3], place.traceparent, place.waiter is not None) for place in places]
            appended = await self._line.append(partition, asked)
        except (KafkaAway, QueueFull) as error:
            for place in places:
                place.failure = error.with_traceback(None)
            return
        for place, (offset, timestamp_ms) in zip(places, appended, strict=True):
            place.offset = offset
            place.accept_us = timestamp_ms * 1000
            place.ahead = self._tail.unsettled(partition, offset)
            if place.waiter is not None:
                place.waiter.bind(place.ticket)


def _of_no_caller(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work, context=contextvars.Context())


async def _tell_after(work: Awaitable[None], places: Sequence[Place]) -> None:
    """Wake the callers of those that are through, or of all if the work fails."""
    try:
        await work
    except BaseException as error:
        for place in places:
            if place.told is not None and not place.told.done():
                if isinstance(error, Exception):
                    place.told.set_exception(error)
                else:
                    place.told.cancel()
        if not isinstance(error, Exception):
            raise
        return
    for place in places:
        if place.told is not None and place.is_through and not place.told.done():
            place.told.set_result(None)


def _behind(call: IssueCall) -> Refusal:
    return unavailable("LEDGER_UNAVAILABLE", "the tables are older than the log and catching up", call.request_id)
