"""Records and states of a coupon's line for the domain's tests, and the tables' part played in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from services.domain.decide import decide
from services.domain.model import (
    Action,
    Changed,
    ChangeOutcome,
    ChangeRequest,
    Coupon,
    CouponId,
    Decision,
    Grant,
    Issued,
    IssueRequest,
    LineRecord,
    LineState,
    Parked,
    PastChange,
    Redrive,
    Rejected,
    RequestId,
    Switch,
    Ticket,
    UserId,
    Verdict,
)

PARTITION = 3
START_US, END_US = 1_000, 2_000
DURING_US = 1_500
SPRING, AUTUMN = CouponId("spring"), CouponId("autumn")
ANN, BOB, CEM = UserId("ann"), UserId("bob"), UserId("cem")


def request_id(number: int) -> RequestId:
    return RequestId(f"00000000-0000-4000-8000-{number:012x}")


R1, R2, R3, R4 = (request_id(number) for number in range(1, 5))


def coupon(coupon_id: CouponId = SPRING, *, total: int = 10, issued: int = 0, **fields: Any) -> Coupon:
    plain = Coupon(
        coupon_id,
        PARTITION,
        "Spring",
        total,
        total - issued,
        issued,
        START_US,
        END_US,
        Switch.ACTIVE,
        f"{PARTITION}-0",
        1,
        1,
    )
    return replace(plain, **fields)


def issue(
    offset: int,
    user_id: UserId = ANN,
    request: RequestId = R1,
    *,
    coupon_id: CouponId = SPRING,
    time_us: int = DURING_US,
    redrive: Redrive | None = None,
) -> IssueRequest:
    return IssueRequest(offset, time_us, coupon_id, user_id, request, redrive)


def at(record: LineRecord, offset: int) -> LineRecord:
    """The same record at another place."""
    if isinstance(record, IssueRequest):
        return issue(
            offset,
            record.user_id,
            record.request_id,
            coupon_id=record.coupon_id,
            time_us=record.time_us,
            redrive=record.redrive,
        )
    return replace(record, offset=offset)


def change(offset: int, action: Action, request: RequestId = R1, **fields: Any) -> ChangeRequest:
    plain = ChangeRequest(
        offset=offset,
        time_us=DURING_US,
        coupon_id=SPRING,
        request_id=request,
        action=action,
        display_name="",
        total=0,
        start_us=None,
        end_us=None,
        update_paths=(),
        stock_delta=0,
        etag="",
        caller="operator",
        payload_hash=f"{action}{sorted(fields.items())}".encode(),
    )
    return replace(plain, **fields)


def redrive(offset: int, partition: int = PARTITION, *, time_us: int = DURING_US) -> Redrive:
    return Redrive(Ticket(partition, offset), time_us)


def state(*coupons: Coupon, **fields: Any) -> LineState:
    plain = LineState(PARTITION, {one.coupon_id: one for one in coupons}, frozenset(), {}, {}, {})
    return replace(plain, **fields)


def verdict_of(before: LineState, record: LineRecord) -> Verdict:
    """The verdict of a single record."""
    (verdict,) = decide(before, [record]).verdicts
    return verdict


def stored(before: LineState, decision: Decision) -> LineState:
    """The state as the tables have it once a decision is committed."""
    coupons, grants = dict(before.coupons), dict(before.grants)
    changes, redriven = dict(before.changes), dict(before.redriven)
    coupons.update({one.coupon_id: one for one in decision.coupons})
    for verdict in decision.verdicts:
        if isinstance(verdict, Issued):
            won = Grant(verdict.request_id, verdict.sequence, Ticket(PARTITION, verdict.offset))
            grants[verdict.coupon_id, verdict.user_id] = won
            if verdict.redrive_of is not None:
                redriven.setdefault(verdict.redrive_of, won)
        elif isinstance(verdict, Rejected) and verdict.redrive_of is not None:
            redriven.setdefault(verdict.redrive_of, verdict.grant)
        elif isinstance(verdict, Changed) and not verdict.repeated:
            changes[verdict.coupon_id, verdict.request_id] = PastChange(verdict.payload_hash, verdict.outcome)
    return replace(before, coupons=coupons, grants=grants, changes=changes, redriven=redriven)


def decided_in(before: LineState, batches: Iterable[Sequence[LineRecord]]) -> tuple[list[Verdict], LineState]:
    """All verdicts of a log that arrives in these batches, and the state behind them."""
    verdicts: list[Verdict] = []
    for batch in batches:
        decision = decide(before, batch)
        verdicts += decision.verdicts
        before = stored(before, decision)
    return verdicts, before


def gist(verdict: Verdict) -> str:
    """ISSUED with its sequence, the reason of a refusal, PARKED with its reason, or a change's result."""
    if isinstance(verdict, Issued):
        return f"ISSUED {verdict.sequence}"
    if isinstance(verdict, Rejected):
        return verdict.reason.value
    if isinstance(verdict, Parked):
        return f"PARKED {verdict.reason}"
    return f"{'REPEATED ' if verdict.repeated else ''}{result_of(verdict.outcome)}"


def result_of(outcome: ChangeOutcome) -> str:
    return outcome.reason.value if outcome.reason else "APPLIED"


def gists(before: LineState, *records: LineRecord) -> list[str]:
    return [gist(verdict) for verdict in decide(before, records).verdicts]
