"""The people and the operators, as clients of several issuers: what they do and hear goes into the history."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from coupon.v1 import coupon_pb2, coupon_pb2_grpc, issuer_pb2, issuer_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask

from chaos.plan import Act, Change, Coupon, Plan, Request, Way, new_uuid
from checker import CallId, HistoryWriter
from demo.answers import Answer, Failure, answer_of, answer_of_error, answer_of_status

IN_FLIGHT_MAX = 400
CALL_TIMEOUT_S = 5.0
WAIT_TIMEOUT_S = 8.0
RETRY_DELAY_S_MAX = 1.0
LOOK_UP_AFTER_S = 0.3
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # A killed issuer comes back within seconds: look again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class Unanswered(Exception):
    """A call that must succeed had no answer in time."""


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What GetIssuance said of a ticket."""

    request: Request
    ticket: str
    answer: Answer


class _Issuer:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        # The generated stubs are not typed.
        calls: Any = issuer_pb2_grpc.IssuerServiceStub
        coupons: Any = coupon_pb2_grpc.CouponServiceStub
        self.calls, self.coupons = calls(channel), coupons(channel)


class Clients:
    """Callers of all issuers in turn. A call that leaves open what became of it is made again, at another issuer."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], history: HistoryWriter, rng: random.Random) -> None:
        self._issuers = [_Issuer(channel) for channel in channels]
        self._history = history
        self._rng = rng
        self._give_up_s = time.monotonic() + 60.0
        self.requests = 0
        """RPCs that asked for a coupon; each of a batch counts."""
        self.uncertain: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        """Requests and changes that were given up, and what no caller should see."""
        self.accepted: dict[str, Request] = {}
        """By ticket."""
        self.looked_up: list[LookedUp] = []
        self.granted: set[tuple[str, str]] = set()

    async def create(self, coupon: Coupon, **times: Any) -> None:
        """Create the coupon. Raises Unanswered."""
        await self._change(
            lambda issuer: issuer.coupons.CreateCoupon,
            coupon_pb2.CreateCouponRequest(
                coupon_id=coupon.coupon_id,
                coupon=coupon_pb2.Coupon(display_name=coupon.coupon_id, total_quantity=coupon.stock, **times),
                request_id=new_uuid(self._rng),
            ),
        )

    async def rush(self, plan: Plan, patience_s: float) -> None:
        """Everything in the plan at its time; returns when all is answered, or given up `patience_s` after its end."""
        opened_s = time.monotonic()
        self._give_up_s = opened_s + plan.duration_s + patience_s
        in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)

        async def act(one: Act) -> None:
            try:
                await self.act(one)
            finally:
                in_flight.release()

        async with asyncio.TaskGroup() as group:
            group.create_task(self._operate(plan.changes, opened_s))
            for one in plan.acts:
                await _until(opened_s + one.at_s)
                await in_flight.acquire()
                group.create_task(act(one))

    async def act(self, act: Act) -> None:
        """Call until each of its requests is answered, or it is too late."""
        left = list(act.requests)
        while left:
            answers = await self._call(act.way, left)
            delay_s, again = 0.0, []
            for request, answer in zip(left, answers, strict=True):
                if isinstance(answer, Answer):
                    self._take(request, answer)
                elif answer.uncertain and time.monotonic() < self._give_up_s:
                    self.uncertain[answer.reason] += 1
                    delay_s = max(delay_s, min(answer.retry_after_s, RETRY_DELAY_S_MAX))
                    again.append(request)
                else:
                    self.unanswered[f"{answer.code.name} {answer.reason}: {answer.message}"] += 1
            if not again and act.way is Way.LOOK_UP and isinstance(answers[0], Answer) and answers[0].ticket:
                await asyncio.sleep(LOOK_UP_AFTER_S)
                await self.look_up(left[0], answers[0].ticket)
            left = again
            await asyncio.sleep(delay_s)

    async def look_up(self, request: Request, ticket: str) -> None:
        """Ask one issuer once what became of the ticket; no answer is no finding."""
        name = f"coupons/{request.coupon_id}/issuances/{request.user_id}"
        asked = issuer_pb2.GetIssuanceRequest(name=name, ticket=ticket)
        try:
            issuance = await self._any().calls.GetIssuance(asked, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            answer = answer_of_error(error)
            if isinstance(answer, Failure) and answer.uncertain:
                return
            self.unanswered[f"GetIssuance {ticket}: {error.code().name} {error.details()}"] += 1
            return
        self.looked_up.append(LookedUp(request, ticket, answer_of(issuance)))

    async def change(self, change: Change) -> None:
        """Make the change, again and again with its request_id until it is answered. Raises Unanswered."""
        name = f"coupons/{change.coupon_id}"
        if change.action == "ADJUST":
            adjust = coupon_pb2.AdjustStockRequest(name=name, delta=change.delta, request_id=change.request_id)
            await self._change(lambda issuer: issuer.coupons.AdjustStock, adjust)
        elif change.action == "PAUSE":
            pause = coupon_pb2.PauseCouponRequest(name=name, request_id=change.request_id)
            await self._change(lambda issuer: issuer.coupons.PauseCoupon, pause)
        elif change.action == "RESUME":
            resume = coupon_pb2.ResumeCouponRequest(name=name, request_id=change.request_id)
            await self._change(lambda issuer: issuer.coupons.ResumeCoupon, resume)
        else:
            coupon = coupon_pb2.Coupon(name=name, display_name=f"named {change.request_id[:8]}")
            mask = FieldMask(paths=["display_name"])
            update = coupon_pb2.UpdateCouponRequest(coupon=coupon, update_mask=mask, request_id=change.request_id)
            await self._change(lambda issuer: issuer.coupons.UpdateCoupon, update)

    async def _operate(self, changes: Sequence[Change], opened_s: float) -> None:
        for change in changes:
            await _until(opened_s + change.at_s)
            try:
                await self.change(change)
            except Unanswered as error:
                self.unanswered[str(error)] += 1

    async def _change(self, method: Any, request: Any) -> None:
        while True:
            try:
                await method(self._any())(request, timeout=CALL_TIMEOUT_S)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    return  # more than there is was to be taken
                answer = answer_of_error(error)
                if not isinstance(answer, Failure) or not answer.uncertain or time.monotonic() > self._give_up_s:
                    what = type(request).__name__
                    raise Unanswered(f"{what}: {error.code().name} {error.details()}") from error
                self.uncertain[answer.reason] += 1
                await asyncio.sleep(min(answer.retry_after_s, RETRY_DELAY_S_MAX))

    async def _call(self, way: Way, requests: Sequence[Request]) -> list[Answer | Failure]:
        self.requests += len(requests)
        asked = [
            issuer_pb2.IssueCouponRequest(
                coupon=f"coupons/{request.coupon_id}",
                user_id=request.user_id,
                request_id=request.request_id,
                wait=way is Way.WAIT,
            )
            for request in requests
        ]
        calls = [self._history.invoke(r.coupon_id, r.user_id, r.request_id) for r in requests]
        answers: list[Answer | Failure]
        try:
            if way is Way.BATCH:
                batch = issuer_pb2.BatchIssueCouponsRequest(requests=asked)
                told = await self._any().calls.BatchIssueCoupons(batch, timeout=CALL_TIMEOUT_S)
                answers = [
                    answer_of(result.issuance)
                    if result.WhichOneof("result") == "issuance"
                    else answer_of_status(result.error)
                    for result in told.results
                ]
            else:
                timeout_s = WAIT_TIMEOUT_S if way is Way.WAIT else CALL_TIMEOUT_S
                answers = [answer_of(await self._any().calls.IssueCoupon(asked[0], timeout=timeout_s))]
        except grpc.aio.AioRpcError as error:
            answers = [answer_of_error(error)] * len(requests)
        for call, answer in zip(calls, answers, strict=True):
            self._write(call, answer)
        return answers

    def _write(self, call: CallId, answer: Answer | Failure) -> None:
        if isinstance(answer, Failure):
            self._history.unknown(call, answer.reason)
        elif answer.state == "REJECTED":
            self._history.fail(call, answer.reason, answer.ticket or None)
        else:
            self._history.ok(call, answer.ticket or None, answer.state, answer.sequence or None)

    def _take(self, request: Request, answer: Answer) -> None:
        if answer.state == "ACCEPTED":
            self.accepted[answer.ticket] = request
        elif answer.state == "ISSUED":
            self.granted.add((request.coupon_id, request.user_id))

    def _any(self) -> _Issuer:
        return self._rng.choice(self._issuers)


@asynccontextmanager
async def clients(addresses: Sequence[str], history: HistoryWriter, rng: random.Random) -> AsyncIterator[Clients]:
    """Clients with connections of their own to each issuer."""
    channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for address in addresses]
    try:
        yield Clients(channels, history, rng)
    finally:
        for channel in channels:
            await channel.close()


async def _until(moment_s: float) -> None:
    early_s = moment_s - time.monotonic()
    if early_s > 0:
        await asyncio.sleep(early_s)
