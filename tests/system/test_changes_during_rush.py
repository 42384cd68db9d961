"""Operators change coupons in the middle of a rush: the tables stay what a sequential model makes of the line."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from coupon.v1 import coupon_pb2, coupon_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask

from checker import HistoryWriter, verify
from demo.plan import Campaign, make_plan
from demo.rush import callers
from services.runtime.kafka import Topics
from stack import Services, Stack
from tests.conftest import TEST_PARTITIONS

PEOPLE = 2_500
STOCK = 200
CALL_TIMEOUT_S = 20.0


@pytest.mark.parametrize("seed", [1])
async def test_changes_in_mid_rush_take_effect_at_one_place_of_the_line(
    stack: Stack, database: str, topics: Topics, tmp_path: Path, seed: int
) -> None:
    campaigns = (Campaign("live-a", "A", STOCK, 0.7), Campaign("live-b", "B", STOCK, 0.3))
    plan = make_plan(seed, campaigns, PEOPLE)
    services = Services(
        stack.kafka_bootstrap, database, log_dir=tmp_path, partitions=TEST_PARTITIONS, topic_prefix=topics.prefix
    )
    await asyncio.to_thread(services.start)
    history_path = tmp_path / "history.jsonl"
    try:
        with HistoryWriter(history_path) as history:
            async with callers(services.issuer_address, history) as people:
                for campaign in campaigns:
                    await people.create(campaign)
                rush = asyncio.create_task(people.rush(plan.arrivals))
                applied = await _change_until(rush, services.issuer_address, campaigns, random.Random(seed))
                await rush
                coupons = await people.coupons()
        report = await verify(
            stack.kafka_bootstrap, database, topic_prefix=topics.prefix, history=history_path, drain_timeout_s=60
        )
    finally:
        await asyncio.to_thread(services.stop)
    assert [str(finding) for finding in report.findings] == []
    assert applied >= 20
    assert people.answers.answered == len(plan.arrivals)
    assert not people.answers.unanswered
    assert all(c.total_quantity == c.issued_count + c.remaining_count for c in coupons)


async def _change_until(
    rush: asyncio.Task[None], address: str, campaigns: tuple[Campaign, ...], rng: random.Random
) -> int:
    """Change coupons at random as long as the rush lasts, then open both; returns how many changes were applied."""
    applied = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = coupon_pb2_grpc.CouponServiceStub(channel)
        while not rush.done():
            name = f"coupons/{rng.choice(campaigns).coupon_id}"
            try:
                await _change_one(stub, name, rng)
                applied += 1
            except grpc.aio.AioRpcError as error:
                # Taking more than is left is refused; nothing else of this may be.
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
        for campaign in campaigns:
            name = f"coupons/{campaign.coupon_id}"
            await stub.ResumeCoupon(coupon_pb2.ResumeCouponRequest(name=name), timeout=CALL_TIMEOUT_S)
    return applied


async def _change_one(stub: Any, name: str, rng: random.Random) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        await stub.PauseCoupon(coupon_pb2.PauseCouponRequest(name=name), timeout=CALL_TIMEOUT_S)
    elif kind == 1:
        await stub.ResumeCoupon(coupon_pb2.ResumeCouponRequest(name=name), timeout=CALL_TIMEOUT_S)
    elif kind == 2:
        request = coupon_pb2.AdjustStockRequest(name=name, delta=rng.choice((-20, -5, 5, 30)))
        await stub.AdjustStock(request, timeout=CALL_TIMEOUT_S)
    else:
        coupon = coupon_pb2.Coupon(name=name, display_name=f"now {rng.randrange(1000)}")
        update = coupon_pb2.UpdateCouponRequest(coupon=coupon, update_mask=FieldMask(paths=["display_name"]))
        await stub.UpdateCoupon(update, timeout=CALL_TIMEOUT_S)
