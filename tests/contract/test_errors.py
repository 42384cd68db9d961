"""Each row of the error table that the issuer can give, provoked over the wire."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import grpc
import pytest
from coupon.v1 import coupon_pb2, issuer_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.domain.model import Ticket
from tests.contract.issuing import (
    DEADLINE_S,
    NEAR_DEADLINE_S,
    Coupon,
    Issuance,
    Issuer,
    System,
    eventually,
    home,
    new_id,
    refused,
    request_id,
    shape,
)


def at(offset_s: float) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(int((time.time() + offset_s) * 1_000_000))
    return made


async def test_the_user_has_it_by_another_request(client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id)
    await client.issue(coupon_id, "ann", wait=True)
    failure = await refused(client.issue(coupon_id, "ann", mine))
    assert shape(failure) == ("ALREADY_EXISTS", "ALREADY_ISSUED", {"ResourceInfo"})
    assert failure.resource == f"coupons/{coupon_id}/issuances/ann"
    assert failure.metadata == {"request_id": mine}


async def test_the_grants_request_id_again_is_the_grant(client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id)
    first = await client.issue(coupon_id, "ann", mine, wait=True)
    again = await client.issue(coupon_id, "ann", mine)
    assert again.state == Issuance.ISSUED
    assert (again.ticket, again.sequence, again.request_id) == (first.ticket, first.sequence, mine)


async def arrange(client: Issuer, coupon_id: str, reason: str) -> None:
    """A coupon that refuses for that reason."""
    values: dict[str, Any] = {"NOT_OPEN": {"start_time": at(3600)}, "ENDED": {"end_time": at(-3600)}}.get(reason, {})
    await client.create(coupon_id, 1, **values)
    if reason == "SOLD_OUT":
        assert (await client.issue(coupon_id, "winner", wait=True)).state == Issuance.ISSUED
        await eventually(lambda: is_refused_without_the_line(client, coupon_id))
    if reason == "PAUSED":
        await client.pause(coupon_id)
    if reason == "CLOSED":
        await client.close_coupon(coupon_id)


async def is_refused_without_the_line(client: Issuer, coupon_id: str) -> bool:
    """Whether the issuer knows by now: a state that it read before the last grant is good for half a second."""
    try:
        await client.issue(coupon_id, new_id("probe"), wait=True)
    except grpc.aio.AioRpcError as error:
        failure = await refused(_raising(error))
        return "ticket" not in failure.metadata
    return False


async def _raising(error: Exception) -> None:
    raise error


REFUSALS = ("SOLD_OUT", "NOT_OPEN", "ENDED", "PAUSED", "CLOSED")


@pytest.mark.parametrize("reason", REFUSALS)
async def test_a_refusal_from_the_tables_has_no_ticket_and_leaves_the_line_alone(
    client: Issuer, system: System, reason: str
) -> None:
    coupon_id, mine = new_id(), request_id()
    await arrange(client, coupon_id, reason)
    before = await system.ends()
    for wait in (False, True):
        failure = await refused(client.issue(coupon_id, "late", mine, wait=wait))
        assert shape(failure) == ("FAILED_PRECONDITION", reason, {"PreconditionFailure"})
        assert failure.resource == f"coupons/{coupon_id}"
        assert failure.metadata == {"request_id": mine}
    assert await system.ends() == before


async def test_a_refusal_by_verdict_has_its_ticket(fresh: System) -> None:
    """Requests that entered the line while nothing was settled, behind changes that refuse them."""
    ids = {reason: new_id() for reason in REFUSALS}
    async with fresh.issuer() as client:
        async with fresh.ledger():
            for coupon_id in ids.values():
                await client.create(coupon_id, 1)
        changes = [
            asyncio.ensure_future(client.issue(ids["SOLD_OUT"], "winner", wait=True)),
            asyncio.ensure_future(client.update(ids["NOT_OPEN"], None, start_time=at(3600))),
            asyncio.ensure_future(client.update(ids["ENDED"], None, end_time=at(-3600))),
            asyncio.ensure_future(client.pause(ids["PAUSED"])),
            asyncio.ensure_future(client.close_coupon(ids["CLOSED"])),
        ]
        start = sum(await fresh.ends())

        async def entered(count: int) -> bool:
            return sum(await fresh.ends()) >= count

        await eventually(lambda: entered(len(REFUSALS) + len(changes)))
        assert start <= len(REFUSALS) + len(changes)
        mine = {reason: request_id() for reason in REFUSALS}
        calls = {
            reason: asyncio.ensure_future(client.issue(ids[reason], "late", mine[reason], wait=True))
            for reason in REFUSALS
        }
        await eventually(lambda: entered(2 * len(REFUSALS) + len(changes)))
        async with fresh.ledger():
            await asyncio.gather(*changes)
            for reason, call in calls.items():
                failure = await refused(call)
                assert shape(failure) == ("FAILED_PRECONDITION", reason, {"PreconditionFailure"})
                assert failure.metadata["request_id"] == mine[reason]
                ticket = failure.metadata["ticket"]
                told = await client.get(ids[reason], "late", ticket)
                assert (told.state, told.reject_reason, told.request_id) == (Issuance.REJECTED, reason, mine[reason])


async def test_already_issued_by_verdict_has_its_ticket(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id, 5)
        first = asyncio.ensure_future(client.issue(coupon_id, "ann", wait=True))
        await eventually(lambda: _length(fresh, 2))
        other = asyncio.ensure_future(client.issue(coupon_id, "ann", wait=True))
        await eventually(lambda: _length(fresh, 3))
        async with fresh.ledger():
            assert (await first).state == Issuance.ISSUED
            failure = await refused(other)
    assert shape(failure) == ("ALREADY_EXISTS", "ALREADY_ISSUED", {"ResourceInfo"})
    assert failure.metadata["ticket"] == f"{home(coupon_id)}-2"
    assert uuid.UUID(failure.metadata["request_id"])


async def _length(system: System, count: int) -> bool:
    return sum(await system.ends()) >= count


async def test_taking_more_stock_than_is_left(client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id, 3)
    failure = await refused(client.adjust(coupon_id, -4, mine))
    assert shape(failure) == ("FAILED_PRECONDITION", "INSUFFICIENT_STOCK", {"PreconditionFailure"})
    assert failure.resource == f"coupons/{coupon_id}"
    assert failure.metadata["request_id"] == mine
    assert Ticket.parse(failure.metadata["ticket"])


async def test_an_unknown_coupon(client: Issuer, system: System) -> None:
    coupon_id, mine = new_id(), request_id()
    before = await system.ends()
    for call in (client.issue(coupon_id, "ann", mine), client.issue(coupon_id, "ann", mine, wait=True)):
        failure = await refused(call)
        assert shape(failure) == ("NOT_FOUND", "COUPON_NOT_FOUND", {"ResourceInfo"})
        assert (failure.resource, failure.metadata) == (f"coupons/{coupon_id}", {"request_id": mine})
    failure = await refused(client.coupon(coupon_id))
    assert shape(failure) == ("NOT_FOUND", "COUPON_NOT_FOUND", {"ResourceInfo"})
    assert failure.resource == f"coupons/{coupon_id}"
    assert await system.ends() == before
    # A change of it is a verdict: only the line knows what was created before it.
    for change in (client.pause, client.resume, client.close_coupon):
        failure = await refused(change(coupon_id))
        assert shape(failure) == ("NOT_FOUND", "COUPON_NOT_FOUND", {"ResourceInfo"})
        assert failure.resource == f"coupons/{coupon_id}"
        assert Ticket.parse(failure.metadata["ticket"])
        assert uuid.UUID(failure.metadata["request_id"])


async def test_an_unknown_issuance(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    failure = await refused(client.get(coupon_id, "nobody"))
    assert shape(failure) == ("NOT_FOUND", "ISSUANCE_NOT_FOUND", {"ResourceInfo"})
    assert failure.resource == f"coupons/{coupon_id}/issuances/nobody"


async def test_a_coupon_id_that_is_taken(client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id)
    failure = await refused(client.create(coupon_id, 5, mine))
    assert shape(failure) == ("ALREADY_EXISTS", "COUPON_EXISTS", {"ResourceInfo"})
    assert failure.resource == f"coupons/{coupon_id}"
    assert failure.metadata["request_id"] == mine
    assert Ticket.parse(failure.metadata["ticket"])


async def test_a_stale_etag(client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    stale = (await client.create(coupon_id)).etag
    await client.update(coupon_id, None, display_name="new")
    failure = await refused(client.update(coupon_id, None, mine, display_name="newer", etag=stale))
    assert shape(failure) == ("ABORTED", "ETAG_MISMATCH", set())
    assert failure.metadata["request_id"] == mine
    assert Ticket.parse(failure.metadata["ticket"])
    assert (await client.coupon(coupon_id)).display_name == "new"


BAD_TIME = Timestamp(seconds=10**15)
BAD_REQUESTS: list[tuple[str, Any, set[str]]] = [
    (
        "IssueCoupon",
        issuer_pb2.IssueCouponRequest(coupon="coupon/x", user_id="a b", request_id="1"),
        {"coupon", "user_id", "request_id"},
    ),
    ("IssueCoupon", issuer_pb2.IssueCouponRequest(), {"coupon", "user_id"}),
    ("BatchIssueCoupons", issuer_pb2.BatchIssueCouponsRequest(), {"requests"}),
    ("GetIssuance", issuer_pb2.GetIssuanceRequest(name="coupons/x", ticket="1"), {"name", "ticket"}),
    (
        "CreateCoupon",
        coupon_pb2.CreateCouponRequest(
            coupon_id="",
            request_id="x",
            coupon=Coupon(display_name="\0", total_quantity=-1, start_time=BAD_TIME, end_time=Timestamp(nanos=-1)),
        ),
        {
            "coupon_id",
            "request_id",
            "coupon.total_quantity",
            "coupon.display_name",
            "coupon.start_time",
            "coupon.end_time",
        },
    ),
    ("CreateCoupon", coupon_pb2.CreateCouponRequest(), {"coupon_id", "coupon"}),
    ("GetCoupon", coupon_pb2.GetCouponRequest(name="coupons/"), {"name"}),
    (
        "ListCoupons",
        coupon_pb2.ListCouponsRequest(page_size=-1, page_token="x", state=77),  # type: ignore[arg-type]
        {"page_size", "page_token", "state"},
    ),
    (
        "UpdateCoupon",
        coupon_pb2.UpdateCouponRequest(
            coupon=Coupon(name="x", display_name="a" * 257, etag="old", start_time=at(9), end_time=at(1)),
            update_mask={"paths": ["total_quantity", "start_time", "end_time"]},
            request_id="x",
        ),
        {"coupon.name", "coupon.display_name", "coupon.etag", "coupon.end_time", "update_mask", "request_id"},
    ),
    ("UpdateCoupon", coupon_pb2.UpdateCouponRequest(), {"coupon.name", "update_mask"}),
    ("AdjustStock", coupon_pb2.AdjustStockRequest(request_id="x"), {"name", "delta", "request_id"}),
    ("PauseCoupon", coupon_pb2.PauseCouponRequest(request_id="x"), {"name", "request_id"}),
    ("ResumeCoupon", coupon_pb2.ResumeCouponRequest(request_id="x"), {"name", "request_id"}),
    ("CloseCoupon", coupon_pb2.CloseCouponRequest(request_id="x"), {"name", "request_id"}),
]


@pytest.mark.parametrize(
    ("method", "asked", "fields"), BAD_REQUESTS, ids=[f"{bad[0]}-{n}" for n, bad in enumerate(BAD_REQUESTS)]
)
async def test_every_bad_field_is_named_at_once(
    client: Issuer, system: System, method: str, asked: Any, fields: set[str]
) -> None:
    before = await system.ends()
    stub = client.issuer if hasattr(client.issuer, method) else client.coupons
    failure = await refused(getattr(stub, method)(asked, timeout=DEADLINE_S))
    assert shape(failure) == ("INVALID_ARGUMENT", "INVALID_FIELD", {"BadRequest"})
    assert set(failure.fields) == fields
    assert all(violation.description for violation in failure.details["BadRequest"].field_violations)
    assert await system.ends() == before


@pytest.mark.parametrize("other", ["adjust", "pause"])
async def test_a_request_id_reused_with_another_payload(client: Issuer, other: str) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id)
    await client.adjust(coupon_id, 1, mine)
    call = client.adjust(coupon_id, 2, mine) if other == "adjust" else client.pause(coupon_id, mine)
    failure = await refused(call)
    assert shape(failure) == ("INVALID_ARGUMENT", "INVALID_FIELD", {"BadRequest"})
    assert failure.fields == ["request_id"]
    assert failure.metadata["request_id"] == mine
    assert (await client.coupon(coupon_id)).total_quantity == 11


async def test_a_change_that_does_not_fit_says_so_however_often_it_is_repeated(client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id, start_time=at(3600))
    end = at(-3600)
    for _ in range(2):
        failure = await refused(client.update(coupon_id, None, mine, end_time=end))
        assert shape(failure) == ("INVALID_ARGUMENT", "INVALID_FIELD", {"BadRequest"})
        assert failure.fields == ["coupon"]


async def test_a_ticket_of_another_issuance(client: Issuer) -> None:
    coupon_id = new_id()
    created = await client.create(coupon_id)
    anns = await client.issue(coupon_id, "ann", wait=True)
    for ticket in (anns.ticket, created.etag):
        failure = await refused(client.get(coupon_id, "bob", ticket))
        assert shape(failure) == ("INVALID_ARGUMENT", "INVALID_FIELD", {"BadRequest"})
        assert failure.fields == ["ticket"]


async def test_a_ticket_of_another_issuance_that_is_not_settled(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id)
        anns = await client.issue(coupon_id, "ann")
        assert anns.state == Issuance.ACCEPTED
        assert (await client.get(coupon_id, "ann", anns.ticket)).state == Issuance.ACCEPTED
        failure = await refused(client.get(coupon_id, "bob", anns.ticket))
        assert shape(failure) == ("INVALID_ARGUMENT", "INVALID_FIELD", {"BadRequest"})
        assert failure.fields == ["ticket"]


async def test_too_many_unsettled_requests(fresh: System) -> None:
    coupon_id, mine = new_id(), request_id()
    async with fresh.issuer(FIRSTCOME_UNSETTLED_MAX="3") as client:
        async with fresh.ledger():
            await client.create(coupon_id, 100)
        for number in range(4):
            await client.issue(coupon_id, f"user{number}")
        failure = await refused(client.issue(coupon_id, "late", mine))
        assert shape(failure) == ("RESOURCE_EXHAUSTED", "OVERLOADED", {"RetryInfo"})
        assert failure.metadata == {"request_id": mine}
        async with fresh.ledger():
            await fresh.settled()

            async def accepted() -> bool:
                try:
                    return bool(await client.issue(coupon_id, "late", mine))
                except grpc.aio.AioRpcError:
                    return False

            await eventually(accepted)


async def test_more_waiters_than_allowed(fresh: System) -> None:
    coupon_id, mine = new_id(), request_id()
    async with fresh.issuer(FIRSTCOME_WAITERS_MAX="1") as client:
        async with fresh.ledger():
            await client.create(coupon_id, 100)
        waiting = asyncio.ensure_future(client.issue(coupon_id, "ann", wait=True))
        await eventually(lambda: _length(fresh, 2))
        failure = await refused(client.issue(coupon_id, "bob", mine, wait=True))
        assert shape(failure) == ("RESOURCE_EXHAUSTED", "OVERLOADED", {"RetryInfo"})
        assert failure.metadata == {"request_id": mine}
        async with fresh.ledger():
            assert (await waiting).state == Issuance.ISSUED


async def test_more_calls_at_once_than_allowed(fresh: System) -> None:
    coupon_id, mine = new_id(), request_id()
    async with fresh.issuer(FIRSTCOME_CONCURRENT_CALLS_MAX="2") as client:
        async with fresh.ledger():
            await client.create(coupon_id, 100)
        held = [asyncio.ensure_future(client.issue(coupon_id, user, wait=True)) for user in ("ann", "bob")]
        await eventually(lambda: _length(fresh, 3))
        failure = await refused(client.issue(coupon_id, "cem", mine))
        assert shape(failure) == ("RESOURCE_EXHAUSTED", "OVERLOADED", {"RetryInfo"})
        assert failure.metadata == {"request_id": mine}
        async with fresh.ledger():
            assert {one.state for one in await asyncio.gather(*held)} == {Issuance.ISSUED}


async def test_bytes_that_do_not_parse(client: Issuer) -> None:
    for method in ("/coupon.v1.IssuerService/IssueCoupon", "/coupon.v1.CouponService/CreateCoupon"):
        for raw in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe"):  # no message; a string that is not UTF-8
            call: Any = client.channel.unary_unary(method)
            failure = await refused(call(raw, timeout=DEADLINE_S))
            assert shape(failure) == ("INVALID_ARGUMENT", "INVALID_FIELD", set())


async def test_a_ledger_that_is_away_at_a_change(fresh: System) -> None:
    coupon_id, mine = new_id(), request_id()
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id)
        failure = await refused(client.pause(coupon_id, mine, timeout=NEAR_DEADLINE_S))
        assert shape(failure) == ("UNAVAILABLE", "LEDGER_UNAVAILABLE", {"RetryInfo"})
        assert failure.metadata["request_id"] == mine
        async with fresh.ledger():
            assert (await client.pause(coupon_id, mine)).state == Coupon.PAUSED


async def test_a_parked_change_and_a_parked_request(fresh: System) -> None:
    coupon_id, mine = new_id(), request_id()
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id)
        change = asyncio.ensure_future(client.pause(coupon_id, mine))
        await eventually(lambda: _length(fresh, 2))
        request = asyncio.ensure_future(client.issue(coupon_id, "ann", wait=True))
        await eventually(lambda: _length(fresh, 3))
        for offset in (1, 2):
            await fresh.dead_letter(Ticket(home(coupon_id), offset))
        async with fresh.ledger():
            failure = await refused(change)
            assert shape(failure) == ("ABORTED", "PARKED", set())
            assert failure.metadata == {"request_id": mine, "ticket": f"{home(coupon_id)}-1"}
            parked = await request
            assert (parked.state, parked.reject_reason) == (Issuance.PARKED, "")
            assert parked.ticket == f"{home(coupon_id)}-2"
            assert parked.HasField("accept_time")
            assert (await client.coupon(coupon_id)).state == Coupon.ACTIVE
