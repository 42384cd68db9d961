"""The calls that the Redis system has: issue, batch, get, and creating a coupon. The others are UNIMPLEMENTED."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from coupon.v1 import coupon_pb2, coupon_pb2_grpc, issuer_pb2, issuer_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status

from baseline import answers
from baseline.answers import Refused
from baseline.redis_commands import RedisAway
from baseline.stock import Granted, Stock, Wish
from baseline.tables import DatabaseAway, Tables


class Issuing:
    """Known coupons, and the way of a wish."""

    def __init__(self, stock: Stock, tables: Tables) -> None:
        self._stock = stock
        self._tables = tables
        self._known: set[str] = set()

    async def issue(self, wishes: Sequence[Wish]) -> list[Granted | Refused]:
        """An answer for each."""
        results: dict[int, Granted | Refused] = {}
        taken: list[int] = []
        for index, wish in enumerate(wishes):
            try:
                await self._find(wish.coupon_id)
                taken.append(index)
            except Refused as refused:
                results[index] = refused
        try:
            found = await self._stock.take([wishes[index] for index in taken]) if taken else []
        except RedisAway:
            found = ["REDIS_UNAVAILABLE"] * len(taken)
        for index, answer in zip(taken, found, strict=True):
            results[index] = _result(answer, wishes[index])
        return [results[index] for index in range(len(wishes))]

    async def create(self, coupon_id: str, display_name: str, total: int) -> None:
        """Raises Refused."""
        try:
            if not await self._tables.add_coupon(coupon_id, display_name, total):
                raise answers.refused("COUPON_EXISTS", coupon_id)
            await self._stock.fill(coupon_id, total)
        except DatabaseAway:
            raise answers.unavailable("DATABASE_UNAVAILABLE") from None
        except RedisAway:
            raise answers.unavailable("REDIS_UNAVAILABLE") from None

    async def issued(self, coupon_id: str, user_id: str) -> issuer_pb2.Issuance:
        """What is stored. Raises Refused."""
        try:
            found = await self._tables.issued(coupon_id, user_id)
        except DatabaseAway:
            raise answers.unavailable("DATABASE_UNAVAILABLE") from None
        if found is None:
            raise answers.refused("ISSUANCE_NOT_FOUND", coupon_id, user_id)
        request_id, sequence, issued_at = found
        answer = answers.issuance(coupon_id, user_id, request_id, sequence)
        settled = Timestamp()
        settled.FromDatetime(issued_at)
        answer.settle_time.CopyFrom(settled)
        return answer

    async def _find(self, coupon_id: str) -> None:
        if coupon_id in self._known:
            return
        try:
            if not await self._tables.coupon_exists(coupon_id):
                raise answers.refused("COUPON_NOT_FOUND", coupon_id)
        except DatabaseAway:
            raise answers.unavailable("DATABASE_UNAVAILABLE") from None
        self._known.add(coupon_id)


class IssuerServicer(issuer_pb2_grpc.IssuerServiceServicer):
    def __init__(self, issuing: Issuing) -> None:
        self._issuing = issuing

    async def IssueCoupon(self, request: issuer_pb2.IssueCouponRequest, context: Any) -> Any:  # noqa: N802
        try:
            (answer,) = await self._issuing.issue([answers.wish(request)])
        except Refused as refused:
            answer = refused
        return answers.granted(answer) if isinstance(answer, Granted) else await _abort(context, answer)

    async def BatchIssueCoupons(self, request: issuer_pb2.BatchIssueCouponsRequest, context: Any) -> Any:  # noqa: N802
        try:
            requests = answers.batch(request)
        except Refused as refused:
            return await _abort(context, refused)
        results: dict[int, Granted | Refused] = {}
        wishes: dict[int, Wish] = {}
        for index, one in enumerate(requests):
            try:
                wishes[index] = answers.wish(one)
            except Refused as refused:
                results[index] = refused
        found = await self._issuing.issue(list(wishes.values()))
        results.update(zip(wishes, found, strict=True))
        return issuer_pb2.BatchIssueCouponsResponse(
            results=[_issue_result(results[index]) for index in range(len(requests))]
        )

    async def GetIssuance(self, request: issuer_pb2.GetIssuanceRequest, context: Any) -> Any:  # noqa: N802
        try:
            return await self._issuing.issued(*answers.issuance_name(request.name))
        except Refused as refused:
            return await _abort(context, refused)


class CouponServicer(coupon_pb2_grpc.CouponServiceServicer):
    def __init__(self, issuing: Issuing) -> None:
        self._issuing = issuing

    async def CreateCoupon(self, request: coupon_pb2.CreateCouponRequest, context: Any) -> Any:  # noqa: N802
        try:
            coupon_id, display_name, total = answers.coupon(request)
            # Not to be cut off with half of the stock on the list because the caller has gone.
            await asyncio.shield(self._issuing.create(coupon_id, display_name, total))
        except Refused as refused:
            return await _abort(context, refused)
        return coupon_pb2.Coupon(
            name=f"coupons/{coupon_id}",
            display_name=display_name,
            total_quantity=total,
            remaining_count=total,
            state=coupon_pb2.Coupon.ACTIVE,
        )


def _result(answer: Granted | str, wish: Wish) -> Granted | Refused:
    if isinstance(answer, Granted):
        return answer
    if answer == "REDIS_UNAVAILABLE":
        return answers.unavailable(answer, wish.request_id)
    return answers.refused(answer, wish.coupon_id, wish.user_id, wish.request_id)


def _issue_result(answer: Granted | Refused) -> issuer_pb2.IssueResult:
    if isinstance(answer, Granted):
        return issuer_pb2.IssueResult(issuance=answers.granted(answer))
    return issuer_pb2.IssueResult(error=answer.status)


async def _abort(context: Any, refused: Refused) -> Any:
    status = rpc_status.to_status(refused.status)
    return await context.abort(status.code, status.details, status.trailing_metadata)
