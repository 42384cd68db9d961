"""Records broken in ten ways among many good ones: each is parked for its reason, and nobody else notices.

FIRSTCOME_TEST_RECORDS sets how many there are; one in a hundred is broken.
"""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
from coupon.v1 import events_pb2

from checker import verify
from services.domain import decide
from services.domain.model import IssueRequest, ParkReason, Ticket, Verdict
from services.runtime import wire
from services.runtime.kafka import Message, Topics
from stack import Stack
from tests.conftest import TEST_PARTITIONS
from tests.contract import issuing
from tests.contract.issuing import System, eventually, id_of_partition

RECORDS = int(os.environ.get("FIRSTCOME_TEST_RECORDS", "20000"))
BROKEN_EVERY = 100
PATIENCE_S = 60 + RECORDS / 200
BUG = "bug-"
"""Users with whom the patched ledger can't cope."""


def _request(coupon_id: str, user_id: str) -> bytes:
    request_id = str(uuid.uuid5(uuid.NAMESPACE_OID, user_id))
    return events_pb2.CouponIssueRequestedEvent(
        coupon_id=coupon_id, user_id=user_id, request_id=request_id
    ).SerializeToString()


def _message(coupon_id: str, value: bytes | None, ce_type: str = wire.ISSUE_REQUESTED) -> Message:
    return Message(coupon_id.encode(), value, _headers(ce_type))


def _headers(ce_type: str) -> list[tuple[str, bytes | None]]:
    return wire.request_headers(ce_type, "test", b"2026-01-01T00:00:00Z", None)


def _change(coupon_id: str, **values: Any) -> Message:
    event = events_pb2.CouponChangeRequestedEvent(coupon_id=coupon_id, request_id=str(uuid.uuid4()), caller="test")
    event.action = event.CREATE if "total" in values else event.UPDATE
    event.coupon.total_quantity = values.get("total", 0)
    event.coupon.display_name = values.get("name", "")
    event.update_paths.extend(["display_name"] if "name" in values else [])
    return _message(coupon_id, event.SerializeToString(), wire.CHANGE_REQUESTED)


WAYS: Mapping[ParkReason, Callable[[str, str, str], Message]] = {
    ParkReason.UNDECODABLE: lambda mine, other, user: _message(mine, b"\xff\x00" + user.encode()),
    ParkReason.EMPTY: lambda mine, other, user: _message(mine, None),
    ParkReason.WRONG_TYPE: lambda mine, other, user: Message(mine.encode(), _request(mine, user), [("odd", None)]),
    ParkReason.MISSING_FIELD: lambda mine, other, user: _message(mine, _request(mine, "")),
    ParkReason.BAD_ID: lambda mine, other, user: _message(mine, _request(mine, f"{user} \0")),
    ParkReason.KEY_MISMATCH: lambda mine, other, user: _message(other, _request(mine, user)),
    ParkReason.WRONG_PARTITION: lambda mine, other, user: _message(other, _request(other, user)),
    ParkReason.TOO_LARGE: lambda mine, other, user: _message(mine, _request(mine, user) + b"\0" * 65_536),
    ParkReason.UNSTORABLE: lambda mine, other, user: _change(mine, name=f"{user}\0"),
    ParkReason.INTERNAL: lambda mine, other, user: _message(mine, _request(mine, BUG + user)),
}


@dataclass(frozen=True)
class Line:
    """What is put into one partition: a coupon for half of the good requests, which are `users`, in their order."""

    coupon_id: str
    messages: Sequence[Message]
    users: Sequence[str]
    broken: Mapping[int, ParkReason]

    @property
    def stock(self) -> int:
        return len(self.users) // 2


