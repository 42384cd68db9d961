"""The rush itself: every call at its time, over several channels, with a bound on how many are under way."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from coupon.v1 import coupon_pb2, coupon_pb2_grpc, issuer_pb2, issuer_pb2_grpc

from checker import HistoryWriter
from demo.answers import Answer, Failure, answer_of, answer_of_error
from demo.plan import Arrival, Campaign
from demo.trace import TracedCall

CHANNELS = 4
CALLS_IN_FLIGHT_MAX = 256
CALL_TIMEOUT_S = 20.0
PATIENCE_S = 60.0
"""How long a caller calls again, as after an issuer that has to start."""
RETRY_DELAY_S_MAX = 2.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


@dataclass(slots=True)
class Answers:
    """What the callers have been told so far. A call that is tried again after an uncertain answer counts once."""

    calls: int = 0
    answered: int = 0
    with_ticket: int = 0
    issued: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refused_with_ticket: Counter[str] = field(default_factory=Counter)
    tried_again: Counter[str] = field(default_factory=Counter)
    # Calls that were given up, and errors that no caller should see; by what was said.
    unanswered: Counter[str] = field(default_factory=Counter)
    started_ns: int = 0

    def take(self, answer: Answer | Failure) -> None:
        self.answered += 1
        if isinstance(answer, Failure):
            self.unanswered[f"{answer.code.name} {answer.reason}: {answer.message}"] += 1
            return
        self.with_ticket += bool(answer.ticket)
        self.issued += answer.state == "ISSUED"
        if answer.state not in ("ACCEPTED", "ISSUED"):
            reason = answer.reason or answer.state
            self.refused[reason] += 1
            self.refused_with_ticket[reason] += bool(answer.ticket)


class Callers:
    """The people, as clients of the issuer. What they do and hear goes into the history."""

    def __init__(self, channels: list[grpc.aio.Channel], history: HistoryWriter) -> None:
        # The generated stubs are not typed.
        stub: Any = issuer_pb2_grpc.IssuerServiceStub
        self._issue = [stub(channel).IssueCoupon for channel in channels]
        self._coupons: Any = coupon_pb2_grpc.CouponServiceStub(channels[0])
        self._history = history
        self._turn = 0
        self.answers = Answers()
        self.traced = TracedCall()

    async def create(self, campaign: Campaign) -> coupon_pb2.Coupon:
        """Create the coupon; returns it as the ledger has it. Raises grpc.aio.AioRpcError."""
        request = coupon_pb2.CreateCouponRequest(
            coupon_id=campaign.coupon_id,
            coupon=coupon_pb2.Coupon(display_name=campaign.display_name, total_quantity=campaign.stock),
        )
        created: coupon_pb2.Coupon = await self._coupons.CreateCoupon(request, timeout=CALL_TIMEOUT_S)
        return created

    async def coupons(self) -> list[coupon_pb2.Coupon]:
        """All coupons as they are. Raises grpc.aio.AioRpcError."""
        answer = await self._coupons.ListCoupons(coupon_pb2.ListCouponsRequest(), timeout=CALL_TIMEOUT_S)
        return list(answer.coupons)

    async def rush(self, arrivals: tuple[Arrival, ...]) -> None:
        """Make every call at its time, or as soon after it as the bound allows; returns when all are answered."""
        self.traced.choose(arrivals)
        in_flight = asyncio.Semaphore(CALLS_IN_FLIGHT_MAX)
        opened_s = time.monotonic()
        self.answers.started_ns = time.time_ns()

        async def call(arrival: Arrival) -> None:
            try:
                self.answers.take(await self._until_answered(arrival))
            finally:
                in_flight.release()

        async with asyncio.TaskGroup() as calls:
            for arrival in arrivals:
                early_s = opened_s + arrival.at_s - time.monotonic()
                if early_s > 0:
                    await asyncio.sleep(early_s)
                await in_flight.acquire()
                self.answers.calls += 1
                calls.create_task(call(arrival))

    async def _until_answered(self, arrival: Arrival) -> Answer | Failure:
        """Call, and call again with the same request_id as long as the answer leaves open what became of it."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            answer = await self._call(arrival)
            if isinstance(answer, Answer) or not answer.uncertain or time.monotonic() > until_s:
                return answer
            self.answers.tried_again[answer.reason] += 1
            await asyncio.sleep(min(answer.retry_after_s, RETRY_DELAY_S_MAX))

    async def _call(self, arrival: Arrival) -> Answer | Failure:
        request = issuer_pb2.IssueCouponRequest(
            coupon=f"coupons/{arrival.coupon_id}",
            user_id=arrival.user_id,
            request_id=arrival.request_id,
            wait=arrival.wait,
        )
        self._turn = (self._turn + 1) % len(self._issue)
        issue, history = self._issue[self._turn], self._history
        call = history.invoke(arrival.coupon_id, arrival.user_id, arrival.request_id)
        answer: Answer | Failure
        first = arrival.request_id == self.traced.request_id and not self.traced.start_ns  # who calls again is another
        traced = self.traced if first else None
        if traced is not None:
            traced.start_ns = time.time_ns()
        try:
            metadata = traced.metadata if traced is not None else None
            answer = answer_of(await issue(request, timeout=CALL_TIMEOUT_S, metadata=metadata))
        except grpc.aio.AioRpcError as error:
            answer = answer_of_error(error)
        finally:
            if traced is not None:
                traced.end_ns = time.time_ns()
        if isinstance(answer, Failure):
            history.unknown(call, answer.reason)
        elif answer.state == "REJECTED":
            history.fail(call, answer.reason, answer.ticket or None)
        else:
            history.ok(call, answer.ticket or None, answer.state, answer.sequence or None)
        return answer


@asynccontextmanager
async def callers(issuer_address: str, history: HistoryWriter) -> AsyncIterator[Callers]:
    """Callers with CHANNELS connections of their own."""
    channels = [grpc.aio.insecure_channel(issuer_address, options=_OPTIONS) for _ in range(CHANNELS)]
    try:
        yield Callers(channels, history)
    finally:
        for channel in channels:
            await channel.close()
