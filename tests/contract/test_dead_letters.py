"""DeadLetterService over the wire: what operators see, retry, correct and discard, with a real ledger settling it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from coupon.v1 import dead_letter_pb2, events_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.domain.model import ParkReason, Ticket
from services.runtime import kafka, wire
from services.runtime.auth import line_of, new_token
from services.runtime.kafka import Message, Record
from tests.conftest import TEST_PARTITIONS
from tests.contract.issuing import (
    DEADLINE_S,
    TRACE,
    TRACEPARENT,
    DeadLetters,
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

DeadLetter = dead_letter_pb2.DeadLetter
WRONG_STATE = ("FAILED_PRECONDITION", "WRONG_STATE", {"PreconditionFailure"})
INVALID = ("INVALID_ARGUMENT", "INVALID_FIELD", {"BadRequest"})


@pytest.fixture(scope="module")
async def dlq(system: System) -> AsyncIterator[DeadLetters]:
    async with system.dlq() as running:
        yield running


def message(value: bytes | None, *, key: bytes = b"k", ce_type: str = wire.ISSUE_REQUESTED) -> Message:
    headers = wire.request_headers(ce_type, "test", b"2026-01-01T00:00:00Z", TRACEPARENT.encode())
    return Message(key, value, headers)


def event(coupon_id: str, user_id: str, request: str = "") -> bytes:
    made = events_pb2.CouponIssueRequestedEvent(
        coupon_id=coupon_id, user_id=user_id, request_id=request or request_id()
    )
    return made.SerializeToString()


def corrected(coupon_id: str, user_id: str) -> dict[str, Any]:
    return {"corrected_value": event(coupon_id, user_id), "corrected_type": wire.ISSUE_REQUESTED}


async def park(system: System, dlq: DeadLetters, record: Message, partition: int = 0) -> Ticket:
    """The ticket of a record that the ledger parks, known to the dlq."""
    (ticket,) = await system.put(system.topics.line, partition, record)
    await dlq.becomes(ticket, DeadLetter.PARKED)
    return ticket


async def park_garbage(system: System, dlq: DeadLetters) -> Ticket:
    return await park(system, dlq, message(b"\xff\xff"))


async def test_a_dead_letter_shows_its_bytes_and_what_was_done(system: System, dlq: DeadLetters) -> None:
    coupon_id, mine = new_id(), request_id()
    value = event(coupon_id, "ann", mine)
    record = message(value, key=b"\x00other")
    twice = Message(record.key, record.value, [*record.headers, ("twice", b"1"), ("twice", b"2"), ("none", None)])
    ticket = await park(system, dlq, twice, home(coupon_id))
    letter = await dlq.get(ticket)
    assert (letter.name, letter.ticket) == (f"deadLetters/{ticket}", str(ticket))
    assert (letter.state, letter.reason, letter.attempt_count) == (DeadLetter.PARKED, "KEY_MISMATCH", 1)
    assert (letter.coupon_id, letter.user_id, letter.request_id) == (coupon_id, "ann", mine)
    assert (letter.key, letter.value, letter.trace_id) == (b"\x00other", value, TRACE)
    assert letter.headers["twice"] == b"2"
    assert letter.headers["none"] == b""
    assert letter.headers["ce_type"] == wire.ISSUE_REQUESTED.encode()
    assert "key" in letter.error_message
    assert letter.record_time.ToMilliseconds() <= letter.first_failed_time.ToMilliseconds()
    assert letter.first_failed_time == letter.last_failed_time
    assert not letter.HasField("next_attempt_time")
    assert [(done.action, done.caller) for done in letter.actions] == [("FAILED", "dlq"), ("PARKED", "dlq")]
    assert letter.etag


async def test_a_list_has_what_the_filter_asks_for_page_by_page(system: System, dlq: DeadLetters) -> None:
    coupon_id = new_id()
    before = Timestamp()
    before.GetCurrentTime()
    users = [f"user{number}" for number in range(5)]
    tickets = sorted(
        [
            await park(system, dlq, message(event(coupon_id, user)), number % TEST_PARTITIONS)
            for number, user in enumerate(users)
        ]
    )
    names = [f"deadLetters/{ticket}" for ticket in tickets]
    seen: list[Any] = []
    token, pages = "", 0
    while pages == 0 or token:
        page = await dlq.list(2, token, coupon_id=coupon_id)
        seen += page.dead_letters
        token, pages = page.next_page_token, pages + 1
        if token:
            failure = await refused(dlq.list(2, token, user_id="user1"))
            assert failure.fields == ["page_token"]
    assert (pages, [one.name for one in seen]) == (3, names)
    whole = await dlq.get(tickets[0])
    for field in ("key", "value", "headers", "actions"):
        assert getattr(whole, field)
        whole.ClearField(field)
    assert seen[0] == whole

    async def found(**wanted: Any) -> list[str]:
        return [one.user_id for one in (await dlq.list(coupon_id=coupon_id, **wanted)).dead_letters]

    assert await found(user_id="user3") == ["user3"]
    assert await found(state=DeadLetter.RESOLVED) == []
    assert await found(reason="BAD_ID") == []
    assert len(await found(reason="KEY_MISMATCH", state=DeadLetter.PARKED, failed_after=before)) == 5
    assert await found(failed_before=before) == []


BAD = Timestamp(seconds=10**15)
LONG = "x" * 1_025
BAD_REQUESTS: list[tuple[str, Any, set[str]]] = [
    ("GetDeadLetter", dead_letter_pb2.GetDeadLetterRequest(name="deadLetters/1"), {"name"}),
    (
        "ListDeadLetters",
        dead_letter_pb2.ListDeadLettersRequest(
            filter=dead_letter_pb2.DeadLetterFilter(
                state=77,  # type: ignore[arg-type]
                reason="BORED",
                coupon_id="a b",
                user_id="\0",
                failed_after=BAD,
                failed_before=Timestamp(seconds=1),
            ),
            page_size=-1,
            page_token="x",
        ),
        {
            "filter.state",
            "filter.reason",
            "filter.coupon_id",
            "filter.user_id",
            "filter.failed_after",
            "filter.failed_before",
            "page_size",
            "page_token",
        },
    ),
    (
        "RetryDeadLetter",
        dead_letter_pb2.RetryDeadLetterRequest(
            name="x",
            request_id="x",
            comment=LONG,
            etag="old",
            corrected_value=b"\xff",
            corrected_type="coupon.v1.Coupon",
        ),
        {"name", "request_id", "comment", "etag", "corrected_type"},
    ),
    (
        "RetryDeadLetter",
        dead_letter_pb2.RetryDeadLetterRequest(name="deadLetters/0-0", corrected_type=wire.ISSUE_REQUESTED),
        {"corrected_value"},
    ),
    (
        "RetryDeadLetter",
        dead_letter_pb2.RetryDeadLetterRequest(name="deadLetters/0-0", corrected_value=event("c", "u")),
        {"corrected_type"},
    ),
    (
        "DiscardDeadLetter",
        dead_letter_pb2.DiscardDeadLetterRequest(name="", request_id="1", comment=" ", etag="-1"),
        {"name", "request_id", "comment", "etag"},
    ),
    ("DiscardDeadLetter", dead_letter_pb2.DiscardDeadLetterRequest(name="deadLetters/0-0", comment="\n"), {"comment"}),
]


@pytest.mark.parametrize(("method", "asked", "fields"), BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
async def test_every_bad_field_is_named_at_once(dlq: DeadLetters, method: str, asked: Any, fields: set[str]) -> None:
    failure = await refused(getattr(dlq.stub, method)(asked, timeout=DEADLINE_S))
    assert shape(failure) == INVALID
    assert set(failure.fields) == fields


def change(display_name: str) -> bytes:
    made = events_pb2.CouponChangeRequestedEvent(
        coupon_id="c", request_id=request_id(), action=events_pb2.CouponChangeRequestedEvent.UPDATE
    )
    made.coupon.display_name = display_name
    return made.SerializeToString()


BAD_CORRECTIONS = [
    (b"\xff\xff", wire.ISSUE_REQUESTED, "corrected_value", "UNDECODABLE"),
    (event("", "ann"), wire.ISSUE_REQUESTED, "corrected_value", "MISSING_FIELD: empty: coupon_id"),
    (event("c", "a b"), wire.ISSUE_REQUESTED, "corrected_value", "BAD_ID: against the id rule: user_id"),
    (event("c", "ann", "1"), wire.ISSUE_REQUESTED, "corrected_value", "BAD_ID"),
    (event("c", "ann") + b"\x7a\xff\xff\x03" + b"x" * 65_535, wire.ISSUE_REQUESTED, "corrected_value", "TOO_LARGE"),
    (event("c", "ann"), wire.ISSUED, "corrected_type", wire.CHANGE_REQUESTED),
    (b"\xff\xff", wire.CHANGE_REQUESTED, "corrected_value", "UNDECODABLE"),
    (
        change("nul\0"),
        wire.CHANGE_REQUESTED,
        "corrected_value.coupon.display_name",
        "control characters",
    ),
]


@pytest.mark.parametrize(("value", "ce_type", "field", "why"), BAD_CORRECTIONS, ids=range(len(BAD_CORRECTIONS)))
async def test_a_correction_that_would_be_parked_again_is_refused(
    dlq: DeadLetters, value: bytes, ce_type: str, field: str, why: str
) -> None:
    failure = await refused(dlq.retry(Ticket(0, 0), corrected_value=value, corrected_type=ce_type))
    assert shape(failure) == INVALID
    assert failure.fields == [field]
    assert why in failure.message


async def test_an_unknown_dead_letter(dlq: DeadLetters) -> None:
    ticket, mine = Ticket(3, 10**12), request_id()
    for call in (dlq.get(ticket), dlq.retry(ticket, mine), dlq.discard(ticket, mine)):
        failure = await refused(call)
        assert shape(failure) == ("NOT_FOUND", "DEAD_LETTER_NOT_FOUND", {"ResourceInfo"})
        assert failure.resource == f"deadLetters/{ticket}"
        assert failure.metadata in ({"request_id": mine}, {})


async def test_a_discarded_one_stays_so_and_says_why(system: System, dlq: DeadLetters) -> None:
    ticket, mine = await park_garbage(system, dlq), request_id()
    letter = await dlq.discard(ticket, mine, "sent by a test")
    assert letter.state == DeadLetter.DISCARDED
    done = letter.actions[-1]
    assert (done.action, done.caller, done.comment) == ("DISCARDED", "local", "sent by a test")
    for call in (
        dlq.retry(ticket, mine_too := request_id()),
        dlq.discard(ticket, mine_too),
        dlq.retry(ticket, mine_too, **corrected("c", "ann")),
    ):
        failure = await refused(call)
        assert shape(failure) == WRONG_STATE
        assert failure.resource == f"deadLetters/{ticket}"
        assert failure.metadata == {"request_id": mine_too}
        assert "DISCARDED" in failure.message


async def test_a_repeated_call_is_answered_and_does_nothing_twice(system: System, dlq: DeadLetters) -> None:
    ticket, mine = await park_garbage(system, dlq), request_id()
    etag = (await dlq.get(ticket)).etag
    first, *others = await asyncio.gather(*(dlq.discard(ticket, mine, etag=etag) for _ in range(4)))
    again = await dlq.discard(ticket, mine, etag=etag)
    assert all(one == first for one in (*others, again))
    assert [done.action for done in again.actions].count("DISCARDED") == 1
    for call in (dlq.discard(ticket, mine, "something else"), dlq.retry(ticket, mine)):
        failure = await refused(call)
        assert shape(failure) == INVALID
        assert (failure.fields, failure.metadata) == (["request_id"], {"request_id": mine})
    assert await dlq.get(ticket) == again


async def test_a_stale_etag(system: System, dlq: DeadLetters) -> None:
    ticket, mine = await park_garbage(system, dlq), request_id()
    etag = (await dlq.get(ticket)).etag
    for call in (dlq.discard(ticket, mine, etag=etag + "0"), dlq.retry(ticket, mine, etag=etag + "0")):
        failure = await refused(call)
        assert shape(failure) == ("ABORTED", "ETAG_MISMATCH", set())
        assert failure.metadata == {"request_id": mine}
    assert (await dlq.discard(ticket, mine, etag=etag)).state == DeadLetter.DISCARDED


async def test_a_retried_one_that_fails_again_is_parked_again(system: System, dlq: DeadLetters) -> None:
    ticket = await park_garbage(system, dlq)
    letter = await dlq.retry(ticket, comment="perhaps")
    assert letter.state == DeadLetter.RETRYING
    assert letter.HasField("next_attempt_time")
    letter = await dlq.becomes(ticket, DeadLetter.PARKED)
    assert letter.attempt_count == 2
    *before, redriven, failed, last = [done.action for done in letter.actions]
    assert (before, last) == (["FAILED", "PARKED", "RETRYING"], "PARKED")
    assert {redriven, failed} == {"REDRIVEN", "FAILED"}  # it may fail before its publication is noted
    assert [done.comment for done in letter.actions if done.caller == "local"] == ["perhaps"]
    assert letter.last_failed_time.ToMicroseconds() > letter.first_failed_time.ToMicroseconds()


async def test_a_waiting_one_is_retried_now_and_not_corrected(system: System, dlq: DeadLetters, client: Issuer) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    # What the ledger could not do for a reason that may pass; the next attempt is an hour away.
    failed = Record(10**6, 0, coupon_id.encode(), event(coupon_id, "ann"), tuple(message(None).headers))
    told = wire.dead_letter_message(system.topics.line, home(coupon_id), failed, ParkReason.INTERNAL, "boom")
    await system.put(system.topics.dlq, home(coupon_id), told)
    ticket = Ticket(home(coupon_id), 10**6)
    await dlq.becomes(ticket, DeadLetter.RETRYING)
    failure = await refused(dlq.retry(ticket, **corrected(coupon_id, "ann")))
    assert shape(failure) == WRONG_STATE
    await dlq.retry(ticket)
    letter = await dlq.becomes(ticket, DeadLetter.RESOLVED)
    issued = await client.get(coupon_id, "ann")
    assert (issued.state, issued.ticket) == (Issuance.ISSUED, letter.redrive_ticket)


async def test_a_corrected_request_is_granted_under_its_original_ticket(
    system: System, dlq: DeadLetters, client: Issuer
) -> None:
    coupon_id = new_id()
    await client.create(coupon_id)
    ticket = await park(system, dlq, message(event(coupon_id, "ann")), home(coupon_id))
    assert (await client.get(coupon_id, "ann", str(ticket))).state == Issuance.PARKED
    letter = await dlq.retry(ticket, mine := request_id(), comment="key mended", **corrected(coupon_id, "ann"))
    assert letter.actions[-1].action == "CORRECTED"
    letter = await dlq.becomes(ticket, DeadLetter.RESOLVED)
    issued = await client.get(coupon_id, "ann", str(ticket))
    assert (issued.state, issued.ticket) == (Issuance.ISSUED, letter.redrive_ticket)
    redrive = Ticket.parse(letter.redrive_ticket)
    assert redrive is not None
    record = (await system.records(system.topics.line, redrive.partition))[redrive.offset]
    assert (record.key, record.header(kafka.REDRIVE_OF)) == (coupon_id.encode(), str(ticket).encode())
    assert (record.header("ce_id"), record.header("traceparent")) == (mine.encode(), TRACEPARENT.encode())
    assert letter.value != record.value  # what failed stays as it was


async def test_a_request_corrected_to_somebody_else_is_rejected_as_corrected(
    system: System, dlq: DeadLetters, client: Issuer
) -> None:
    was, becomes = new_id(), new_id()
    while home(becomes) == home(was):
        becomes = new_id()
    for coupon_id in (was, becomes):
        await client.create(coupon_id)
    ticket = await park(system, dlq, message(event(was, "ann")), home(was))
    await dlq.retry(ticket, **corrected(becomes, "bob"))
    letter = await dlq.becomes(ticket, DeadLetter.RESOLVED)
    told = await client.get(was, "ann", str(ticket))
    assert (told.state, told.reject_reason) == (Issuance.REJECTED, "CORRECTED")
    issued = await client.get(becomes, "bob")
    assert (issued.state, issued.ticket) == (Issuance.ISSUED, letter.redrive_ticket)
    assert issued.ticket.startswith(f"{home(becomes)}-")


async def test_a_redrive_is_granted_from_the_stock_that_is_left_then(
    system: System, dlq: DeadLetters, client: Issuer
) -> None:
    coupon_id = new_id()
    await client.create(coupon_id, 2)
    late, later = [await park(system, dlq, message(event(coupon_id, user)), home(coupon_id)) for user in ("ann", "bob")]
    await client.issue(coupon_id, "cem", wait=True)
    for ticket, user in ((late, "ann"), (later, "bob")):
        await dlq.retry(ticket, **corrected(coupon_id, user))
        letter = await dlq.becomes(ticket, DeadLetter.RESOLVED)
        assert letter.actions[-1].comment == ("ISSUED" if user == "ann" else "SOLD_OUT")
    told = await client.get(coupon_id, "ann", str(late))
    assert (told.state, told.sequence) == (Issuance.ISSUED, 2)
    told = await client.get(coupon_id, "bob", str(later))
    assert (told.state, told.reject_reason, told.ticket) == (Issuance.REJECTED, "SOLD_OUT", letter.redrive_ticket)


async def test_a_corrected_change_is_the_correctors(system: System, dlq: DeadLetters, client: Issuer) -> None:
    coupon_id, mine = new_id(), request_id()
    ticket = await park(system, dlq, message(b"\xff", ce_type=wire.CHANGE_REQUESTED))
    creation = events_pb2.CouponChangeRequestedEvent(
        coupon_id=coupon_id, request_id=mine, action=events_pb2.CouponChangeRequestedEvent.CREATE, caller="the boss"
    )
    creation.coupon.total_quantity = 7
    await dlq.retry(ticket, corrected_value=creation.SerializeToString(), corrected_type=wire.CHANGE_REQUESTED)
    await dlq.becomes(ticket, DeadLetter.RESOLVED)
    assert (await client.coupon(coupon_id)).total_quantity == 7
    rows = await system.fetch("SELECT caller, redrive_of FROM coupon_change WHERE request_id = $1", mine)
    assert [tuple(row) for row in rows] == [("local", str(ticket))]


async def test_a_corrected_one_that_fails_again_is_retried_as_corrected(fresh: System) -> None:
    async with fresh.dlq(FIRSTCOME_RETRY_BACKOFF_BASE_MS="1") as dlq:
        failed = Record(7, 0, b"k", b"\xff", tuple(message(None).headers))
        told = wire.dead_letter_message(fresh.topics.line, 0, failed, ParkReason.UNDECODABLE, "boom")
        await fresh.put(fresh.topics.dlq, 0, told)
        ticket, coupon_id = Ticket(0, 7), new_id()
        await dlq.becomes(ticket, DeadLetter.PARKED)
        asked = corrected(coupon_id, "ann")
        await dlq.retry(ticket, **asked)
        for attempt in (1, 2):  # where the coupon belongs, with the same bytes each time
            letter = await dlq.becomes(ticket, DeadLetter.REDRIVEN)
            redrive = Ticket.parse(letter.redrive_ticket)
            assert redrive == Ticket(home(coupon_id), attempt - 1)
            record = (await fresh.records(fresh.topics.line, redrive.partition))[redrive.offset]
            assert (record.key, record.value) == (coupon_id.encode(), asked["corrected_value"])
            assert record.header(kafka.REDRIVE_OF) == str(ticket).encode()
            told = wire.dead_letter_message(fresh.topics.line, redrive.partition, record, ParkReason.INTERNAL, "boom")
            await fresh.put(fresh.topics.dlq, redrive.partition, told)

            async def counted(attempt: int = attempt) -> bool:
                return bool((await dlq.get(ticket)).attempt_count == attempt + 1)

            await eventually(counted)
        letter = await dlq.becomes(ticket, DeadLetter.REDRIVEN)
        assert (letter.value, letter.reason) == (b"\xff", "INTERNAL")
        assert [done.comment for done in letter.actions if done.action == "REDRIVEN"] == [
            "attempt 2, corrected",
            "attempt 3, corrected",
            "attempt 4, corrected",
        ]


async def test_readers_look_and_operators_act_under_their_name(fresh: System, tmp_path: Path) -> None:
    tokens = {name: new_token() for name in ("shop", "eyes", "ops")}
    roles = {"shop": ["issue"], "eyes": ["read"], "ops": ["operate"]}
    callers = tmp_path / "callers"
    callers.write_text("".join(line_of(name, roles[name], token) + "\n" for name, token in tokens.items()))
    failed = Record(0, time.time_ns() // 1_000_000, b"k", b"\xff", tuple(message(None).headers))
    told = wire.dead_letter_message(fresh.topics.line, 0, failed, ParkReason.UNDECODABLE, "boom")
    await fresh.put(fresh.topics.dlq, 0, told)
    name = "deadLetters/0-0"
    requests = {
        "GetDeadLetter": dead_letter_pb2.GetDeadLetterRequest(name=name),
        "ListDeadLetters": dead_letter_pb2.ListDeadLettersRequest(),
        "RetryDeadLetter": dead_letter_pb2.RetryDeadLetterRequest(name=name),
        "DiscardDeadLetter": dead_letter_pb2.DiscardDeadLetterRequest(name=name, comment="no"),
    }
    async with fresh.dlq(FIRSTCOME_AUTH="required", FIRSTCOME_TOKENS=str(callers)) as dlq:

        def call(method: str, caller: str | None) -> Any:
            metadata = [("authorization", f"Bearer {tokens[caller]}")] if caller else None
            return getattr(dlq.stub, method)(requests[method], metadata=metadata, timeout=DEADLINE_S)

        async def listed() -> bool:
            return bool((await call("ListDeadLetters", "eyes")).dead_letters)

        await eventually(listed)
        for method in requests:
            reads = method.startswith(("Get", "List"))
            assert (await refused(call(method, None))).reason == "UNAUTHENTICATED"
            for caller in ("shop", "ops") if reads else ("shop", "eyes"):
                failure = await refused(call(method, caller))
                assert (failure.reason, failure.metadata) == ("ROLE_MISSING", {"role": "read" if reads else "operate"})
        assert len((await call("GetDeadLetter", "eyes")).actions) == 2
        await call("RetryDeadLetter", "ops")
        await eventually(lambda: _redriven(fresh))
        (done,) = await fresh.fetch("SELECT action FROM dead_letter_action WHERE caller = 'ops'")
        assert done["action"] == "RETRYING"


async def _redriven(system: System) -> bool:
    (row,) = await system.fetch("SELECT state FROM dead_letter")
    return bool(row["state"] == "REDRIVEN")