def _lines() -> list[Line]:
    coupons = [id_of_partition(partition) for partition in range(TEST_PARTITIONS)]
    lines = []
    for partition, coupon_id in enumerate(coupons):
        other = coupons[(partition + 1) % TEST_PARTITIONS]
        messages, users, broken = [], [], {}
        for place in range(1, RECORDS // TEST_PARTITIONS + 1):
            user = f"user-{partition}-{place}"
            if place % BROKEN_EVERY == 0:
                reason = list(WAYS)[place // BROKEN_EVERY % len(WAYS)]
                broken[place] = reason
                messages.append(WAYS[reason](coupon_id, other, user))
            else:
                users.append(user)
                messages.append(_message(coupon_id, _request(coupon_id, user)))
        lines.append(Line(coupon_id, [_change(coupon_id, total=len(users) // 2), *messages], users, broken))
    return lines


@pytest.mark.timeout(120 + RECORDS / 100)
async def test_each_broken_record_is_parked_for_its_reason_and_no_neighbour_is_harmed(
    stack: Stack, database: str, topics: Topics
) -> None:
    lines = _lines()
    expected = {Ticket(p, place): reason for p, line in enumerate(lines) for place, reason in line.broken.items()}
    assert len(expected) == RECORDS // BROKEN_EVERY
    assert set(expected.values()) == set(ParkReason)
    issue = decide._Line._issue

    def buggy(line: Any, request: IssueRequest) -> Verdict:
        if request.user_id.startswith(BUG):
            raise ZeroDivisionError("a bug")
        return issue(line, request)

    system = System(stack, database, topics)
    try:
        with mock.patch.object(decide._Line, "_issue", buggy), mock.patch.object(issuing, "PATIENCE_S", PATIENCE_S):
            for partition, line in enumerate(lines):
                await system.put(topics.line, partition, *line.messages)
            begun_s = time.monotonic()
            async with (
                system.ledger(),
                system.dlq(FIRSTCOME_RETRY_BACKOFF_BASE_MS="1", FIRSTCOME_RETRY_ATTEMPTS_MAX="2"),
            ):
                await system.settled()
                settled_s = time.monotonic() - begun_s

                async def parked() -> bool:
                    rows = await system.fetch("SELECT count(*) FROM dead_letter WHERE state = 'PARKED'")
                    return bool(rows[0][0] == len(expected))

                await eventually(parked)
                await system.settled()  # what was redriven once more, too
            parked_s = time.monotonic() - begun_s
        await _check_dead_letters(system, lines, expected)
        await _check_neighbours(system, lines)
        report = await verify(stack.kafka_bootstrap, database, topic_prefix=topics.prefix, drain_timeout_s=60)
        assert report.broken == (), "\n".join(str(f) for result in report.broken for f in result.examples)
    finally:
        await system.close()
    print(f"{RECORDS} records settled after {settled_s:.1f} s, {len(expected)} of them parked after {parked_s:.1f} s")


async def _check_dead_letters(system: System, lines: Sequence[Line], expected: Mapping[Ticket, ParkReason]) -> None:
    rows = await system.fetch("SELECT *, headers::text AS listed FROM dead_letter")
    assert {Ticket(row["ticket_partition"], row["ticket_offset"]): row["reason"] for row in rows} == expected
    for row in rows:
        sent = lines[row["ticket_partition"]].messages[row["ticket_offset"]]
        headers = [(name, None if it is None else base64.b64decode(it)) for name, it in json.loads(row["listed"])]
        assert (row["key"], row["value"], headers) == (sent.key, sent.value, list(sent.headers))
        assert row["attempt_count"] == (2 if row["reason"] == ParkReason.INTERNAL else 1)
    told: Counter[Ticket] = Counter()
    for partition, line in enumerate(lines):
        for record in (await system.records(system.topics.dlq, partition)).values():
            found = wire.parse_dead_letter(record)
            assert found is not None
            told[found.failed] += 1
            if found.redrive_of is None:
                sent = line.messages[found.failed.offset]
                assert (found.key, found.value, list(found.headers)) == (sent.key, sent.value, list(sent.headers))
    assert all(told[ticket] == 1 for ticket in expected)


async def _check_neighbours(system: System, lines: Sequence[Line]) -> None:
    """The stock went to those who came first, in their order, and each of the others was told SOLD_OUT."""
    for line in lines:
        won = await system.fetch(
            "SELECT user_id FROM user_coupon WHERE coupon_id = $1 ORDER BY sequence", line.coupon_id
        )
        assert [row["user_id"] for row in won] == line.users[: line.stock]
        lost = await system.fetch(
            "SELECT user_id, reason FROM rejected_issue WHERE coupon_id = $1 AND reason <> 'PARKED' "
            "ORDER BY ticket_offset",
            line.coupon_id,
        )
        assert [tuple(row) for row in lost] == [(user, "SOLD_OUT") for user in line.users[line.stock :]]
