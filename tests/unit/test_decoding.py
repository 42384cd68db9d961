"""What records of the line decode to: many at once as each alone."""

from __future__ import annotations

from itertools import product

import pytest
from coupon.v1 import events_pb2

from services.domain.model import IssueRequest, LineRecord, Unprocessable
from services.runtime import batch_traces, kafka, wire
from services.runtime.kafka import Record
from tests.unit.line import ANN, R1, SPRING

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Headers = tuple[tuple[str, bytes | None], ...]


def request(coupon_id: str = SPRING, user_id: str = ANN, request_id: str = R1) -> bytes:
    event = events_pb2.CouponIssueRequestedEvent(coupon_id=coupon_id, user_id=user_id, request_id=request_id)
    return event.SerializeToString()


PLAIN: Headers = tuple(wire.request_headers(wire.ISSUE_REQUESTED, "id", b"2026-01-01T00:00:00.000+00:00", None))
ISSUE, CHANGE = ((kafka.CE_TYPE, name.encode()) for name in (wire.ISSUE_REQUESTED, wire.CHANGE_REQUESTED))
REDRIVE: Headers = (
    (kafka.REDRIVE_OF, b"3-7"),
    (kafka.REDRIVE_ORIGINAL_TIMESTAMP, b"1700000000000"),
    (kafka.REDRIVE_ATTEMPT, b"1"),
)
KEYS = (SPRING.encode(), b"autumn", b"", None)
VALUES = (
    request(),
    request(user_id="a" * 128),
    request(user_id="a" * 129),
    request(user_id=""),
    request(coupon_id="not an id"),
    request(coupon_id="s" * 129),
    request(coupon_id="s" * 70_000),
    request(request_id="R1"),
    request() + b"\x92\x03\x01x",  # with a field of a later release
    events_pb2.CouponChangeRequestedEvent(
        coupon_id=SPRING, request_id=R1, action=events_pb2.CouponChangeRequestedEvent.PAUSE
    ).SerializeToString(),
    b"\xff\xff",
    b"",
    None,
)
TYPES: tuple[Headers, ...] = (
    PLAIN,
    (),
    (CHANGE,),
    (ISSUE, CHANGE),
    (CHANGE, ISSUE),
    ((kafka.CE_TYPE, None), ISSUE),
    ((kafka.CE_TYPE, b"unknown"),),
)
OTHERS: tuple[Headers, ...] = (
    (),
    REDRIVE,
    ((kafka.REDRIVE_OF, b"seven"),),
    (("padding", b"x" * 9_000),),
    (("padding", b"x" * 65_000),),
    (("p\u00e4dding" * 8_000, None),),
    ((kafka.TRACEPARENT, TRACE),),
    ((kafka.TRACEPARENT, b""), (kafka.TRACEPARENT, TRACE), ("padding", None)),
    ((kafka.TRACEPARENT, TRACE), (kafka.TRACEPARENT, b"another")),
)
RECORDS = [
    Record(offset, 1_700_000_000_000 + offset, key, value, (*types, *others))
    for offset, (key, value, types, others) in enumerate(product(KEYS, VALUES, TYPES, OTHERS))
]


def test_many_at_once_decode_as_each_alone() -> None:
    alone = [wire.decode(record) for record in RECORDS]
    for count in (1, 2, 5, len(RECORDS)):
        decoded: list[LineRecord] = []
        traces: dict[int, bytes] = {}
        for start in range(0, len(RECORDS), count):
            found, traced = wire.decode_all(RECORDS[start : start + count])
            decoded += found
            traces |= traced
        assert decoded == alone
        assert {offset: trace for offset, trace in traces.items() if trace} == batch_traces.traceparents(RECORDS)
    assert {one.reason.value for one in decoded if isinstance(one, Unprocessable)} == {
        "UNDECODABLE", "EMPTY", "WRONG_TYPE", "MISSING_FIELD", "BAD_ID", "KEY_MISMATCH", "TOO_LARGE",
    }  # fmt: skip


def test_a_plain_request_is_decoded_by_itself_and_names_its_coupon_by_one_string(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(wire, "decode")
    headers = (*PLAIN, (kafka.TRACEPARENT, TRACE))
    records = [Record(offset, 5, SPRING.encode(), request(user_id=f"u{offset}"), headers) for offset in range(3)]
    decoded, traces = wire.decode_all(records)
    assert decoded == [IssueRequest(offset, 5_000, SPRING, f"u{offset}", R1) for offset in range(3)]  # type: ignore[arg-type]
    assert len({id(one.coupon_id) for one in decoded}) == 1
    assert traces == dict.fromkeys(range(3), TRACE)


def test_what_fails_unexpectedly_is_parked_as_when_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(text: str) -> None:
        raise RuntimeError(text)

    monkeypatch.delattr(wire, "make_issue_request")
    monkeypatch.setattr(wire, "is_request_id", failing)
    plain = Record(4, 5, SPRING.encode(), request(), PLAIN)
    (decoded,), _ = wire.decode_all([plain])
    assert isinstance(decoded, Unprocessable)
    assert (decoded.offset, decoded.reason, decoded.message) == (4, "INTERNAL", f"RuntimeError: {R1}")
