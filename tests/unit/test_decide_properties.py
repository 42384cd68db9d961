"""What holds for every log, however it is cut into batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.decide import decide
from services.domain.model import (
    TOTAL_QUANTITY_MAX,
    Action,
    Changed,
    ChangeRequest,
    Coupon,
    CouponId,
    Issued,
    IssueRequest,
    LineRecord,
    LineState,
    Parked,
    ParkReason,
    Reason,
    Redrive,
    Rejected,
    Switch,
    Ticket,
    Unprocessable,
    UserId,
)
from tests.unit.line import PARTITION, at, coupon, decided_in, request_id, state

COUPON_IDS = [CouponId(name) for name in ("spring", "autumn", "nowhere")]
FOREIGN = CouponId("foreign")
USERS = [UserId(name) for name in ("ann", "bob", "cem", "dua")]
REQUESTS = [request_id(number) for number in range(1, 5)]

times = st.integers(0, 20)
bounds = st.none() | times
# Few originals, so that redrives of the same one meet.
redrives = st.none() | st.builds(Redrive, st.builds(Ticket, st.just(PARTITION), st.integers(0, 1)), times)
# Most records meet at one coupon with little stock and a wide window, so that logs reach the sell-out.
coupon_ids = st.sampled_from([COUPON_IDS[0]] * 5 + [*COUPON_IDS[1:], FOREIGN])

issues = st.builds(
    IssueRequest, st.just(0), times, coupon_ids, st.sampled_from(USERS), st.sampled_from(REQUESTS), redrives
)
changes = st.builds(
    ChangeRequest,
    offset=st.just(0),
    time_us=times,
    coupon_id=coupon_ids,
    request_id=st.sampled_from(REQUESTS),
    action=st.sampled_from(Action),
    display_name=st.sampled_from(["", "Name"]),
    total=st.integers(-1, 6) | st.just(TOTAL_QUANTITY_MAX + 1),
    start_us=bounds,
    end_us=bounds,
    update_paths=st.lists(st.sampled_from(["display_name", "start_time", "end_time", "total"]), max_size=3).map(tuple),
    stock_delta=st.integers(-6, 6) | st.just(TOTAL_QUANTITY_MAX),
    etag=st.just("") | st.integers(0, 5).map(lambda offset: str(Ticket(PARTITION, offset))),
    caller=st.just("operator"),
    payload_hash=st.sampled_from([b"1", b"2"]),
    redrive=redrives,
)
garbage = st.builds(
    Unprocessable,
    st.just(0),
    times,
    st.sampled_from(ParkReason),
    st.just("garbage"),
    st.none() | coupon_ids,
    st.none() | st.sampled_from(USERS),
    st.none() | st.sampled_from(REQUESTS),
    redrives,
    st.booleans(),
)
# Raises within decide(): what it asks for is no number.
broken = changes.map(
    lambda request: replace(request, action=Action.ADJUST_STOCK, stock_delta="x")  # type: ignore[arg-type]
)
kinds: list[st.SearchStrategy[LineRecord]] = [*[issues] * 7, *[changes] * 2, garbage, broken]
logs = st.lists(st.sampled_from(kinds).flatmap(lambda kind: kind), max_size=40).map(
    lambda records: [at(record, offset) for offset, record in enumerate(records)]
)


@st.composite
def coupons(draw: st.DrawFn, coupon_id: CouponId) -> Coupon:
    return coupon(
        coupon_id,
        total=draw(st.integers(1, 3)),
        start_us=draw(st.none() | st.integers(0, 5)),
        end_us=draw(st.none() | st.integers(15, 20)),
        switch=draw(st.sampled_from([Switch.ACTIVE] * 6 + [Switch.PAUSED, Switch.CLOSED])),
    )


@st.composite
def states(draw: st.DrawFn) -> LineState:
    present = [draw(coupons(coupon_id)) for coupon_id in draw(st.sampled_from([COUPON_IDS[:2], COUPON_IDS[:1], []]))]
    return replace(state(*present), foreign=frozenset({FOREIGN}))


@st.composite
def cut(draw: st.DrawFn) -> tuple[LineState, Sequence[LineRecord], list[Sequence[LineRecord]]]:
    """A state, a log, and the same log in batches."""
    log = draw(logs)
    edges = sorted(draw(st.lists(st.integers(0, len(log)), max_size=6)))
    batches: list[Sequence[LineRecord]] = [
        log[begin:end] for begin, end in zip([0, *edges], [*edges, len(log)], strict=True)
    ]
    return draw(states()), log, batches


@given(cut())
@settings(max_examples=300, deadline=None)
def test_the_same_log_gets_the_same_verdicts_however_it_is_cut_into_batches(
    example: tuple[LineState, Sequence[LineRecord], list[Sequence[LineRecord]]],
) -> None:
    before, log, batches = example
    assert decided_in(before, batches) == decided_in(before, [log])


@given(states(), logs)
@settings(max_examples=300, deadline=None)
def test_every_record_gets_exactly_one_verdict_in_the_order_of_offsets(
    before: LineState, log: list[LineRecord]
) -> None:
    verdicts = decide(before, log).verdicts
    assert [(verdict.offset, verdict.time_us) for verdict in verdicts] == [(one.offset, one.time_us) for one in log]
    for record, verdict in zip(log, verdicts, strict=True):
        if isinstance(record, Unprocessable):
            assert isinstance(verdict, Parked)
        elif isinstance(verdict, Parked):
            if record.coupon_id == FOREIGN:
                assert verdict.reason is ParkReason.WRONG_PARTITION
            else:
                assert verdict.reason is ParkReason.INTERNAL
                # Only the records that are made to raise do.
                assert isinstance(record, ChangeRequest)
                assert isinstance(record.stock_delta, str)


@given(states(), logs)
@settings(max_examples=300, deadline=None)
def test_no_coupon_is_oversold_and_total_is_always_remaining_plus_issued(
    before: LineState, log: list[LineRecord]
) -> None:
    decision = decide(before, log)
    shown = [v.outcome.coupon for v in decision.verdicts if isinstance(v, Changed) and v.outcome.coupon is not None]
    for one in (*decision.coupons, *shown):
        assert one.remaining >= 0
        assert one.total == one.remaining + one.issued
        assert one.total <= TOTAL_QUANTITY_MAX
    granted = Counter(verdict.coupon_id for verdict in decision.verdicts if isinstance(verdict, Issued))
    after = {**before.coupons, **{one.coupon_id: one for one in decision.coupons}}
    for coupon_id, one in after.items():
        assert one.issued == granted[coupon_id]
    assert set(granted) <= set(after)


@given(states(), logs)
@settings(max_examples=300, deadline=None)
def test_sequences_have_no_gaps_and_grow_with_the_offset(before: LineState, log: list[LineRecord]) -> None:
    sequences: dict[CouponId, list[int]] = {}
    for verdict in decide(before, log).verdicts:
        if isinstance(verdict, Issued):
            sequences.setdefault(verdict.coupon_id, []).append(verdict.sequence)
    for found in sequences.values():
        assert found == list(range(1, len(found) + 1))


@given(states(), logs)
@settings(max_examples=300, deadline=None)
def test_nobody_gets_a_coupon_twice_and_no_original_settles_twice(before: LineState, log: list[LineRecord]) -> None:
    issued = [verdict for verdict in decide(before, log).verdicts if isinstance(verdict, Issued)]
    assert max(Counter((one.coupon_id, one.user_id) for one in issued).values(), default=1) == 1
    assert max(Counter(one.redrive_of for one in issued if one.redrive_of).values(), default=1) == 1


@given(states(), logs)
@settings(max_examples=300, deadline=None)
def test_a_repeat_always_names_a_grant_of_an_earlier_record_or_a_settled_original(
    before: LineState, log: list[LineRecord]
) -> None:
    granted: dict[Ticket, Issued] = {}
    for verdict in decide(before, log).verdicts:
        if isinstance(verdict, Issued):
            granted[Ticket(PARTITION, verdict.offset)] = verdict
        elif isinstance(verdict, Rejected) and verdict.reason is Reason.REPEATED:
            if verdict.grant is None:
                assert verdict.redrive_of is not None
            else:
                first = granted[verdict.grant.ticket]
                assert (first.sequence, first.request_id) == (verdict.grant.sequence, verdict.grant.request_id)
        elif isinstance(verdict, Rejected):
            assert verdict.grant is None


@given(states(), logs)
@settings(max_examples=200, deadline=None)
def test_records_that_are_parked_change_nothing_for_the_others(before: LineState, log: list[LineRecord]) -> None:
    verdicts, after = decided_in(before, [log])
    kept = [record for record, verdict in zip(log, verdicts, strict=True) if not isinstance(verdict, Parked)]
    verdicts_of_kept, after_kept = decided_in(before, [kept])
    assert verdicts_of_kept == [verdict for verdict in verdicts if not isinstance(verdict, Parked)]
    assert after_kept == after


@given(states(), logs)
@settings(max_examples=200, deadline=None)
def test_a_log_that_is_delivered_again_grants_nothing_more(before: LineState, log: list[LineRecord]) -> None:
    plain = [record for record in log if isinstance(record, IssueRequest) and record.redrive is None]
    _, after = decided_in(before, [plain])
    again = [at(record, record.offset + len(log)) for record in plain]
    granted = {(r.coupon_id, r.user_id): r for r in decided_in(before, [plain])[0] if isinstance(r, Issued)}
    for record, verdict in zip(plain, decide(after, again).verdicts, strict=True):
        if (record.coupon_id, record.user_id) in granted:
            assert isinstance(verdict, Rejected)
            same = granted[record.coupon_id, record.user_id].request_id == record.request_id
            assert verdict.reason is (Reason.REPEATED if same else Reason.ALREADY_ISSUED)
