"""The gRPC methods: check the request, hand it on, nothing more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from coupon.v1 import coupon_pb2, coupon_pb2_grpc, events_pb2, issuer_pb2, issuer_pb2_grpc

from services.issuer import validation
from services.issuer.changes import ChangePath
from services.issuer.entry import Place
from services.issuer.issue import NOBODY, Answer, Caller, IssuePath
from services.issuer.outcomes import OutcomesTail
from services.issuer.reading import Reading
from services.issuer.watching import watch
from services.runtime import metrics
from services.runtime.auth import caller_name
from services.runtime.paging import page_token
from services.runtime.rpc_errors import Refusal

_State = issuer_pb2.Issuance.State
ACCEPTED = _State.Name(_State.ACCEPTED)
_Change = events_pb2.CouponChangeRequestedEvent


class IssuerServicer(issuer_pb2_grpc.IssuerServiceServicer):
    def __init__(self, path: IssuePath, reading: Reading, tail: OutcomesTail) -> None:
        self._path = path
        self._reading = reading
        self._tail = tail

    async def IssueCoupon(self, request: issuer_pb2.IssueCouponRequest, context: Any) -> issuer_pb2.Issuance:  # noqa: N802
        call = validation.issue_call(request)
        answer = await self._path.issue(call, _caller(context) if call.wait else NOBODY)
        if isinstance(answer, Place):
            issuance = answer.write(issuer_pb2.Issuance())
            metrics.ANSWERS.add(1, ACCEPTED)
            return issuance
        if isinstance(answer, Refusal):
            raise answer
        metrics.ANSWERS.add(1, _State.Name(answer.state))
        return answer

    async def BatchIssueCoupons(  # noqa: N802
        self, request: issuer_pb2.BatchIssueCouponsRequest, context: Any
    ) -> issuer_pb2.BatchIssueCouponsResponse:
        checked = validation.batch(request)
        calls = [one for one in checked if isinstance(one, validation.IssueCall)]
        issued = iter(await self._path.issue_batch(calls, _caller(context)) if calls else ())
        return _response([one if isinstance(one, Refusal) else next(issued) for one in checked])

    async def GetIssuance(self, request: issuer_pb2.GetIssuanceRequest, context: Any) -> issuer_pb2.Issuance:  # noqa: N802
        return await self._reading.issuance(*validation.issuance(request.name, request.ticket))

    async def ListIssuances(  # noqa: N802
        self, request: issuer_pb2.ListIssuancesRequest, context: Any
    ) -> issuer_pb2.ListIssuancesResponse:
        asked = validation.issuance_list(request)
        issuances, last = await self._reading.issuances(asked.coupon_id, asked.user_id, asked.after, asked.page_size)
        token = page_token(asked.filter_key, last) if last else ""
        return issuer_pb2.ListIssuancesResponse(issuances=issuances, next_page_token=token)

    async def WatchIssuance(  # noqa: N802
        self, request: issuer_pb2.WatchIssuanceRequest, context: Any
    ) -> AsyncIterator[issuer_pb2.Issuance]:
        name = validation.issuance(request.name, request.ticket)
        async for issuance in watch(self._reading, self._tail, *name):
            yield issuance


class CouponServicer(coupon_pb2_grpc.CouponServiceServicer):
    def __init__(self, path: ChangePath, reading: Reading) -> None:
        self._path = path
        self._reading = reading

    async def CreateCoupon(self, request: coupon_pb2.CreateCouponRequest, context: Any) -> coupon_pb2.Coupon:  # noqa: N802
        return await self._change(validation.create(request), context)

    async def GetCoupon(self, request: coupon_pb2.GetCouponRequest, context: Any) -> coupon_pb2.Coupon:  # noqa: N802
        return await self._reading.coupon(validation.coupon_name(request.name))

    async def ListCoupons(  # noqa: N802
        self, request: coupon_pb2.ListCouponsRequest, context: Any
    ) -> coupon_pb2.ListCouponsResponse:
        asked = validation.coupon_list(request)
        coupons, more = await self._reading.coupons(asked.after, asked.state, asked.page_size)
        last = coupons[-1].name.removeprefix("coupons/") if coupons else ""
        token = page_token(asked.filter_key, last) if more else ""
        return coupon_pb2.ListCouponsResponse(coupons=coupons, next_page_token=token)

    async def UpdateCoupon(self, request: coupon_pb2.UpdateCouponRequest, context: Any) -> coupon_pb2.Coupon:  # noqa: N802
        return await self._change(validation.update(request), context)

    async def AdjustStock(self, request: coupon_pb2.AdjustStockRequest, context: Any) -> coupon_pb2.Coupon:  # noqa: N802
        return await self._change(validation.adjust_stock(request), context)

    async def PauseCoupon(self, request: coupon_pb2.PauseCouponRequest, context: Any) -> coupon_pb2.Coupon:  # noqa: N802
        return await self._switch(request, _Change.PAUSE, context)

    async def ResumeCoupon(self, request: coupon_pb2.ResumeCouponRequest, context: Any) -> coupon_pb2.Coupon:  # noqa: N802
        return await self._switch(request, _Change.RESUME, context)

    async def CloseCoupon(self, request: coupon_pb2.CloseCouponRequest, context: Any) -> coupon_pb2.Coupon:  # noqa: N802
        return await self._switch(request, _Change.CLOSE, context)

    async def _switch(
        self,
        request: coupon_pb2.PauseCouponRequest | coupon_pb2.ResumeCouponRequest | coupon_pb2.CloseCouponRequest,
        action: events_pb2.CouponChangeRequestedEvent.Action,
        context: Any,
    ) -> coupon_pb2.Coupon:
        return await self._change(validation.switch(request.name, request.request_id, action), context)

    async def _change(self, event: _Change, context: Any) -> coupon_pb2.Coupon:
        event.caller = caller_name()
        return await self._path.change(event, _caller(context))


def _caller(context: Any) -> Caller:
    remaining_s = context.time_remaining()
    return Caller(None if remaining_s is None else time.monotonic() + remaining_s)


def _response(answers: Sequence[Answer]) -> issuer_pb2.BatchIssueCouponsResponse:
    """Counts them, too: those of a call that is answered. Whole calls that end with an error are where that is made."""
    response = issuer_pb2.BatchIssueCouponsResponse()
    add = response.results.add
    told = Counter[str]()
    for answer in answers:
        if isinstance(answer, Place):
            answer.write(add().issuance)
        elif isinstance(answer, Refusal):
            answer.write(add().error)
            told[answer.reason] += 1
        else:
            add().issuance.CopyFrom(answer)
            told[_State.Name(answer.state)] += 1
    told[ACCEPTED] += len(answers) - told.total()
    for name, number in told.items():
        metrics.ANSWERS.add(number, name)
    return response
