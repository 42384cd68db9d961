"""What the ledger makes of the line: verdicts, outcomes and dead letters, on a real broker and database."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from coupon.v1 import events_pb2

from services.domain.model import ParkReason, Ticket
from services.ledger import consumer
from services.ledger.store import LedgerStore
from services.runtime import kafka, wire
from services.runtime.fetching import PartitionLog
from services.runtime.gathering import Gathering
from services.runtime.kafka import Message, Record
from services.runtime.postgres import DatabaseAway
from tests.conftest import TEST_PARTITIONS
from tests.integration.ledger_world import (
    COUPON,
    HOME,
    TRACEPARENT,
    World,
    batches_of,
    change,
    coupon_at,
    create,
    garbage,
    headers,
    issue,
    redrive,
    request_id,
)

ELSEWHERE = coupon_at(HOME + 1)


def told(record: Record) -> Any:
    """The event of an outcome."""
    ce_type = record.header("ce_type")
    assert ce_type is not None
    return getattr(events_pb2, ce_type.decode().rpartition(".")[2]).FromString(record.value or b"")


def batch_sizes(patch: pytest.MonkeyPatch, most: int = 1_000) -> list[int]:
    """Of the batches that ledgers try to settle, as they come; of more records than `most` the database is away."""
    sizes: list[int] = []
    settle = LedgerStore.settle

    async def counting(self: LedgerStore, before: Any, after: Any, records: Any, run: Any) -> Any:
        sizes.append(len(records))
        if len(records) > most:
            raise DatabaseAway("too much at once")
        return await settle(self, before, after, records, run)

    patch.setattr(LedgerStore, "settle", counting)
    return sizes


async def test_coupons_go_to_the_first_in_the_line_until_the_stock_is_gone(world: World) -> None:
    users = [f"user-{number}" for number in range(8)]
    await world.settle(create(5), *(issue(user) for user in users))
    assert await world.verdicts() == ["APPLIED", *(f"ISSUED {n}" for n in range(1, 6)), *["SOLD_OUT"] * 3]
    (coupon,) = await world.fetch("SELECT * FROM coupon")
    assert (coupon["total"], coupon["remaining"], coupon["issued_count"]) == (5, 0, 5)
    granted = await world.fetch("SELECT * FROM user_coupon ORDER BY ticket_offset")
    assert [(row["user_id"], row["ticket_offset"]) for row in granted] == [(users[n], n + 1) for n in range(5)]
    await world.audit()


async def test_every_record_has_one_outcome_that_follows_from_it(world: World) -> None:
    await world.settle(create(1), issue("ann"), issue("bob"), garbage())
    line, outcomes = await world.line(), await world.outcomes()
    assert [one.header("ce_id") for one in outcomes] == [
        f"{world.topics.line}/{HOME}/{record.offset}".encode() for record in line
    ]
    assert [one.header("ce_type") for one in outcomes] == [
        one.encode() for one in (wire.CHANGED, wire.ISSUED, wire.REJECTED, wire.REJECTED)
    ]
    for record, outcome in zip(line, outcomes, strict=True):
        moment = datetime.fromtimestamp(record.timestamp_ms / 1000, UTC)
        assert datetime.fromisoformat((outcome.header("ce_time") or b"").decode()) == moment
        assert outcome.header("traceparent") == TRACEPARENT
        assert outcome.header("ce_specversion") == b"1.0"
        assert outcome.header("ce_source") == wire.LEDGER_SOURCE
        assert outcome.header("content-type") == b"application/protobuf"
        assert told(outcome).ticket == f"{HOME}-{record.offset}"
    assert [one.key for one in outcomes] == [COUPON.encode()] * 3 + [None]
    assert (told(outcomes[1]).user_id, told(outcomes[1]).sequence) == ("ann", 1)
    assert [told(one).reason for one in outcomes[2:]] == ["SOLD_OUT", "PARKED"]
    await world.audit()


async def test_progress_names_the_last_record_and_all_is_published_at_rest(world: World) -> None:
    await world.settle(create(1), issue("ann"))
    row, line = await world.progress(), await world.line()
    assert row["next_offset"] == row["published_offset"] == len(line) == 2
    assert (row["last_offset"], row["last_timestamp"]) == (1, line[-1].timestamp_ms)
    assert row["last_checksum"] == line[-1].checksum()


async def test_how_long_each_transaction_took_is_known_to_what_keeps_batches_apart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_s: list[float] = []
    monkeypatch.setattr(Gathering, "took", lambda _, seconds: taken_s.append(seconds))

    class Slow(LedgerStore):
        async def settle(self, *settled: Any) -> Any:
            await asyncio.sleep(0.05)
            return await super().settle(*settled)

    batches_of(1, monkeypatch)
    await world.settle(create(1), issue("ann"), store=Slow(world.engine, world.topics.line, TEST_PARTITIONS))
    assert len(taken_s) == 2
    assert min(taken_s) > 0.04


async def test_batches_are_further_apart_only_where_for_long_nobody_has_waited(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient: list[bool] = []
    monkeypatch.setattr(Gathering, "begin", lambda _, count, *, patient=False, told=patient: told.append(patient))
    batches_of(1, monkeypatch)
    plain = issue("ann")
    awaited = Message(plain.key, plain.value, [*plain.headers, (kafka.AWAITED, b"")])
    before = consumer.PATIENT_BEHIND
    async with world.running(world.ledger()):
        await world.put(*([plain] * (before + 2)))
        await world.rest()
        await world.put(awaited)
        await world.rest()
        await world.put(plain)
        await world.rest()
    assert patient == [False] * before + [True] * 2 + [False] * 2
    assert await world.verdicts() == ["COUPON_NOT_FOUND"] * (before + 4)


async def test_an_empty_partition_is_at_rest_at_its_beginning(world: World) -> None:
    await world.settle()
    row = await world.progress()
    assert (row["next_offset"], row["published_offset"], row["last_offset"]) == (0, 0, None)


async def test_who_asks_again_is_repeated_or_refused_in_the_batch_across_batches_and_restarts(world: World) -> None:
    again, other = issue("ann"), issue("ann", request="another")
    await world.settle(create(10), issue("ann"), again, other)
    async with world.running(world.ledger()):
        await world.put(again, other)
        await world.rest()
        await world.put(other, again)
        await world.rest()
    await world.settle(again, other, issue("bob"))
    rest = ["REPEATED", "ALREADY_ISSUED"]
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", *rest, *rest, *reversed(rest), *rest, "ISSUED 2"]
    for outcome in await world.outcomes():
        event = told(outcome)
        if outcome.header("ce_type") == wire.REJECTED.encode() and event.reason == "REPEATED":
            assert (event.issued_ticket, event.issued_sequence) == (f"{HOME}-1", 1)
    await world.audit()


async def test_changes_take_effect_for_the_records_behind_them_in_the_same_batch(world: World) -> None:
    late = int(time.time()) + 3_600
    await world.settle(
        issue("early"),
        create(1),
        issue("a1"),
        issue("a2"),
        change("ADJUST_STOCK", delta=2),
        issue("a3"),
        change("PAUSE"),
        issue("a4"),
        change("RESUME"),
        issue("a5"),
        change("ADJUST_STOCK", delta=-1),
        change("ADJUST_STOCK", delta=5),
        change("UPDATE", paths=["start_time"], start_s=late),
        issue("a6"),
        change("UPDATE", paths=["start_time", "end_time"], end_s=late - 7_200),
        issue("a7"),
        change("CLOSE"),
        issue("a8"),
        issue("a1"),
        change("RESUME"),
    )
    assert await world.verdicts() == [
        "COUPON_NOT_FOUND",
        "APPLIED",
        "ISSUED 1",
        "SOLD_OUT",
        "APPLIED",
        "ISSUED 2",
        "APPLIED",
        "PAUSED",
        "APPLIED",
        "ISSUED 3",
        "INSUFFICIENT_STOCK",
        "APPLIED",
        "APPLIED",
        "NOT_OPEN",
        "APPLIED",
        "ENDED",
        "APPLIED",
        "CLOSED",
        "REPEATED",
        "CLOSED",
    ]
    await world.audit()


async def test_the_same_line_in_small_batches_has_the_same_verdicts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(2, monkeypatch)
    pause, resume = change("PAUSE", request="pause"), change("RESUME")
    await world.settle(create(2), issue("a"), pause, issue("b"), pause, resume, issue("b"), issue("c"), issue("a"))
    assert await world.verdicts() == [
        "APPLIED",
        "ISSUED 1",
        "APPLIED",
        "PAUSED",
        "REPEATED",
        "APPLIED",
        "ISSUED 2",
        "SOLD_OUT",
        "REPEATED",
    ]
    await world.audit()


async def test_a_repeated_change_is_answered_as_the_first_and_another_payload_is_refused(world: World) -> None:
    first, other = create(3, request="create"), create(4, request="create")
    await world.settle(first, first, issue("ann"))
    await world.settle(first, other, issue("bob"), first)
    assert await world.verdicts() == ["APPLIED", "REPEATED", "ISSUED 1", "REPEATED", "REPEATED", "ISSUED 2", "REPEATED"]
    events = [told(one) for one in await world.outcomes() if one.header("ce_type") == wire.CHANGED.encode()]
    assert [event.reason for event in events] == ["", "", "", "INVALID_FIELD", ""]
    for event in (events[1], events[2], events[4]):
        assert event.coupon == events[0].coupon
    await world.audit()


async def test_a_stored_change_outcome_is_the_published_one(world: World) -> None:
    await world.settle(
        create(3, start_s=1_000_000_000, end_s=4_000_000_000),
        change("PAUSE"),
        change("UPDATE", etag="stale", paths=["display_name"]),
        change("ADJUST_STOCK", coupon_at(HOME, 1), delta=1),
    )
    stored = await world.fetch("SELECT outcome, result FROM coupon_change ORDER BY ticket_offset")
    assert [row["outcome"] for row in stored] == [one.value for one in await world.outcomes()]
    assert [row["result"] for row in stored] == ["APPLIED", "APPLIED", "ETAG_MISMATCH", "COUPON_NOT_FOUND"]
    await world.audit()


# Dead letters


def raw(value: bytes | None, ce_type: str | None = wire.ISSUE_REQUESTED, key: bytes | None = b"k") -> Message:
    return Message(key, value, headers(ce_type) if ce_type is not None else [("odd", None)])


def issue_event(**fields: str) -> bytes:
    plain = {"coupon_id": COUPON, "user_id": "ann", "request_id": request_id("ann")}
    return events_pb2.CouponIssueRequestedEvent(**{**plain, **fields}).SerializeToString()


def change_event(**fields: Any) -> bytes:
    plain = {"coupon_id": COUPON, "request_id": request_id("ann"), "action": 1}
    return events_pb2.CouponChangeRequestedEvent(**{**plain, **fields}).SerializeToString()


IDS = (COUPON, "ann", request_id("ann"))
UNPROCESSABLE = [
    (ParkReason.UNDECODABLE, raw(b"\xff\xff\xff"), (None, None, None)),
    (ParkReason.UNDECODABLE, raw(change_event(action=99), wire.CHANGE_REQUESTED), (None, None, None)),
    (
        ParkReason.UNDECODABLE,
        Message(COUPON.encode(), issue_event(), [*headers(wire.ISSUE_REQUESTED), ("redrive-of", b"nowhere")]),
        (None, None, None),
    ),
    (ParkReason.EMPTY, raw(None), (None, None, None)),
    (ParkReason.EMPTY, raw(b"", key=None), (None, None, None)),
    (ParkReason.WRONG_TYPE, raw(issue_event(), wire.ISSUED), (None, None, None)),
    (ParkReason.WRONG_TYPE, raw(issue_event(), None), (None, None, None)),
    (ParkReason.MISSING_FIELD, raw(issue_event(user_id="")), (COUPON, None, request_id("ann"))),
    (ParkReason.MISSING_FIELD, raw(change_event(coupon_id=""), wire.CHANGE_REQUESTED), (None, None, request_id("ann"))),
    (ParkReason.BAD_ID, raw(issue_event(user_id="a\x00b")), (COUPON, None, request_id("ann"))),
    (ParkReason.BAD_ID, raw(issue_event(user_id="x" * 129)), (COUPON, None, request_id("ann"))),
    (ParkReason.BAD_ID, raw(issue_event(coupon_id="좋은", request_id="7")), (None, "ann", None)),
    (ParkReason.KEY_MISMATCH, raw(issue_event(), key=b"other"), IDS),
    (ParkReason.KEY_MISMATCH, raw(issue_event(), key=None), IDS),
    (ParkReason.KEY_MISMATCH, raw(change_event(), wire.CHANGE_REQUESTED, key=b"other"), (COUPON, None, IDS[2])),
    (ParkReason.WRONG_PARTITION, issue("ann", ELSEWHERE), (ELSEWHERE, "ann", request_id("ann"))),
    (ParkReason.WRONG_PARTITION, create(5, ELSEWHERE, request="ann"), (ELSEWHERE, None, request_id("ann"))),
    (ParkReason.TOO_LARGE, raw(issue_event() + b"\x00" * 65_536, key=COUPON.encode()), (None, None, None)),
    (ParkReason.TOO_LARGE, raw(b"\x00" * (1_048_576 - 4_096)), (None, None, None)),
]


async def test_each_unprocessable_record_is_parked_for_its_reason_with_its_bytes_unchanged(world: World) -> None:
    for _, message, _ in UNPROCESSABLE:
        await world.put(message)
    await world.settle(create(1), issue("bob"))
    assert await world.verdicts() == [*(f"PARKED {reason}" for reason, *_ in UNPROCESSABLE), "APPLIED", "ISSUED 1"]
    rows = await world.fetch("SELECT * FROM rejected_issue ORDER BY ticket_offset")
    line, dead = await world.line(), await world.dead_letters()
    assert len(dead) == len(rows) == len(UNPROCESSABLE)
    for record, letter, row, (reason, sent, ids) in zip(line, dead, rows, UNPROCESSABLE, strict=False):
        assert (letter.key, letter.value) == (record.key, record.value) == (sent.key, sent.value)
        count = len(record.headers)
        assert letter.headers[:count] == record.headers
        added = dict(letter.headers[count:])
        why = (added.pop(kafka.DLQ_ERROR_MESSAGE) or b"").decode()
        assert 0 < len(why) <= 1_024
        assert why.isprintable()
        assert row["detail"] == f"{reason}: {why}"
        assert added == {
            kafka.DLQ_ORIGINAL_TOPIC: world.topics.line.encode(),
            kafka.DLQ_ORIGINAL_PARTITION: str(HOME).encode(),
            kafka.DLQ_ORIGINAL_OFFSET: str(record.offset).encode(),
            kafka.DLQ_ORIGINAL_TIMESTAMP: str(record.timestamp_ms).encode(),
            kafka.DLQ_REASON: reason.encode(),
            kafka.DLQ_ATTEMPT: b"1",
            kafka.DLQ_FIRST_FAILED_AT: str(record.timestamp_ms).encode(),
        }
        assert (row["coupon_id"], row["user_id"], row["request_id"]) == ids
    await world.audit()


async def test_headers_that_pretend_to_be_a_dead_letter_change_nothing(world: World) -> None:
    lies: list[tuple[str, bytes | None]] = [
        (kafka.DLQ_ORIGINAL_OFFSET, b"3"),
        (kafka.DLQ_REASON, b"INTERNAL"),
        (kafka.DLQ_ORIGINAL_TOPIC, b"x"),
    ]
    await world.settle(create(1), Message(None, b"\xff", lies))
    (letter,) = await world.dead_letters()
    assert letter.headers[:3] == tuple(lies)
    found = wire.parse_dead_letter(letter)
    assert found is not None
    assert (found.failed, found.reason, found.line_topic) == (
        Ticket(HOME, 1),
        ParkReason.WRONG_TYPE,
        world.topics.line,
    )
    await world.audit()


async def test_only_the_record_that_postgresql_refuses_is_parked_among_its_neighbours(world: World) -> None:
    other = coupon_at(HOME, 1)
    odd = create(5, other, name="Nul\x00")
    await world.settle(
        create(3), issue("a"), issue("b"), odd, issue("c"), issue("d", other), issue("d"), odd, create(1, other)
    )
    assert await world.verdicts() == [
        "APPLIED",
        "ISSUED 1",
        "ISSUED 2",
        "PARKED UNSTORABLE",
        "ISSUED 3",
        "COUPON_NOT_FOUND",
        "SOLD_OUT",
        "PARKED UNSTORABLE",
        "APPLIED",
    ]
    first, second = await world.dead_letters()
    assert (first.key, first.value) == (second.key, second.value) == (odd.key, odd.value)
    assert await world.dead_letter_offsets() == [3, 7]
    row = (await world.fetch("SELECT * FROM rejected_issue WHERE ticket_offset = 3"))[0]
    assert (row["coupon_id"], row["user_id"]) == (other, None)
    # The outcomes came in the order of the line.
    assert [told(one).ticket for one in await world.outcomes()] == [f"{HOME}-{n}" for n in range(9)]
    await world.audit()


async def test_a_batch_of_nothing_but_unstorable_records_is_parked_one_by_one(world: World) -> None:
    await world.settle(*(create(1, name=f"\x00{n}") for n in range(5)))
    assert await world.verdicts() == ["PARKED UNSTORABLE"] * 5
    await world.audit()


async def test_records_that_came_in_many_answers_are_found_again_in_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {**(PartitionLog.fetch.__kwdefaults__ or {}), "bytes_max": 1}  # each batch of the log in an answer
    monkeypatch.setattr(PartitionLog.fetch, "__kwdefaults__", bounds)
    monkeypatch.setattr(consumer, "ANSWER_MS", 5_000)
    sizes = batch_sizes(monkeypatch)
    ledger = world.ledger()
    ledger._filled = True  # so that it waits for more answers
    odd = create(5, coupon_at(HOME, 1), name="Nul\x00")
    lines = [[create(4), issue("a"), garbage(2)], [issue("b"), odd, issue("c")], [odd, issue("d"), garbage(8)]]
    for messages in lines:
        await world.put(*messages)
    async with world.running(ledger):
        await world.rest()
    assert sizes[0] == 9
    assert [verdict for verdict in await world.verdicts() if not verdict.startswith("PARKED")] == [
        "APPLIED", "ISSUED 1", "ISSUED 2", "ISSUED 3", "ISSUED 4",
    ]  # fmt: skip
    assert await world.dead_letter_offsets() == [2, 4, 6, 8]
    put = [message for messages in lines for message in messages]
    assert [letter.value for letter in await world.dead_letters()] == [put[n].value for n in (2, 4, 6, 8)]
    await world.audit()


async def test_a_batch_ends_when_its_answers_are_as_large_as_they_may_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "ANSWERS_BYTES_MAX", 1)
    monkeypatch.setattr(consumer, "STEP_RECORDS", 2)
    sizes = batch_sizes(monkeypatch)
    await world.settle(create(5), *(issue(f"user-{n}") for n in range(5)))
    assert sizes == [2, 2, 2]
    await world.audit()


async def test_what_is_too_much_at_once_is_settled_in_smaller_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(16, monkeypatch)
    monkeypatch.setattr(consumer, "STEP_RECORDS", 1)
    sizes = batch_sizes(monkeypatch, most=3)
    await world.settle(create(40), *(issue(f"user-{n}") for n in range(40)))
    assert sizes[:4] == [16, 8, 4, 2]
    assert await world.verdicts() == ["APPLIED", *(f"ISSUED {n}" for n in range(1, 41))]
    await world.audit()


async def test_a_record_on_which_deciding_fails_is_parked_as_internal_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.domain.decide import _Line

    issues = _Line._issue

    def failing(self: _Line, request: Any) -> Any:
        if request.user_id == "cursed":
            raise ZeroDivisionError("by\nzero")
        return issues(self, request)

    monkeypatch.setattr(_Line, "_issue", failing)
    await world.settle(create(2), issue("a"), issue("cursed"), issue("b"))
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "PARKED INTERNAL", "ISSUED 2"]
    (row,) = await world.fetch("SELECT * FROM rejected_issue")
    assert row["detail"] == "INTERNAL: ZeroDivisionError: by\ufffdzero"
    assert (row["coupon_id"], row["user_id"]) == (COUPON, "cursed")
    await world.audit()


# Redrives


async def test_a_redrive_is_judged_by_its_originals_time_and_takes_stock_at_its_own_place(world: World) -> None:
    now_s = int(time.time())
    ended = create(2, start_s=now_s - 7_200, end_s=now_s - 3_600)
    during_ms, after_ms = (now_s - 5_400) * 1000, (now_s - 60) * 1000
    await world.settle(
        garbage(),
        garbage(1),
        ended,
        issue("late"),
        redrive(issue("ann"), Ticket(HOME, 0), during_ms),
        redrive(issue("bob"), Ticket(HOME, 1), after_ms),
    )
    assert (await world.verdicts())[3:] == ["ENDED", "ISSUED 1", "ENDED"]
    outcomes = [told(one) for one in await world.outcomes()]
    assert [(one.ticket, one.redrive_of) for one in outcomes[4:]] == [
        (f"{HOME}-4", f"{HOME}-0"),
        (f"{HOME}-5", f"{HOME}-1"),
    ]
    (row,) = await world.fetch("SELECT * FROM user_coupon")
    moment = datetime.fromtimestamp((await world.line())[4].timestamp_ms / 1000, UTC)
    assert (row["redrive_of"], row["accepted_at"]) == (f"{HOME}-0", moment)
    await world.audit()


@pytest.mark.parametrize("batch_records_max", [1, 4_000])
async def test_a_redrive_that_is_settled_is_repeated_and_answered_as_the_first(
    world: World, monkeypatch: pytest.MonkeyPatch, batch_records_max: int
) -> None:
    batches_of(batch_records_max, monkeypatch)
    now_ms = int(time.time() * 1000)
    won = redrive(issue("ann"), Ticket(HOME, 0), now_ms)
    lost = redrive(issue("bob"), Ticket(HOME, 1), now_ms)
    await world.settle(garbage(), garbage(1), create(1), won, won, lost, lost, change("ADJUST_STOCK", delta=1), lost)
    assert (await world.verdicts())[3:] == ["ISSUED 1", "REPEATED", "SOLD_OUT", "REPEATED", "APPLIED", "REPEATED"]
    outcomes = [told(one) for one in await world.outcomes()]
    assert (outcomes[4].issued_ticket, outcomes[4].issued_sequence) == (f"{HOME}-3", 1)
    assert [outcomes[n].issued_ticket for n in (6, 8)] == ["", ""]
    assert {one.redrive_of for one in outcomes[3:5]} == {f"{HOME}-0"}
    await world.audit()


async def test_a_redrive_that_fails_again_names_its_original_and_may_be_tried_once_more(world: World) -> None:
    appended = await world.put(garbage())
    original_ms = appended[0].timestamp_ms
    await world.settle(
        create(1),
        redrive(garbage(), Ticket(HOME, 0), original_ms, attempt=1),
        redrive(garbage(), Ticket(HOME, 0), original_ms, attempt=2),
        redrive(issue("ann"), Ticket(HOME, 0), original_ms, attempt=3),
    )
    assert await world.verdicts() == [
        "PARKED UNDECODABLE",
        "APPLIED",
        "PARKED UNDECODABLE",
        "PARKED UNDECODABLE",
        "ISSUED 1",
    ]
    rows = await world.fetch("SELECT redrive_of FROM rejected_issue ORDER BY ticket_offset")
    assert [row["redrive_of"] for row in rows] == [None, f"{HOME}-0", f"{HOME}-0"]
    letters = [wire.parse_dead_letter(record) for record in await world.dead_letters()]
    assert [(one.failed.offset, str(one.original)) for one in letters if one] == [
        (0, f"{HOME}-0"),
        (2, f"{HOME}-0"),
        (3, f"{HOME}-0"),
    ]
    dead = await world.dead_letters()
    assert [one.header(kafka.DLQ_ATTEMPT) for one in dead] == [b"1", b"2", b"3"]
    assert {one.header(kafka.DLQ_FIRST_FAILED_AT) for one in dead} == {str(original_ms).encode()}
    assert [one.header(kafka.REDRIVE_OF) for one in dead] == [None, *[f"{HOME}-0".encode()] * 2]
    await world.audit()
