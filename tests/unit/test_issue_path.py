"""The issue path without Kafka and PostgreSQL: what is done once for a whole batch is as it is for each alone."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, cast

import pytest
from coupon.v1 import events_pb2, issuer_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.domain.model import Coupon, CouponId, Grant, RequestId, Switch, Ticket, UserId
from services.issuer import answers, outcomes, servicers
from services.issuer.admission import WINDOW_TOLERANCE_US, Admission, Known
from services.issuer.issue import Answer, Caller, IssuePath
from services.issuer.line import Line
from services.issuer.outcomes import OutcomesTail
from services.issuer.store import Granted, IssuerStore
from services.issuer.validation import IssueCall
from services.runtime import wire
from services.runtime.kafka import Appended, Message, Record
from services.runtime.rpc_errors import Refusal

NOW_US = 1_700_000_000_000_000
APPENDED_MS = 1_700_000_000_123
MINE, OTHER = RequestId(str(uuid.UUID(int=1))), RequestId(str(uuid.UUID(int=2)))
PARTITIONS = 3
BUSY = 2
"""The partition whose line is too long."""


def coupon(name: str, partition: int = 0, **values: Any) -> Coupon:
    fields: dict[str, Any] = {"remaining": 5, "start_us": None, "end_us": None, "switch": Switch.ACTIVE, **values}
    return Coupon(
        CouponId(name), partition, "", 9, issued=9 - fields["remaining"], etag="0-0", create_us=1, update_us=1, **fields
    )


NEAR_US, FAR_US = WINDOW_TOLERANCE_US // 2, WINDOW_TOLERANCE_US * 2
COUPONS = [
    coupon("open"),
    coupon("elsewhere", 1),
    coupon("overloaded", BUSY),
    coupon("sold-out", remaining=0),
    coupon("sold-out-and-overloaded", BUSY, remaining=0),
    coupon("paused", switch=Switch.PAUSED),
    coupon("closed", switch=Switch.CLOSED),
    coupon("scheduled", start_us=NOW_US + FAR_US),
    coupon("about-to-begin", start_us=NOW_US + NEAR_US),
    coupon("just-begun", start_us=NOW_US - NEAR_US),
    coupon("ended", end_us=NOW_US - FAR_US),
    coupon("just-ended", end_us=NOW_US - NEAR_US),
    coupon("about-to-end-sold-out", end_us=NOW_US + NEAR_US, remaining=0),
]
UNKNOWN, BEHIND = CouponId("unknown"), CouponId("behind")


class Look:
    """Of every coupon everybody named `winner-…` has one by MINE."""

    async def look_up(self, keys: Sequence[tuple[CouponId, UserId]]) -> list[Known]:
        by_id = {one.coupon_id: one for one in COUPONS}
        found = []
        for key in keys:
            one = by_id.get(key[0])
            grant = Granted(*key, Grant(MINE, 4, Ticket(0, 7)), 11_000_000, 12_000_000)
            has = one is not None and key[1].startswith("winner")
            found.append(Known(grant if has else None, one, one.partition if one else 1, key[0] == BEHIND))
        return found


class Ends:
    """A line that gives the place behind the last to each in turn."""

    topic = "line"

    def __init__(self) -> None:
        self.messages: dict[int, list[Message]] = {partition: [] for partition in range(PARTITIONS)}

    def end(self, partition: int) -> int:
        return 1_000 if partition == BUSY else 0

    async def append(self, partition: int, asked: Sequence[wire.Asked | Message]) -> list[Appended]:
        messages = list(wire.line_messages(asked, NOW_US))
        log = self.messages[partition]
        log += messages
        return [Appended(len(log) - len(messages) + place, APPENDED_MS) for place, _ in enumerate(messages)]


@pytest.fixture
def line() -> Ends:
    return Ends()


@pytest.fixture
def path(line: Ends, monkeypatch: pytest.MonkeyPatch) -> IssuePath:
    monkeypatch.setattr("services.issuer.issue.time.time_ns", lambda: NOW_US * 1_000)
    tail = OutcomesTail(cast(Any, None), PARTITIONS, waiters_max=0)
    tail.settled(0, 3)
    admission, store = cast(Admission, Look()), IssuerStore(cast(Any, None), "line")
    return IssuePath(admission, cast(Line, line), tail, store, unsettled_max=500)


def shown(answer: Answer) -> tuple[str, str]:
    """All that a caller sees of it."""
    (result,) = servicers._response([answer]).results
    return type(answer).__name__, str(result)


async def test_in_a_batch_each_is_answered_as_if_it_came_alone(line: Ends, path: IssuePath) -> None:
    calls = [
        IssueCall(coupon_id, UserId(user), request_id, wait)
        for user, request_id, wait in [
            ("ann", MINE, False),
            ("winner-bob", MINE, False),
            ("cem", OTHER, True),  # more wait than may
            ("winner-dan", OTHER, False),
            ("eve", OTHER, False),
        ]
        for coupon_id in [*(one.coupon_id for one in COUPONS), UNKNOWN, BEHIND]
    ]
    caller = Caller(None)
    alone = [await path.issue(call, caller) for call in calls]
    told = {answer.reason for answer in alone if isinstance(answer, Refusal)}
    assert told >= {"OVERLOADED", "SOLD_OUT", "PAUSED", "CLOSED", "NOT_OPEN", "ENDED", "COUPON_NOT_FOUND"}
    assert told >= {"ALREADY_ISSUED", "LEDGER_UNAVAILABLE"}
    sent = {partition: list(messages) for partition, messages in line.messages.items()}
    assert [len(messages) for messages in sent.values()] == [2 * 5, 2, 0]
    for messages in line.messages.values():
        messages.clear()
    together = await path.issue_batch(calls, caller)
    assert [shown(one) for one in together] == [shown(one) for one in alone]
    assert line.messages == sent


async def test_a_record_of_the_line_is_that_of_its_request_alone(line: Ends, path: IssuePath) -> None:
    asked = [("open", "ann", MINE), ("elsewhere", "bob", OTHER), ("open", "cem", OTHER)]
    calls = [IssueCall(CouponId(coupon_id), UserId(user_id), mine, False) for coupon_id, user_id, mine in asked]
    await path.issue_batch(calls, Caller(None))
    records = {message.headers[4][1]: message for messages in line.messages.values() for message in messages}
    for coupon_id, user_id, mine in asked:
        message = records[f"{coupon_id}/{user_id}/{mine}".encode()]
        event = events_pb2.CouponIssueRequestedEvent.FromString(message.value or b"")
        assert event == events_pb2.CouponIssueRequestedEvent(coupon_id=coupon_id, user_id=user_id, request_id=mine)
        assert message.key == coupon_id.encode()
        assert [name for name, _ in message.headers] == [
            "ce_specversion",
            "ce_type",
            "ce_source",
            "content-type",
            "ce_id",
            "ce_time",
        ]


@pytest.mark.parametrize(
    ("accept_us", "time"),
    [(0, None), (-1_000, None), (1_700_000_000_123_000, Timestamp(seconds=1_700_000_000, nanos=123_000_000))],
)
def test_an_accepted_request_as_the_contract_has_it(accept_us: int, time: Timestamp | None) -> None:
    answer = answers.accepted(issuer_pb2.Issuance(), "c", "ann", MINE, "1-17", accept_us, 4)
    assert answer == issuer_pb2.Issuance(
        name="coupons/c/issuances/ann",
        coupon="coupons/c",
        user_id="ann",
        request_id=MINE,
        state=issuer_pb2.Issuance.ACCEPTED,
        ticket="1-17",
        position_in_line=4,
        accept_time=time,
    )
    assert answer.HasField("accept_time") == (time is not None)


def test_of_outcomes_the_highest_place_and_the_changes_are_seen() -> None:
    def record(ce_id: bytes | None, ce_type: bytes | None = b"coupon.v1.CouponIssuedEvent") -> Record:
        headers = (("ce_source", b"x"), ("ce_type", ce_type), ("content-type", None), ("ce_id", ce_id))
        return Record(0, 0, None, None, headers)

    change = record(b"line/0/4", b"coupon.v1.CouponChangedEvent")
    odd = [record(b"9" * 5_000), record(None), record(b""), record(b"line/0/x"), record(b"line/0/", None)]
    assert outcomes._scan([]) == (-1, [])
    assert outcomes._scan(odd) == (-1, [])
    assert outcomes._scan([*odd, record(b"line/0/9"), change, record(b"line/0/10"), *odd]) == (10, [change])
    assert outcomes._scan([Record(0, 0, None, None, ())]) == (-1, [])
