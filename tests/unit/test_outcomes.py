"""The records of the outcomes topic."""

from __future__ import annotations

from services.domain.model import (
    Changed,
    ChangeOutcome,
    CouponId,
    Grant,
    Issued,
    Parked,
    ParkReason,
    Reason,
    Rejected,
    RequestId,
    Ticket,
    UserId,
    Verdict,
)
from services.runtime import wire
from tests.unit.line import ANN, R1, R2, SPRING, START_US

LINE, PARTITION, TRACE = "line", 3, b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REDRIVEN = Ticket(PARTITION, 77)
VERDICTS: list[Verdict] = [
    Issued(4, START_US, SPRING, ANN, R1, 1),
    Issued(5, START_US, SPRING, UserId("bob"), R2, 2, REDRIVEN),
    Issued(6, START_US + 7_000, SPRING, UserId("cem"), R2, 3),
    Rejected(7, START_US, SPRING, ANN, R1, Reason.REPEATED, Grant(R1, 1, Ticket(PARTITION, 4))),
    Parked(8, START_US, ParkReason.EMPTY, "empty", None, None, None, None, known=False),
    Changed(9, START_US, SPRING, RequestId(R1), b"hash", False, ChangeOutcome(Reason.CLOSED, None, None), "ann"),
    Issued(10, START_US, CouponId("autumn"), UserId("dua"), R2, 1),
    Issued(11, START_US, SPRING, UserId("dua"), R2, 4),
]


def test_those_of_a_batch_are_those_of_each_verdict_alone() -> None:
    traces = {5: TRACE, 8: TRACE}
    made = list(wire.outcome_messages(LINE, PARTITION, VERDICTS, traces))
    alone = [(wire.outcome(PARTITION, verdict), traces.get(verdict.offset)) for verdict in VERDICTS]
    assert made == [wire.outcome_message(LINE, PARTITION, outcome, trace) for outcome, trace in alone]
    assert [dict(message.headers)["ce_id"] for message in made] == [b"line/3/%d" % n for n in range(4, 12)]
    assert [TRACE in dict(message.headers).values() for message in made] == [v.offset in traces for v in VERDICTS]


def test_a_grant_says_nothing_of_the_one_before_it() -> None:
    issued = [verdict for verdict in VERDICTS if isinstance(verdict, Issued)]
    events = [message.value or b"" for message in wire.outcome_messages(LINE, PARTITION, issued, {})]
    assert [str(REDRIVEN).encode() in event for event in events] == [False, True, False, False, False]
