"""IssueCoupon and BatchIssueCoupons: places, verdicts, repeats."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest
from coupon.v1 import issuer_pb2

from tests.contract.issuing import (
    DEADLINE_S,
    NEAR_DEADLINE_S,
    Issuance,
    Issuer,
    System,
    failure_of,
    home,
    new_id,
    refused,
    request_id,
)


def asked(coupon_id: str, user_id: str, request: str = "", *, wait: bool = False) -> issuer_pb2.IssueCouponRequest:
    return issuer_pb2.IssueCouponRequest(coupon=f"coupons/{coupon_id}", user_id=user_id, request_id=request, wait=wait)


async def test_without_wait_the_answer_is_the_place_in_the_line(client: Issuer, system: System) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id)
    answer = await client.issue(coupon_id, "ann", mine)
    assert answer.state == Issuance.ACCEPTED
    assert answer.name == f"coupons/{coupon_id}/issuances/ann"
    assert (answer.coupon, answer.user_id, answer.request_id) == (f"coupons/{coupon_id}", "ann", mine)
    assert (answer.sequence, answer.reject_reason) == (0, "")
    assert not answer.HasField("settle_time")
    partition, offset = map(int, answer.ticket.split("-"))
    assert partition == home(coupon_id)
    record = (await system.records(system.topics.line, partition))[offset]
    # The broker's LogAppendTime, not a clock of ours.
    assert answer.accept_time.ToMilliseconds() == record.timestamp_ms


async def test_with_wait_the_answer_is_the_verdict(client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id, 2)
    first = await client.issue(coupon_id, "ann", mine, wait=True)
    second = await client.issue(coupon_id, "bob", wait=True)
    assert (first.state, first.sequence, second.state, second.sequence) == (Issuance.ISSUED, 1, Issuance.ISSUED, 2)
    assert first.request_id == mine
    assert first.position_in_line == 0
    assert first.settle_time.ToMilliseconds() >= first.accept_time.ToMilliseconds() > 0
    stored = await client.get(coupon_id, "ann", first.ticket)
    assert (stored.ticket, stored.sequence, stored.accept_time) == (first.ticket, first.sequence, first.accept_time)


async def test_a_request_id_is_made_when_there_is_none_and_serves_to_repeat(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id, 1)
    answer = await client.issue(coupon_id, "ann", wait=True)
    assert str(uuid.UUID(answer.request_id)) == answer.request_id
    again = await client.issue(coupon_id, "ann", answer.request_id, wait=True)
    assert (again.ticket, again.state, again.sequence) == (answer.ticket, Issuance.ISSUED, 1)


async def test_the_winner_who_calls_again_is_a_winner_also_after_the_sell_out(client: Issuer, system: System) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id, 1)
    won = await client.issue(coupon_id, "ann", mine, wait=True)
    failure = await refused(_until_refused(client, coupon_id))
    assert failure.reason == "SOLD_OUT"
    before = await system.ends()
    for wait in (False, True):
        again = await client.issue(coupon_id, "ann", mine, wait=wait)
        assert (again.state, again.ticket, again.sequence) == (Issuance.ISSUED, won.ticket, 1)
        assert again.accept_time == won.accept_time
    assert (await refused(client.issue(coupon_id, "ann"))).reason == "ALREADY_ISSUED"
    assert await system.ends() == before


async def _until_refused(client: Issuer, coupon_id: str) -> None:
    while True:
        await client.issue(coupon_id, "bob")


async def test_one_request_sent_many_times_at_once_is_granted_once(client: Issuer, system: System) -> None:
    coupon_id, mine = new_id(), request_id()
    await client.create(coupon_id, 5)
    told = await asyncio.gather(*(client.issue(coupon_id, "ann", mine, wait=True) for _ in range(20)))
    assert {(one.state, one.sequence, one.ticket) for one in told} == {(Issuance.ISSUED, 1, told[0].ticket)}
    assert len(await system.fetch("SELECT 1 FROM user_coupon WHERE coupon_id = $1", coupon_id)) == 1
    assert (await client.coupon(coupon_id)).issued_count == 1


async def test_while_the_ledger_is_away_requests_wait_in_the_line(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id, 2)
        places = [await client.issue(coupon_id, f"user{number}") for number in range(3)]
        assert [place.position_in_line for place in places] == [0, 1, 2]
        # The deadline is near before there is a verdict.
        near = await client.issue(coupon_id, "late", wait=True, timeout=NEAR_DEADLINE_S)
        assert (near.state, near.position_in_line) == (Issuance.ACCEPTED, 3)
        for number, place in enumerate(places):
            seen = await client.get(coupon_id, f"user{number}", place.ticket)
            assert (seen.state, seen.position_in_line, seen.ticket) == (Issuance.ACCEPTED, number, place.ticket)
            assert (seen.request_id, seen.accept_time) == (place.request_id, place.accept_time)
        async with fresh.ledger():
            await fresh.settled()
            settled = [
                await client.get(coupon_id, f"user{number}", place.ticket) for number, place in enumerate(places)
            ]
        assert [(one.state, one.sequence, one.reject_reason) for one in settled] == [
            (Issuance.ISSUED, 1, ""),
            (Issuance.ISSUED, 2, ""),
            (Issuance.REJECTED, 0, "SOLD_OUT"),
        ]
        assert {one.position_in_line for one in settled} == {0}


async def test_a_batch_keeps_its_order_good_and_bad_together(client: Issuer) -> None:
    coupon_id, unknown, paused = new_id(), new_id(), new_id()
    await asyncio.gather(client.create(coupon_id, 100), client.create(paused))
    await client.pause(paused)
    won = await client.issue(coupon_id, "winner", wait=True)
    mine = request_id()
    answer = await client.batch(
        [
            asked(coupon_id, "ann", mine),
            asked("no id", "ann"),
            asked(coupon_id, "winner"),
            asked(coupon_id, "bob", wait=True),
            asked(unknown, "ann"),
            asked(coupon_id, "winner", won.request_id),
            asked(paused, "ann"),
            asked(coupon_id, "", "1"),
            issuer_pb2.IssueCouponRequest(),
            asked(coupon_id, "cem", wait=True),
        ]
    )
    ann, bad_id, other, bob, missing, again, asleep, bad_fields, empty, cem = answer.results
    assert (ann.issuance.state, ann.issuance.user_id, ann.issuance.request_id) == (Issuance.ACCEPTED, "ann", mine)
    assert (bob.issuance.state, bob.issuance.user_id) == (Issuance.ISSUED, "bob")
    assert (cem.issuance.state, cem.issuance.user_id) == (Issuance.ISSUED, "cem")
    assert bob.issuance.sequence < cem.issuance.sequence
    assert (again.issuance.state, again.issuance.ticket) == (Issuance.ISSUED, won.ticket)
    failures = [failure_of(one.error) for one in (bad_id, other, missing, asleep, bad_fields, empty)]
    assert [(one.code.name, one.reason) for one in failures] == [
        ("INVALID_ARGUMENT", "INVALID_FIELD"),
        ("ALREADY_EXISTS", "ALREADY_ISSUED"),
        ("NOT_FOUND", "COUPON_NOT_FOUND"),
        ("FAILED_PRECONDITION", "PAUSED"),
        ("INVALID_ARGUMENT", "INVALID_FIELD"),
        ("INVALID_ARGUMENT", "INVALID_FIELD"),
    ]
    assert failures[0].fields == ["coupon"]
    assert set(failures[4].fields) == {"user_id", "request_id"}
    assert all(uuid.UUID(one.metadata["request_id"]) for one in failures[:4])


async def test_a_thousand_requests_of_three_coupons_each_get_their_answer(client: Issuer) -> None:
    coupons = [new_id() for _ in range(3)]
    await asyncio.gather(*(client.create(coupon_id, 300) for coupon_id in coupons))
    requests = [asked(coupons[n % 3], f"user{n // 3}", request_id(), wait=True) for n in range(1000)]
    answer = await client.batch(requests)
    assert len(answer.results) == 1000
    granted = dict.fromkeys(coupons, 0)
    for request, result in zip(requests, answer.results, strict=True):
        coupon_id = request.coupon.removeprefix("coupons/")
        if result.HasField("issuance"):
            granted[coupon_id] += 1
            assert (result.issuance.coupon, result.issuance.user_id) == (request.coupon, request.user_id)
            # In the order of the batch, which is that of the line.
            assert (result.issuance.request_id, result.issuance.sequence) == (request.request_id, granted[coupon_id])
        else:
            failure = failure_of(result.error)
            assert (failure.reason, failure.metadata["request_id"]) == ("SOLD_OUT", request.request_id)
            assert "ticket" in failure.metadata
    assert granted == dict.fromkeys(coupons, 300)


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_batch_of_none_or_too_many_is_refused_whole(client: Issuer, system: System, count: int) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    before = await system.ends()
    failure = await refused(client.batch([asked(coupon_id, f"user{n}") for n in range(count)]))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["requests"])
    assert await system.ends() == before


async def test_a_batch_that_waits_answers_what_is_settled_by_its_deadline(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id)
        calls = [asked(coupon_id, f"user{n}", wait=True) for n in range(5)]
        answer = await client.batch(calls, timeout=NEAR_DEADLINE_S)
        assert [one.issuance.state for one in answer.results] == [Issuance.ACCEPTED] * 5
        assert [one.issuance.position_in_line for one in answer.results] == list(range(5))


async def test_eight_callers_of_batches_each_get_exactly_their_answers(client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id, 1000)
    batches = [[asked(coupon_id, f"user{(n * 7 + c) % 600}", wait=True) for n in range(200)] for c in range(8)]
    answers = await asyncio.gather(*(client.batch(batch, timeout=DEADLINE_S) for batch in batches))
    sequences: dict[str, int] = {}
    for batch, answer in zip(batches, answers, strict=True):
        for request, result in zip(batch, answer.results, strict=True):
            if result.HasField("issuance"):
                assert (result.issuance.state, result.issuance.user_id) == (Issuance.ISSUED, request.user_id)
                assert request.user_id not in sequences
                sequences[request.user_id] = result.issuance.sequence
            else:
                assert failure_of(result.error).reason == "ALREADY_ISSUED"
    assert sorted(sequences.values()) == list(range(1, len(sequences) + 1))
    assert set(sequences) == {request.user_id for batch in batches for request in batch}
