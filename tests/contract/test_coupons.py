"""CouponService: changes through the line, lists, idempotency."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from coupon.v1 import coupon_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from tests.contract.issuing import (
    DEADLINE_S,
    Coupon,
    Issuance,
    Issuer,
    System,
    eventually,
    home,
    new_id,
    refused,
    request_id,
)


def at(offset_s: float) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(int((time.time() + offset_s) * 1_000_000))
    return made


async def test_a_created_coupon_is_as_asked(client: Issuer) -> None:
    coupon_id, start, end = new_id(), at(-60), at(3600)
    made = await client.create(coupon_id, 7, display_name="Frühling 春 🎟", start_time=start, end_time=end)
    assert made.name == f"coupons/{coupon_id}"
    assert (made.display_name, made.start_time, made.end_time) == ("Frühling 春 🎟", start, end)
    assert (made.total_quantity, made.remaining_count, made.issued_count) == (7, 7, 0)
    assert made.state == Coupon.ACTIVE
    assert made.etag
    assert made.create_time == made.update_time
    assert await client.coupon(coupon_id) == made


async def test_output_only_fields_are_not_taken_from_the_caller(client: Issuer) -> None:
    coupon_id = new_id()
    made = await client.create(
        coupon_id, 7, name="coupons/other", issued_count=5, remaining_count=99, state=Coupon.CLOSED, etag="0-0"
    )
    assert (made.name, made.issued_count, made.remaining_count) == (f"coupons/{coupon_id}", 0, 7)
    assert made.state == Coupon.ACTIVE


async def test_counts_follow_the_grants(client: Issuer) -> None:
    coupon_id = new_id()
    etag = (await client.create(coupon_id, 2)).etag
    for number, state in ((1, Coupon.ACTIVE), (2, Coupon.SOLD_OUT)):
        await client.issue(coupon_id, f"user{number}", wait=True)
        seen = await client.coupon(coupon_id)
        assert (seen.issued_count, seen.remaining_count, seen.state) == (number, 2 - number, state)
        assert seen.etag == etag, "a grant is no change"


async def test_an_update_changes_what_its_mask_names(client: Issuer) -> None:
    coupon_id, end = new_id(), at(3600)
    first = await client.create(coupon_id, display_name="old", start_time=at(-60), end_time=end)
    named = await client.update(coupon_id, ["display_name"], display_name="new", end_time=at(9999))
    assert (named.display_name, named.end_time, named.start_time) == ("new", end, first.start_time)
    assert named.etag != first.etag
    assert named.update_time.ToMilliseconds() >= first.update_time.ToMilliseconds()
    assert named.create_time == first.create_time
    # Without a mask, all that is set; with a mask and no value, cleared.
    unmasked = await client.update(coupon_id, None, end_time=at(7200))
    assert (unmasked.display_name, unmasked.end_time != end) == ("new", True)
    cleared = await client.update(coupon_id, ["end_time", "start_time", "display_name"])
    assert not cleared.HasField("end_time")
    assert not cleared.HasField("start_time")
    assert cleared.display_name == ""
    everything = await client.update(coupon_id, ["*"], display_name="all", end_time=end)
    assert (everything.display_name, everything.end_time) == ("all", end)
    assert await client.coupon(coupon_id) == everything


async def test_a_mask_that_leaves_the_start_alone_does_not_judge_the_start_that_it_ignores(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    end = at(60)
    made = await client.update(coupon_id, ["end_time"], start_time=at(3600), end_time=end)
    assert (made.end_time, made.HasField("start_time")) == (end, False)


async def test_an_update_with_the_present_etag_is_taken(client: Issuer) -> None:
    coupon_id = new_id()
    etag = (await client.create(coupon_id)).etag
    made = await client.update(coupon_id, ["display_name"], display_name="new", etag=etag)
    assert made.display_name == "new"


async def test_of_two_updates_with_one_etag_one_is_taken(client: Issuer) -> None:
    coupon_id = new_id()
    etag = (await client.create(coupon_id)).etag
    results = await asyncio.gather(
        *(client.update(coupon_id, None, display_name=f"name{n}", etag=etag) for n in range(2)), return_exceptions=True
    )
    assert sum(isinstance(result, Coupon) for result in results) == 1


async def test_stock_grows_and_shrinks(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id, 1)
    await client.issue(coupon_id, "ann", wait=True)
    more = await client.adjust(coupon_id, 2)
    assert (more.total_quantity, more.remaining_count, more.issued_count) == (3, 2, 1)
    less = await client.adjust(coupon_id, -2)
    assert (less.total_quantity, less.remaining_count, less.state) == (1, 0, Coupon.SOLD_OUT)


async def test_pause_resume_and_close(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    assert (await client.pause(coupon_id)).state == Coupon.PAUSED
    assert (await refused(client.issue(coupon_id, "ann"))).reason == "PAUSED"
    assert (await client.resume(coupon_id)).state == Coupon.ACTIVE
    assert (await client.issue(coupon_id, "ann", wait=True)).state == Issuance.ISSUED
    assert (await client.close_coupon(coupon_id)).state == Coupon.CLOSED
    for call in (client.resume(coupon_id), client.adjust(coupon_id, 1), client.issue(coupon_id, "bob")):
        assert (await refused(call)).reason == "CLOSED"
    assert (await client.get(coupon_id, "ann")).state == Issuance.ISSUED


async def test_a_repeated_change_gets_the_first_answer(client: Issuer, system: System) -> None:
    coupon_id = new_id()
    ids = [request_id() for _ in range(3)]
    created = await client.create(coupon_id, 5, ids[0])
    grown = await client.adjust(coupon_id, 5, ids[1])
    paused = await client.pause(coupon_id, ids[2])
    await client.resume(coupon_id)
    assert await client.create(coupon_id, 5, ids[0]) == created
    assert await client.adjust(coupon_id, 5, ids[1]) == grown
    assert await client.pause(coupon_id, ids[2]) == paused
    now = await client.coupon(coupon_id)
    assert (now.total_quantity, now.state) == (10, Coupon.ACTIVE)
    # What was answered again must not be taken for how the coupon is.
    assert (await client.issue(coupon_id, "ann", wait=True)).state == Issuance.ISSUED


async def test_changes_sent_twice_at_once_are_applied_once(client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id, 5)
    answers = await asyncio.gather(*(client.adjust(coupon_id, 1, mine) for _ in range(10)))
    assert {answer.total_quantity for answer in answers} == {6}


async def test_a_change_is_seen_at_once_by_the_issuer_that_made_it(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id, 1)
    await client.issue(coupon_id, "winner", wait=True)
    for number in range(3):
        await client.pause(coupon_id)
        assert (await refused(client.issue(coupon_id, "ann"))).reason == "PAUSED"
        await client.resume(coupon_id)
        await client.adjust(coupon_id, 1)
        assert (await client.issue(coupon_id, f"user{number}", wait=True)).state == Issuance.ISSUED


async def test_a_change_is_seen_by_another_issuer(client: Issuer, system: System) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    async with system.issuer() as other:
        assert (await other.issue(coupon_id, "ann", wait=True)).state == Issuance.ISSUED
        await client.pause(coupon_id)
        before = await system.ends()

        async def refuses() -> bool:
            nonlocal before
            ends = await system.ends()
            failure = await refused(other.issue(coupon_id, "bob", wait=True))
            assert failure.reason == "PAUSED"
            before = ends
            return "ticket" not in failure.metadata

        await eventually(refuses)
        assert await system.ends() == before


async def test_changes_in_the_middle_of_a_rush_take_effect_at_one_place(client: Issuer, system: System) -> None:
    coupon_id = new_id()
    await client.create(coupon_id, 50)

    async def rush(number: int) -> None:
        for turn in range(10):
            asked = client.issue(coupon_id, f"user{number}-{turn}", wait=True)
            await asyncio.gather(asked, return_exceptions=True)

    await asyncio.gather(
        *(rush(number) for number in range(20)),
        client.pause(coupon_id),
        client.adjust(coupon_id, 25),
        client.resume(coupon_id),
        client.adjust(coupon_id, -5),
    )
    await client.resume(coupon_id)
    seen = await client.coupon(coupon_id)
    rows = await system.fetch("SELECT sequence FROM user_coupon WHERE coupon_id = $1 ORDER BY sequence", coupon_id)
    assert seen.total_quantity == 70
    assert seen.issued_count == len(rows) <= 70
    assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))


# Lists


@pytest.fixture
async def listed(fresh: System) -> AsyncIterator[tuple[Issuer, list[str]]]:
    """Seven coupons in a system of their own."""
    ids = sorted(new_id() for _ in range(7))
    async with fresh.issuer() as client, fresh.ledger():
        await asyncio.gather(*(client.create(coupon_id, 1) for coupon_id in ids))
        yield client, ids


def page(client: Issuer, **values: Any) -> Any:
    return client.coupons.ListCoupons(coupon_pb2.ListCouponsRequest(**values), timeout=DEADLINE_S)


def ids_of(answer: Any) -> list[str]:
    return [coupon.name.removeprefix("coupons/") for coupon in answer.coupons]


async def test_lists(listed: tuple[Issuer, list[str]], fresh: System) -> None:
    client, ids = listed
    # Pages in order, none twice, none left out.
    found: list[str] = []
    token = ""
    sizes = []
    while True:
        answer = await page(client, page_size=3, page_token=token)
        found += ids_of(answer)
        sizes.append(len(answer.coupons))
        token = answer.next_page_token
        if not token:
            break
        other = await refused(page(client, page_size=3, page_token=token, state=Coupon.ACTIVE))
        assert other.fields == ["page_token"]
        assert (await refused(page(client, page_token=token + "A"))).fields == ["page_token"]
        assert (await refused(page(client, page_token=token[:-2]))).fields == ["page_token"]
        assert ids[len(found) - 1] not in token, "opaque"
    assert (found, sizes) == (ids, [3, 3, 1])
    # A page may be of another size, over-large sizes are coerced, 0 is the default.
    first = await page(client, page_size=2)
    assert ids_of(await page(client, page_size=5, page_token=first.next_page_token)) == ids[2:]
    for size in (0, 1001, 2**31 - 1):
        answer = await page(client, page_size=size)
        assert (ids_of(answer), answer.next_page_token) == (ids, "")
    for size in (-1, -(2**31)):
        assert (await refused(page(client, page_size=size))).fields == ["page_size"]
    # By state, as GetCoupon tells it.
    await client.pause(ids[0])
    await client.close_coupon(ids[1])
    await client.issue(ids[2], "ann", wait=True)
    await client.update(ids[3], None, start_time=at(3600))
    await client.update(ids[4], None, end_time=at(-3600))
    wanted = {
        Coupon.PAUSED: ids[0:1],
        Coupon.CLOSED: ids[1:2],
        Coupon.SOLD_OUT: ids[2:3],
        Coupon.SCHEDULED: ids[3:4],
        Coupon.ENDED: ids[4:5],
        Coupon.ACTIVE: ids[5:],
    }
    for state, expected in wanted.items():
        answer = await page(client, state=state)
        assert ids_of(answer) == expected
        assert {coupon.state for coupon in answer.coupons} == {state}
        for coupon in answer.coupons:
            assert (await client.coupon(coupon.name.removeprefix("coupons/"))).state == state
    first = await page(client, state=Coupon.ACTIVE, page_size=1)
    second = await page(client, state=Coupon.ACTIVE, page_size=1, page_token=first.next_page_token)
    assert ids_of(first) + ids_of(second) == ids[5:]
    assert second.next_page_token == ""


async def test_a_change_refused_before_the_line_is_not_in_it(client: Issuer, system: System) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    before = await system.ends()
    await refused(client.adjust(coupon_id, 0))
    await refused(client.update(coupon_id, ["total_quantity"]))
    assert await system.ends() == before
    await client.adjust(coupon_id, 1)
    after = await system.ends()
    assert after[home(coupon_id)] == before[home(coupon_id)] + 1
