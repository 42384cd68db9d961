"""CouponService: what operators do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal

import grpc
from coupon.v1 import coupon_pb2, coupon_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask

from firstcome.calls import PAGE_SIZE_DEFAULT, Calls, pages
from firstcome.values import Coupon, CouponState, coupon_from, new_request_id, timestamp


class _Unchanged(Enum):
    UNCHANGED = "unchanged"


UNCHANGED: Final = _Unchanged.UNCHANGED
"""Leaves a field of `update` as it is, where None would clear it."""
Unchanged = Literal[_Unchanged.UNCHANGED]


class Coupons:
    """The coupons of one system. Every method raises FirstcomeError.

    A change answers once the ledger has applied it. Each carries a `request_id`, made here unless given; after
    Unavailable the change may or may not have been made: repeat it with the error's `request_id`, and it is made once.
    `timeout_s`: the deadline of the call, retries included; None: the connection's.
    """

    def __init__(self, channel: grpc.aio.Channel, calls: Calls) -> None:
        stub: Any = coupon_pb2_grpc.CouponServiceStub
        self._stub: Any = stub(channel)
        self._calls = calls

    async def create(
        self,
        coupon_id: str,
        total_quantity: int,
        *,
        display_name: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Coupon:
        """A new coupon with that stock, open from `start_time` (None: at once) until `end_time` (None: for ever)."""
        coupon = coupon_pb2.Coupon(
            display_name=display_name,
            total_quantity=total_quantity,
            start_time=timestamp(start_time) if start_time else None,
            end_time=timestamp(end_time) if end_time else None,
        )
        request = coupon_pb2.CreateCouponRequest(
            coupon_id=coupon_id, coupon=coupon, request_id=request_id or new_request_id()
        )
        return coupon_from(await self._calls.unary(self._stub.CreateCoupon, request, timeout_s))

    async def get(self, coupon_id: str, *, timeout_s: float | None = None) -> Coupon:
        """The coupon now."""
        request = coupon_pb2.GetCouponRequest(name=_name(coupon_id))
        return coupon_from(await self._calls.unary(self._stub.GetCoupon, request, timeout_s))

    def list(
        self,
        *,
        state: CouponState | None = None,
        page_size: int = PAGE_SIZE_DEFAULT,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Coupon, None]:
        """All coupons by id, those of one state if given; a page at a time, each with the deadline."""

        async def fetch(token: str) -> tuple[Sequence[Coupon], str]:
            request = coupon_pb2.ListCouponsRequest(
                page_size=page_size,
                page_token=token,
                state=state.value if state is not None else None,
            )
            answer = await self._calls.unary(self._stub.ListCoupons, request, timeout_s)
            return [coupon_from(one) for one in answer.coupons], answer.next_page_token

        return pages(fetch)

    async def update(
        self,
        coupon_id: str,
        *,
        display_name: str | Unchanged = UNCHANGED,
        start_time: datetime | Unchanged | None = UNCHANGED,
        end_time: datetime | Unchanged | None = UNCHANGED,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Coupon:
        """Changes what is given, None clearing a time. With `etag`, only if the coupon still has it (ETAG_MISMATCH)."""
        coupon = coupon_pb2.Coupon(name=_name(coupon_id), etag=etag)
        paths: list[str] = []
        if display_name is not UNCHANGED:
            coupon.display_name = display_name
            paths.append("display_name")
        if start_time is not UNCHANGED:
            if start_time is not None:
                coupon.start_time.CopyFrom(timestamp(start_time))
            paths.append("start_time")
        if end_time is not UNCHANGED:
            if end_time is not None:
                coupon.end_time.CopyFrom(timestamp(end_time))
            paths.append("end_time")
        request = coupon_pb2.UpdateCouponRequest(
            coupon=coupon, update_mask=FieldMask(paths=paths), request_id=request_id or new_request_id()
        )
        return coupon_from(await self._calls.unary(self._stub.UpdateCoupon, request, timeout_s))

    async def adjust_stock(
        self, coupon_id: str, delta: int, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> Coupon:
        """Adds to the stock, or takes from what is left of it (INSUFFICIENT_STOCK)."""
        request = coupon_pb2.AdjustStockRequest(
            name=_name(coupon_id), delta=delta, request_id=request_id or new_request_id()
        )
        return coupon_from(await self._calls.unary(self._stub.AdjustStock, request, timeout_s))

    async def pause(self, coupon_id: str, *, request_id: str | None = None, timeout_s: float | None = None) -> Coupon:
        """From its place in the line on, nobody is granted."""
        request = coupon_pb2.PauseCouponRequest(name=_name(coupon_id), request_id=request_id or new_request_id())
        return coupon_from(await self._calls.unary(self._stub.PauseCoupon, request, timeout_s))

    async def resume(self, coupon_id: str, *, request_id: str | None = None, timeout_s: float | None = None) -> Coupon:
        """Ends a pause."""
        request = coupon_pb2.ResumeCouponRequest(name=_name(coupon_id), request_id=request_id or new_request_id())
        return coupon_from(await self._calls.unary(self._stub.ResumeCoupon, request, timeout_s))

    async def close(self, coupon_id: str, *, request_id: str | None = None, timeout_s: float | None = None) -> Coupon:
        """Ends the coupon for good."""
        request = coupon_pb2.CloseCouponRequest(name=_name(coupon_id), request_id=request_id or new_request_id())
        return coupon_from(await self._calls.unary(self._stub.CloseCoupon, request, timeout_s))


def _name(coupon_id: str) -> str:
    return f"coupons/{coupon_id}"
