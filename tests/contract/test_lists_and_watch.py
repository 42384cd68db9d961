"""ListIssuances by coupon and by user; WatchIssuance from the line to the verdict."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from coupon.v1 import issuer_pb2

from tests.contract.issuing import DEADLINE_S, Issuance, Issuer, System, new_id, refused, shape


def listed(client: Issuer, parent: str, **asked: Any) -> Any:
    return client.issuer.ListIssuances(issuer_pb2.ListIssuancesRequest(parent=parent, **asked), timeout=DEADLINE_S)


def watch(client: Issuer, coupon_id: str, user_id: str, ticket: str = "") -> Any:
    name = f"coupons/{coupon_id}/issuances/{user_id}"
    return client.issuer.WatchIssuance(issuer_pb2.WatchIssuanceRequest(name=name, ticket=ticket), timeout=DEADLINE_S)


async def test_a_coupons_issuances_come_by_sequence_page_by_page(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    users = [f"user-{number}" for number in range(5)]
    for user in users:
        await client.issue(coupon_id, user, wait=True)
    seen: list[Any] = []
    token = ""
    pages = 0
    while pages == 0 or token:
        page = await listed(client, f"coupons/{coupon_id}", page_size=2, page_token=token)
        seen += page.issuances
        token, pages = page.next_page_token, pages + 1
    assert pages == 3
    assert [(one.user_id, one.sequence, one.state) for one in seen] == [
        (user, number, Issuance.ISSUED) for number, user in enumerate(users, start=1)
    ]
    assert seen[0] == await client.get(coupon_id, users[0])


async def test_a_users_issuances_come_by_coupon(client: Issuer) -> None:
    coupon_ids = sorted(new_id() for _ in range(3))
    user = new_id("user")
    for coupon_id in coupon_ids:
        await client.create(coupon_id)
        await client.issue(coupon_id, user, wait=True)
    first = await listed(client, "coupons/-", user_id=user, page_size=2)
    assert [one.coupon for one in first.issuances] == [f"coupons/{coupon_id}" for coupon_id in coupon_ids[:2]]
    rest = await listed(client, "coupons/-", user_id=user, page_token=first.next_page_token)
    assert [one.coupon for one in rest.issuances] == [f"coupons/{coupon_ids[2]}"]
    assert not rest.next_page_token
    one = await listed(client, f"coupons/{coupon_ids[0]}", user_id=user)
    assert [(found.coupon, found.user_id) for found in one.issuances] == [(f"coupons/{coupon_ids[0]}", user)]


async def test_a_list_of_nobody_is_empty_and_one_of_an_unknown_coupon_is_not_found(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    assert not (await listed(client, f"coupons/{coupon_id}")).issuances
    assert not (await listed(client, "coupons/-", user_id=new_id("user"))).issuances
    failure = await refused(listed(client, f"coupons/{new_id()}"))
    assert shape(failure)[:2] == ("NOT_FOUND", "COUPON_NOT_FOUND")


@pytest.mark.parametrize(
    ("parent", "asked", "field"),
    [
        ("coupons/-", {}, "user_id"),
        ("coupons/", {}, "parent"),
        ("coupons/-", {"user_id": "a b"}, "user_id"),
        ("coupons/-", {"user_id": "ann", "page_size": -1}, "page_size"),
        ("coupons/-", {"user_id": "ann", "page_token": "x"}, "page_token"),
    ],
)
async def test_a_bad_list_names_its_field(client: Issuer, parent: str, asked: dict[str, Any], field: str) -> None:
    failure = await refused(listed(client, parent, **asked))
    assert shape(failure)[:2] == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert failure.fields == [field]


async def test_a_token_is_bound_to_its_list(client: Issuer) -> None:
    one, other = new_id(), new_id()
    for coupon_id in (one, other):
        await client.create(coupon_id)
        for user in ("ann", "bob"):
            await client.issue(coupon_id, user, wait=True)
    page = await listed(client, f"coupons/{one}", page_size=1)
    failure = await refused(listed(client, f"coupons/{other}", page_size=1, page_token=page.next_page_token))
    assert failure.fields == ["page_token"]


async def test_a_settled_issuance_is_told_once_and_the_watch_ends(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    won = await client.issue(coupon_id, "ann", wait=True)
    for ticket in ("", won.ticket):
        assert [(one.state, one.sequence) async for one in watch(client, coupon_id, "ann", ticket)] == [
            (Issuance.ISSUED, 1)
        ]


async def test_a_watch_tells_the_place_in_the_line_and_then_the_verdict(fresh: System) -> None:
    async with fresh.issuer() as client:
        coupon_id = new_id()
        async with fresh.ledger():
            await client.create(coupon_id, 1)
        won = await client.issue(coupon_id, "ann")
        late = await client.issue(coupon_id, "bob")
        calls = [watch(client, coupon_id, "ann", won.ticket), watch(client, coupon_id, "bob", late.ticket)]
        first = [await call.read() for call in calls]
        assert [(one.state, one.position_in_line) for one in first] == [(Issuance.ACCEPTED, 0), (Issuance.ACCEPTED, 1)]
        async with fresh.ledger():
            told = await asyncio.gather(*(last_of(call) for call in calls))
        assert (told[0].state, told[0].sequence) == (Issuance.ISSUED, 1)
        assert (told[1].state, told[1].reject_reason) == (Issuance.REJECTED, "SOLD_OUT")


async def last_of(call: Any) -> Any:
    last = None
    while (one := await call.read()) is not grpc.aio.EOF:
        last = one
    return last


async def test_a_watch_of_what_is_not_there_is_refused(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    failure = await refused(watch(client, coupon_id, "nobody").read())
    assert shape(failure)[:2] == ("NOT_FOUND", "ISSUANCE_NOT_FOUND")
    failure = await refused(watch(client, coupon_id, "no body", "x").read())
    assert set(failure.fields) == {"name", "ticket"}
