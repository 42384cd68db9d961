"""GetIssuance by ticket in each state, and without a ticket."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from coupon.v1 import events_pb2

from services.domain.model import Ticket
from services.runtime import wire
from services.runtime.kafka import Message
from tests.contract.issuing import (
    Issuance,
    Issuer,
    System,
    home,
    issue_message,
    new_id,
    refused,
    request_id,
    shape,
)


async def verdict_of(system: System, message: Message, coupon_id: str) -> str:
    """The ticket of a record that went past the issuer, once it is settled."""
    (ticket,) = await system.put(system.topics.line, home(coupon_id), message)
    await system.settled()
    return str(ticket)


async def test_a_grant_by_its_ticket_and_without(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    won = await client.issue(coupon_id, "ann", wait=True)
    for ticket in ("", won.ticket):
        seen = await client.get(coupon_id, "ann", ticket)
        assert (seen.state, seen.ticket, seen.sequence) == (Issuance.ISSUED, won.ticket, 1)
        assert (seen.request_id, seen.position_in_line) == (won.request_id, 0)
        assert seen.accept_time == won.accept_time
        assert seen.HasField("settle_time")


@pytest.mark.parametrize("reason", ["ALREADY_ISSUED", "PAUSED", "CLOSED", "SOLD_OUT", "COUPON_NOT_FOUND"])
async def test_a_rejection_by_its_ticket(client: Issuer, system: System, reason: str) -> None:
    coupon_id, mine = new_id(), request_id()
    if reason != "COUPON_NOT_FOUND":
        await client.create(coupon_id, 1)
    user = "late"
    if reason in ("ALREADY_ISSUED", "SOLD_OUT"):
        user = "late" if reason == "SOLD_OUT" else "winner"
        await client.issue(coupon_id, "winner", wait=True)
    if reason == "PAUSED":
        await client.pause(coupon_id)
    if reason == "CLOSED":
        await client.close_coupon(coupon_id)
    ticket = await verdict_of(system, issue_message(coupon_id, user, mine), coupon_id)
    seen = await client.get(coupon_id, user, ticket)
    assert (seen.state, seen.reject_reason, seen.ticket) == (Issuance.REJECTED, reason, ticket)
    assert (seen.request_id, seen.sequence) == (mine, 0)
    assert seen.HasField("accept_time")
    assert seen.HasField("settle_time")
    if reason == "ALREADY_ISSUED":
        assert (await client.get(coupon_id, user)).state == Issuance.ISSUED
    else:
        assert (await refused(client.get(coupon_id, user))).reason == "ISSUANCE_NOT_FOUND"


async def test_a_repeat_by_its_ticket_is_the_grant(client: Issuer, system: System) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    won = await client.issue(coupon_id, "ann", wait=True)
    ticket = await verdict_of(system, issue_message(coupon_id, "ann", won.request_id), coupon_id)
    assert ticket != won.ticket
    seen = await client.get(coupon_id, "ann", ticket)
    assert (seen.state, seen.ticket, seen.sequence) == (Issuance.ISSUED, won.ticket, 1)


async def test_a_ticket_past_the_end_or_of_no_partition(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    for ticket in (f"{home(coupon_id)}-999999999", "99-0", f"2147483647-{2**63 - 1}"):
        failure = await refused(client.get(coupon_id, "ann", ticket))
        assert shape(failure) == ("NOT_FOUND", "ISSUANCE_NOT_FOUND", {"ResourceInfo"})
        assert failure.resource == f"coupons/{coupon_id}/issuances/ann"


@pytest.mark.parametrize("ticket", ["", "x", "1", "1-", "-1", "01-1", "1-01", "1-1 ", "99999999999-1", "\u0661-1"])
async def test_a_ticket_that_is_none(client: Issuer, ticket: str) -> None:
    failure = await refused(client.get("none", "ann", ticket or " "))
    assert failure.fields == ["ticket"]


async def parked(system: System, coupon_id: str, user_id: str, request: str) -> Ticket:
    """A request in the line of a system without a ledger, which the next one will park."""
    (ticket,) = await system.put(system.topics.line, home(coupon_id), issue_message(coupon_id, user_id, request))
    await system.dead_letter(ticket)
    return ticket


def redrive(original: Ticket, message: Message) -> Message:
    return wire.redrive_message(original, 1, 1, message.key, message.value, message.headers)


async def test_a_parked_request_and_what_its_redrive_came_to(fresh: System) -> None:
    coupon_id, mine = new_id(), [request_id() for _ in range(4)]
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id, 2)
        granted, refused_, corrected, left = [
            await parked(fresh, coupon_id, user, one) for user, one in zip("abcd", mine, strict=True)
        ]
        async with fresh.ledger():
            await fresh.settled()
            for user, ticket, one in zip("abcd", (granted, refused_, corrected, left), mine, strict=True):
                seen = await client.get(coupon_id, user, str(ticket))
                assert (seen.state, seen.reject_reason) == (Issuance.PARKED, "")
                assert (seen.ticket, seen.request_id) == (str(ticket), one)
            line = fresh.topics.line, home(coupon_id)
            again = redrive(granted, issue_message(coupon_id, "a", mine[0]))
            (won,) = await fresh.put(*line, again)
            (taken,) = await fresh.put(*line, redrive(corrected, issue_message(coupon_id, "somebody", mine[2])))
            (lost,) = await fresh.put(*line, redrive(refused_, issue_message(coupon_id, "b", mine[1])))
            (repeat,) = await fresh.put(*line, again)
            (lost_again,) = await fresh.put(*line, redrive(refused_, issue_message(coupon_id, "b", mine[1])))
            await fresh.settled()

            for ticket in (granted, won, repeat):
                seen = await client.get(coupon_id, "a", str(ticket))
                assert (seen.state, seen.ticket, seen.sequence) == (Issuance.ISSUED, str(won), 1)
            for ticket in (refused_, lost, lost_again):
                seen = await client.get(coupon_id, "b", str(ticket))
                assert (seen.state, seen.reject_reason, seen.ticket) == (Issuance.REJECTED, "SOLD_OUT", str(lost))
            seen = await client.get(coupon_id, "c", str(corrected))
            assert (seen.state, seen.reject_reason, seen.user_id) == (Issuance.REJECTED, "CORRECTED", "c")
            assert (await client.get(coupon_id, "somebody", str(taken))).state == Issuance.ISSUED
            assert (await client.get(coupon_id, "d", str(left))).state == Issuance.PARKED
            assert (await refused(client.get(coupon_id, "d"))).reason == "ISSUANCE_NOT_FOUND"


async def test_many_may_ask_at_once_for_their_places_in_the_line(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id)
        places = [await client.issue(coupon_id, f"user{n}") for n in range(40)]
        for _ in range(2):
            seen = await asyncio.gather(*(client.get(coupon_id, one.user_id, one.ticket) for one in places))
            assert [one.position_in_line for one in seen] == list(range(40))


async def test_a_place_of_garbage_is_nobodys(client: Issuer, system: System) -> None:
    coupon_id = new_id()
    headers = issue_message(coupon_id, "ann", request_id()).headers
    ticket = await verdict_of(system, Message(coupon_id.encode(), b"\xff", headers), coupon_id)
    assert (await refused(client.get(coupon_id, "ann", ticket))).fields == ["ticket"]
    nobody = events_pb2.CouponIssueRequestedEvent(
        coupon_id=coupon_id, user_id="a b", request_id=str(uuid.uuid4())
    ).SerializeToString()
    ticket = await verdict_of(system, Message(coupon_id.encode(), nobody, headers), coupon_id)
    assert (await refused(client.get(coupon_id, "ann", ticket))).fields == ["ticket"]
