"""Each rule of first come, first served, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pytest

from services.domain import decide as decide_module
from services.domain.decide import decide, park, refusal, state_at
from services.domain.model import (
    TIME_US_MAX,
    TIME_US_MIN,
    TOTAL_QUANTITY_MAX,
    Action,
    Changed,
    ChangeRequest,
    Coupon,
    CouponState,
    Grant,
    Issued,
    LineRecord,
    Parked,
    ParkReason,
    Reason,
    Rejected,
    RequestId,
    Switch,
    Ticket,
    Unprocessable,
)
from tests.unit.line import (
    ANN,
    AUTUMN,
    BOB,
    CEM,
    DURING_US,
    END_US,
    PARTITION,
    R1,
    R2,
    R3,
    R4,
    SPRING,
    START_US,
    change,
    coupon,
    decided_in,
    gist,
    gists,
    issue,
    redrive,
    result_of,
    state,
    stored,
    verdict_of,
)

# Precedence

ON_SALE = coupon()


@dataclass(frozen=True)
class Situation:
    """What `refusal` looks at; as it stands, a grant."""

    coupon: Coupon | None = ON_SALE
    remaining: int = 10
    grant: Grant | None = None
    time_us: int = DURING_US

    def refusal(self) -> Reason | None:
        return refusal(self.coupon, self.remaining, self.grant, R1, self.time_us)

    def with_coupon(self, **fields: Any) -> Situation:
        return self if self.coupon is None else replace(self, coupon=replace(self.coupon, **fields))


# In the order of precedence.
MAKES: dict[Reason, Callable[[Situation], Situation]] = {
    Reason.COUPON_NOT_FOUND: lambda now: replace(now, coupon=None),
    Reason.REPEATED: lambda now: replace(now, grant=Grant(R1, 1, Ticket(PARTITION, 1))),
    Reason.ALREADY_ISSUED: lambda now: replace(now, grant=Grant(R2, 1, Ticket(PARTITION, 1))),
    Reason.CLOSED: lambda now: now.with_coupon(switch=Switch.CLOSED),
    Reason.NOT_OPEN: lambda now: now.with_coupon(start_us=DURING_US + 1),
    Reason.ENDED: lambda now: now.with_coupon(end_us=DURING_US),
    Reason.PAUSED: lambda now: now.with_coupon(switch=Switch.PAUSED),
    Reason.SOLD_OUT: lambda now: replace(now, remaining=0),
}
# A grant has one request_id, a coupon one switch.
NEVER_TOGETHER = {(Reason.REPEATED, Reason.ALREADY_ISSUED), (Reason.CLOSED, Reason.PAUSED)}
PAIRS = [pair for pair in combinations(MAKES, 2) if pair not in NEVER_TOGETHER]


def test_a_newcomer_within_the_window_of_a_coupon_with_stock_is_granted() -> None:
    assert Situation().refusal() is None


@pytest.mark.parametrize("reason", MAKES)
def test_each_obstacle_alone_is_the_reason(reason: Reason) -> None:
    assert MAKES[reason](Situation()).refusal() is reason


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_obstacles_the_one_of_higher_precedence_is_the_reason(first: Reason, second: Reason) -> None:
    assert MAKES[first](MAKES[second](Situation())).refusal() is first


@pytest.mark.parametrize(
    ("reason", "seen"),
    [
        (Reason.CLOSED, CouponState.CLOSED),
        (Reason.NOT_OPEN, CouponState.SCHEDULED),
        (Reason.ENDED, CouponState.ENDED),
        (Reason.PAUSED, CouponState.PAUSED),
    ],
)
def test_the_state_people_see_is_what_a_newcomer_would_be_told(reason: Reason, seen: CouponState) -> None:
    made = MAKES[reason](Situation()).coupon
    assert made is not None
    assert state_at(made, DURING_US) is seen
    sold_out_too = replace(made, remaining=0, issued=10)
    assert state_at(sold_out_too, DURING_US) is seen


def test_a_coupon_is_seen_as_active_until_its_last_piece_is_gone() -> None:
    assert state_at(coupon(total=2, issued=1), DURING_US) is CouponState.ACTIVE
    assert state_at(coupon(total=2, issued=2), DURING_US) is CouponState.SOLD_OUT


# Window


@pytest.mark.parametrize(
    ("time_us", "said"),
    [
        (START_US - 1, "NOT_OPEN"),
        (START_US, "ISSUED 1"),
        (END_US - 1, "ISSUED 1"),
        (END_US, "ENDED"),
        (END_US + 1, "ENDED"),
    ],
)
def test_the_window_begins_with_its_start_and_ends_before_its_end(time_us: int, said: str) -> None:
    assert gist(verdict_of(state(coupon()), issue(1, time_us=time_us))) == said


@pytest.mark.parametrize("time_us", [TIME_US_MIN, 0, TIME_US_MAX])
def test_without_a_window_any_time_will_do(time_us: int) -> None:
    endless = coupon(start_us=None, end_us=None)
    assert gist(verdict_of(state(endless), issue(1, time_us=time_us))) == "ISSUED 1"


def test_a_window_may_be_open_to_one_side() -> None:
    assert gists(state(coupon(start_us=None)), issue(1, time_us=-5), issue(2, BOB, time_us=END_US)) == [
        "ISSUED 1",
        "ENDED",
    ]
    assert gists(state(coupon(end_us=None)), issue(1, time_us=0), issue(2, BOB, time_us=TIME_US_MAX)) == [
        "NOT_OPEN",
        "ISSUED 1",
    ]


# Stock and order


def test_nobody_gets_a_coupon_without_stock() -> None:
    assert gists(state(coupon(total=5, issued=5)), issue(1)) == ["SOLD_OUT"]


def test_the_last_piece_goes_to_the_lowest_offset() -> None:
    assert gists(state(coupon(total=1)), issue(1, BOB), issue(2, ANN, R2)) == ["ISSUED 1", "SOLD_OUT"]


def test_sequences_go_on_where_the_last_batch_ended() -> None:
    records = [issue(offset, user, R1) for offset, user in enumerate((ANN, BOB, CEM), start=70)]
    decision = decide(state(coupon(total=9, issued=6)), records)
    assert [gist(verdict) for verdict in decision.verdicts] == ["ISSUED 7", "ISSUED 8", "ISSUED 9"]
    (after,) = decision.coupons
    assert (after.total, after.remaining, after.issued) == (9, 0, 9)


def test_refused_records_take_no_sequence() -> None:
    said = gists(
        state(coupon()), issue(1), issue(2, BOB, time_us=END_US), issue(3, ANN, R2), issue(4, CEM), issue(5, BOB)
    )
    assert said == ["ISSUED 1", "ENDED", "ALREADY_ISSUED", "ISSUED 2", "ISSUED 3"]


def test_coupons_of_one_partition_have_stock_and_sequences_of_their_own() -> None:
    both = state(coupon(total=1), coupon(AUTUMN, total=2))
    said = gists(both, issue(1), issue(2, coupon_id=AUTUMN), issue(3, BOB), issue(4, BOB, coupon_id=AUTUMN))
    assert said == ["ISSUED 1", "ISSUED 1", "SOLD_OUT", "ISSUED 2"]


def test_a_verdict_carries_its_records_offset_time_and_ids() -> None:
    assert verdict_of(state(coupon()), issue(42, BOB, R3)) == Issued(42, DURING_US, SPRING, BOB, R3, 1)
    assert verdict_of(state(), issue(42, BOB, R3)) == Rejected(42, DURING_US, SPRING, BOB, R3, Reason.COUPON_NOT_FOUND)


def test_only_coupons_that_changed_are_written_back() -> None:
    before = state(coupon(total=1, issued=1), coupon(AUTUMN))
    assert decide(before, [issue(1), issue(2, coupon_id=AUTUMN, time_us=END_US)]).coupons == ()
    assert [one.coupon_id for one in decide(before, [issue(3, coupon_id=AUTUMN)]).coupons] == [AUTUMN]


def test_a_grant_leaves_etag_and_update_time_of_the_coupon() -> None:
    (after,) = decide(state(coupon()), [issue(9)]).coupons
    assert (after.etag, after.update_us) == (coupon().etag, coupon().update_us)


def test_deciding_changes_nothing_in_the_state_it_was_given() -> None:
    coupons, grants, changes, redriven = {SPRING: coupon()}, {}, {}, {}  # type: ignore[var-annotated]
    before = state(coupons=coupons, grants=grants, changes=changes, redriven=redriven)
    decide(before, [issue(1), change(2, Action.PAUSE), issue(3, BOB, redrive=redrive(0))])
    assert (coupons, grants, changes, redriven) == ({SPRING: coupon()}, {}, {}, {})


def test_no_records_no_verdicts() -> None:
    decision = decide(state(coupon()), [])
    assert (decision.verdicts, decision.coupons) == ((), ())


# Repeats


@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[0], [1, 2]], [[0, 1], [2]], [[0], [1], [2]]])
def test_the_grants_request_id_is_repeated_another_is_already_issued_within_and_across_batches(
    batches: list[list[int]],
) -> None:
    records = [issue(5, ANN, R1), issue(6, ANN, R1), issue(7, ANN, R2)]
    verdicts, after = decided_in(state(coupon()), [[records[i] for i in batch] for batch in batches])
    assert [gist(verdict) for verdict in verdicts] == ["ISSUED 1", "REPEATED", "ALREADY_ISSUED"]
    assert after.coupons[SPRING].remaining == 9


def test_a_repeat_names_the_grant_that_it_repeats() -> None:
    _, repeat, other = decide(state(coupon()), [issue(5), issue(6), issue(7, ANN, R2)]).verdicts
    assert isinstance(repeat, Rejected)
    assert repeat.grant == Grant(R1, 1, Ticket(PARTITION, 5))
    assert isinstance(other, Rejected)
    assert other.grant is None


def test_a_repeat_after_the_sell_out_the_close_and_the_end_is_still_the_grant() -> None:
    said = gists(
        state(coupon(total=1)), issue(1), change(2, Action.CLOSE, R3), issue(3, time_us=END_US + 1), issue(4, BOB)
    )
    assert said == ["ISSUED 1", "APPLIED", "REPEATED", "CLOSED"]


def test_request_ids_are_remembered_for_coupon_and_user_only() -> None:
    said = gists(
        state(coupon(), coupon(AUTUMN)), issue(1, ANN, R1), issue(2, BOB, R1), issue(3, ANN, R1, coupon_id=AUTUMN)
    )
    assert said == ["ISSUED 1", "ISSUED 2", "ISSUED 1"]


def test_a_rejection_is_not_final_for_the_user() -> None:
    said = gists(state(coupon()), issue(1, time_us=START_US - 1), issue(2, time_us=START_US), issue(3))
    assert said == ["NOT_OPEN", "ISSUED 1", "REPEATED"]


# Changes


def create(offset: int, request: RequestId = R1, **fields: Any) -> ChangeRequest:
    return change(offset, Action.CREATE, request, **{"total": 2, "display_name": "Spring", **fields})


def changed(before: Coupon, request: ChangeRequest) -> tuple[str, Coupon]:
    """A single change's result and the coupon behind it."""
    verdicts, after = decided_in(state(before), [[request]])
    return gist(verdicts[0]), after.coupons[before.coupon_id]


def test_a_created_coupon_is_active_full_and_belongs_to_its_partition() -> None:
    verdict = verdict_of(state(), create(7, total=5, start_us=START_US, end_us=END_US, time_us=1_234))
    assert isinstance(verdict, Changed)
    assert verdict.outcome.reason is None
    assert verdict.outcome.coupon == Coupon(
        SPRING, PARTITION, "Spring", 5, 5, 0, START_US, END_US, Switch.ACTIVE, f"{PARTITION}-7", 1_234, 1_234
    )
    assert verdict.outcome.state is CouponState.ACTIVE


def test_a_coupon_exists_for_the_records_behind_its_creation_only() -> None:
    assert gists(state(), issue(1), create(2), issue(3), issue(4, BOB), issue(5, CEM)) == [
        "COUPON_NOT_FOUND",
        "APPLIED",
        "ISSUED 1",
        "ISSUED 2",
        "SOLD_OUT",
    ]


def test_a_coupon_is_not_created_over_another() -> None:
    before = coupon(issued=4)
    said, after = changed(before, create(7, total=99))
    assert (said, after) == ("COUPON_EXISTS", before)
    assert gists(state(), create(1, R1), create(2, R2)) == ["APPLIED", "COUPON_EXISTS"]


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"total": 1}, "APPLIED"),
        ({"total": TOTAL_QUANTITY_MAX}, "APPLIED"),
        ({"total": 0}, "INVALID_FIELD"),
        ({"total": -1}, "INVALID_FIELD"),
        ({"total": TOTAL_QUANTITY_MAX + 1}, "INVALID_FIELD"),
        ({"start_us": 5, "end_us": 6}, "APPLIED"),
        ({"start_us": 5, "end_us": 5}, "INVALID_FIELD"),
        ({"start_us": 6, "end_us": 5}, "INVALID_FIELD"),
        ({"start_us": TIME_US_MIN, "end_us": TIME_US_MAX}, "APPLIED"),
        ({"start_us": TIME_US_MIN - 1}, "INVALID_FIELD"),
        ({"end_us": TIME_US_MAX + 1}, "INVALID_FIELD"),
    ],
)
def test_a_coupon_is_created_only_with_a_total_and_window_that_fit(fields: dict[str, Any], result: str) -> None:
    assert gist(verdict_of(state(), create(1, **fields))) == result


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.CREATE])
def test_a_change_of_an_unknown_coupon_is_refused(action: Action) -> None:
    verdict = verdict_of(state(), change(1, action))
    assert isinstance(verdict, Changed)
    assert result_of(verdict.outcome) == "COUPON_NOT_FOUND"
    assert (verdict.outcome.coupon, verdict.outcome.state) == (None, None)


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.CREATE])
def test_a_closed_coupon_takes_no_change(action: Action) -> None:
    before = coupon(switch=Switch.CLOSED)
    request = change(1, action, stock_delta=1, update_paths=("display_name",), etag="stale")
    assert changed(before, request) == ("CLOSED", before)


def test_an_update_changes_the_named_fields_only() -> None:
    request = change(
        7, Action.UPDATE, display_name="Fall", start_us=None, end_us=9_000, update_paths=("end_time",), time_us=1_700
    )
    said, after = changed(coupon(issued=3), request)
    assert said == "APPLIED"
    assert after == replace(coupon(issued=3), end_us=9_000, etag=f"{PARTITION}-7", update_us=1_700)


def test_an_update_may_change_all_fields_and_take_a_bound_away() -> None:
    request = change(
        7, Action.UPDATE, display_name="Fall", end_us=5_000, update_paths=("display_name", "start_time", "end_time")
    )
    said, after = changed(coupon(), request)
    assert (said, after.display_name, after.start_us, after.end_us) == ("APPLIED", "Fall", None, 5_000)


@pytest.mark.parametrize("paths", [(), ("total",), ("display_name", "etag"), ("",)])
def test_an_update_of_no_or_unknown_fields_is_refused(paths: tuple[str, ...]) -> None:
    assert changed(coupon(), change(7, Action.UPDATE, update_paths=paths)) == ("INVALID_FIELD", coupon())


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"end_us": START_US + 1, "update_paths": ("end_time",)}, "APPLIED"),
        ({"end_us": START_US, "update_paths": ("end_time",)}, "INVALID_FIELD"),
        ({"start_us": END_US, "update_paths": ("start_time",)}, "INVALID_FIELD"),
        ({"start_us": TIME_US_MIN - 1, "update_paths": ("start_time",)}, "INVALID_FIELD"),
        # Not named, so not looked at.
        ({"start_us": END_US, "update_paths": ("display_name",)}, "APPLIED"),
    ],
)
def test_an_updated_window_must_fit_together_with_the_bound_that_stays(fields: dict[str, Any], result: str) -> None:
    assert changed(coupon(), change(7, Action.UPDATE, **fields))[0] == result


@pytest.mark.parametrize(
    ("delta", "result", "numbers"),
    [
        (5, "APPLIED", (15, 11, 4)),
        (-6, "APPLIED", (4, 0, 4)),
        (-7, "INSUFFICIENT_STOCK", (10, 6, 4)),
        (0, "INVALID_FIELD", (10, 6, 4)),
        (TOTAL_QUANTITY_MAX - 10, "APPLIED", (TOTAL_QUANTITY_MAX, TOTAL_QUANTITY_MAX - 4, 4)),
        (TOTAL_QUANTITY_MAX - 9, "INVALID_FIELD", (10, 6, 4)),
        (-(2**63), "INSUFFICIENT_STOCK", (10, 6, 4)),
    ],
)
def test_stock_is_given_and_taken_but_never_what_is_issued(
    delta: int, result: str, numbers: tuple[int, int, int]
) -> None:
    said, after = changed(coupon(total=10, issued=4), change(7, Action.ADJUST_STOCK, stock_delta=delta))
    assert (said, (after.total, after.remaining, after.issued)) == (result, numbers)


@pytest.mark.parametrize(
    ("before", "action", "switch"),
    [
        (Switch.ACTIVE, Action.PAUSE, Switch.PAUSED),
        (Switch.PAUSED, Action.PAUSE, Switch.PAUSED),
        (Switch.PAUSED, Action.RESUME, Switch.ACTIVE),
        (Switch.ACTIVE, Action.RESUME, Switch.ACTIVE),
        (Switch.ACTIVE, Action.CLOSE, Switch.CLOSED),
        (Switch.PAUSED, Action.CLOSE, Switch.CLOSED),
    ],
)
def test_pause_resume_and_close_set_the_switch(before: Switch, action: Action, switch: Switch) -> None:
    said, after = changed(coupon(switch=before), change(7, action))
    assert (said, after.switch, after.etag) == ("APPLIED", switch, f"{PARTITION}-7")


def test_each_change_takes_effect_for_the_records_behind_it_in_the_same_batch() -> None:
    said = gists(
        state(coupon(total=1)),
        issue(1, ANN),
        issue(2, BOB),
        change(3, Action.ADJUST_STOCK, R1, stock_delta=1),
        change(4, Action.PAUSE, R2),
        issue(5, BOB),
        change(6, Action.RESUME, R3),
        issue(7, BOB),
        change(8, Action.ADJUST_STOCK, R4, stock_delta=-1),
    )
    assert said == [
        "ISSUED 1",
        "SOLD_OUT",
        "APPLIED",
        "APPLIED",
        "PAUSED",
        "APPLIED",
        "ISSUED 2",
        "INSUFFICIENT_STOCK",
    ]


def test_a_changed_window_counts_for_the_records_behind_it() -> None:
    said = gists(
        state(coupon()),
        issue(1, time_us=END_US),
        change(2, Action.UPDATE, end_us=END_US + 1, update_paths=("end_time",)),
        issue(3, time_us=END_US),
    )
    assert said == ["ENDED", "APPLIED", "ISSUED 1"]


def test_an_outcome_shows_the_coupon_as_it_is_at_its_offset() -> None:
    verdicts = decide(state(coupon(total=2)), [issue(1), change(2, Action.PAUSE), issue(3, BOB)]).verdicts
    assert isinstance(verdicts[1], Changed)
    shown = verdicts[1].outcome.coupon
    assert shown is not None
    assert (shown.remaining, shown.issued, shown.switch) == (1, 1, Switch.PAUSED)


def test_a_refused_change_shows_the_coupon_that_refused_it() -> None:
    verdict = verdict_of(state(coupon()), change(2, Action.PAUSE, etag="3-99"))
    assert isinstance(verdict, Changed)
    assert (verdict.outcome.coupon, verdict.outcome.state) == (coupon(), CouponState.ACTIVE)


def test_an_outcomes_state_is_judged_at_the_records_time() -> None:
    def seen(time_us: int) -> CouponState | None:
        verdict = verdict_of(state(coupon()), change(2, Action.RESUME, time_us=time_us))
        assert isinstance(verdict, Changed)
        return verdict.outcome.state

    assert [seen(time_us) for time_us in (START_US - 1, START_US, END_US)] == [
        CouponState.SCHEDULED,
        CouponState.ACTIVE,
        CouponState.ENDED,
    ]


def test_a_change_carries_its_caller_and_payload_hash() -> None:
    verdict = verdict_of(state(coupon()), change(2, Action.PAUSE, caller="mina", payload_hash=b"h"))
    assert isinstance(verdict, Changed)
    assert (verdict.caller, verdict.payload_hash, verdict.repeated) == ("mina", b"h", False)


# etag


def test_a_change_with_the_current_etag_applies_and_makes_a_new_one() -> None:
    said, after = changed(coupon(), change(7, Action.PAUSE, etag=coupon().etag))
    assert (said, after.etag) == ("APPLIED", f"{PARTITION}-7")


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.CREATE])
def test_a_change_with_a_stale_etag_is_refused_before_its_fields_are_looked_at(action: Action) -> None:
    assert changed(coupon(), change(7, action, etag="3-99")) == ("ETAG_MISMATCH", coupon())


def test_of_two_changes_with_the_same_etag_the_first_in_line_wins() -> None:
    etag = coupon().etag
    said = gists(state(coupon()), change(7, Action.PAUSE, R1, etag=etag), change(8, Action.CLOSE, R2, etag=etag))
    assert said == ["APPLIED", "ETAG_MISMATCH"]


def test_a_refused_change_leaves_the_etag() -> None:
    refused = change(7, Action.ADJUST_STOCK, R1, stock_delta=-99)
    said = gists(state(coupon()), refused, change(8, Action.PAUSE, R2, etag=coupon().etag))
    assert said == ["INSUFFICIENT_STOCK", "APPLIED"]


# Repeated changes


@pytest.mark.parametrize("across", [False, True])
def test_a_repeated_change_is_answered_with_the_firsts_outcome_and_not_done_again(across: bool) -> None:
    give = change(7, Action.ADJUST_STOCK, R1, stock_delta=5)
    records: list[LineRecord] = [give, issue(8), replace(give, offset=9, time_us=END_US)]
    batches = [[record] for record in records] if across else [records]
    verdicts, after = decided_in(state(coupon()), batches)
    first, _, again = verdicts
    assert isinstance(first, Changed)
    assert isinstance(again, Changed)
    assert (first.repeated, again.repeated) == (False, True)
    assert again.outcome == first.outcome
    assert after.coupons[SPRING].total == 15


def test_a_repeated_refusal_is_answered_with_the_refusal_though_it_would_work_now() -> None:
    take = change(7, Action.ADJUST_STOCK, R1, stock_delta=-11)
    give = change(8, Action.ADJUST_STOCK, R2, stock_delta=5)
    assert gists(state(coupon()), take, give, replace(take, offset=9)) == [
        "INSUFFICIENT_STOCK",
        "APPLIED",
        "REPEATED INSUFFICIENT_STOCK",
    ]


def test_a_change_that_reuses_a_request_id_for_another_payload_is_refused_and_not_done() -> None:
    records = [change(7, Action.PAUSE, R1), change(8, Action.CLOSE, R1), change(9, Action.PAUSE, R1)]
    verdicts, after = decided_in(state(coupon()), [records])
    assert [gist(verdict) for verdict in verdicts] == ["APPLIED", "REPEATED INVALID_FIELD", "REPEATED APPLIED"]
    assert after.coupons[SPRING].switch is Switch.PAUSED


def test_request_ids_of_changes_are_the_coupons_own_and_apart_from_those_of_issues() -> None:
    said = gists(
        state(coupon(), coupon(AUTUMN)),
        change(7, Action.PAUSE, R1),
        change(8, Action.PAUSE, R1, coupon_id=AUTUMN),
        change(9, Action.RESUME, R2),
        issue(10, ANN, R1),
    )
    assert said == ["APPLIED", "APPLIED", "APPLIED", "ISSUED 1"]


# Redrives

ORIGINAL = redrive(2)


def test_a_redrive_is_judged_by_the_window_of_its_original() -> None:
    late = issue(50, time_us=END_US + 99, redrive=redrive(2, time_us=END_US - 1))
    assert verdict_of(state(coupon()), late) == Issued(
        50, END_US + 99, SPRING, ANN, R1, 1, redrive_of=Ticket(PARTITION, 2)
    )


@pytest.mark.parametrize(("original_us", "said"), [(START_US - 1, "NOT_OPEN"), (END_US, "ENDED")])
def test_a_redrive_is_refused_if_its_original_was_outside_the_window(original_us: int, said: str) -> None:
    verdict = verdict_of(state(coupon()), issue(50, redrive=redrive(2, time_us=original_us)))
    assert gist(verdict) == said
    assert verdict.redrive_of == Ticket(PARTITION, 2)


def test_a_redrive_takes_stock_and_switch_as_they_are_at_its_own_place() -> None:
    assert gists(state(coupon(total=1)), issue(1, BOB), issue(2, redrive=ORIGINAL)) == ["ISSUED 1", "SOLD_OUT"]
    assert gists(state(coupon()), change(1, Action.PAUSE), issue(2, redrive=ORIGINAL)) == ["APPLIED", "PAUSED"]


@pytest.mark.parametrize("across", [False, True])
def test_a_second_redrive_repeats_the_grant_of_the_first(across: bool) -> None:
    # Though corrected to somebody else: an original settles once.
    records = [issue(50, ANN, R1, redrive=ORIGINAL), issue(51, BOB, R2, redrive=ORIGINAL)]
    verdicts, after = decided_in(state(coupon()), [[record] for record in records] if across else [records])
    assert [gist(verdict) for verdict in verdicts] == ["ISSUED 1", "REPEATED"]
    assert isinstance(verdicts[1], Rejected)
    assert verdicts[1].grant == Grant(R1, 1, Ticket(PARTITION, 50))
    assert after.coupons[SPRING].issued == 1


@pytest.mark.parametrize("across", [False, True])
def test_a_second_redrive_repeats_the_rejection_of_the_first_though_it_would_be_granted_now(across: bool) -> None:
    records: list[LineRecord] = [
        issue(50, redrive=ORIGINAL),
        change(51, Action.ADJUST_STOCK, stock_delta=1),
        issue(52, redrive=ORIGINAL),
        issue(53, redrive=redrive(3)),
    ]
    sold_out = state(coupon(total=1, issued=1))
    verdicts, _ = decided_in(sold_out, [[record] for record in records] if across else [records])
    assert [gist(verdict) for verdict in verdicts] == ["SOLD_OUT", "APPLIED", "REPEATED", "ISSUED 2"]
    assert isinstance(verdicts[2], Rejected)
    assert verdicts[2].grant is None


@pytest.mark.parametrize("across", [False, True])
def test_a_redrive_behind_an_already_issued_one_repeats_a_rejection_and_names_no_grant(across: bool) -> None:
    records = [issue(5, ANN, R1), *(issue(offset, ANN, R2, redrive=ORIGINAL) for offset in (50, 51))]
    verdicts, _ = decided_in(state(coupon()), [[record] for record in records] if across else [records])
    assert [gist(verdict) for verdict in verdicts] == ["ISSUED 1", "ALREADY_ISSUED", "REPEATED"]
    assert [verdict.grant for verdict in verdicts if isinstance(verdict, Rejected)] == [None, None]


@pytest.mark.parametrize("across", [False, True])
def test_a_parked_redrive_settles_nothing_so_the_next_one_is_judged(across: bool) -> None:
    lost = park(issue(50, redrive=ORIGINAL), ParkReason.INTERNAL, "boom")
    records: list[LineRecord] = [lost, issue(51, redrive=ORIGINAL), issue(52, redrive=ORIGINAL)]
    verdicts, _ = decided_in(state(coupon()), [[record] for record in records] if across else [records])
    assert [gist(verdict) for verdict in verdicts] == ["PARKED INTERNAL", "ISSUED 1", "REPEATED"]
    assert verdicts[0].redrive_of == Ticket(PARTITION, 2)


def test_a_redrive_of_a_request_that_was_granted_meanwhile_repeats_that_grant() -> None:
    verdicts = decide(state(coupon()), [issue(5), issue(50, redrive=ORIGINAL), issue(51, redrive=ORIGINAL)]).verdicts
    assert [gist(verdict) for verdict in verdicts] == ["ISSUED 1", "REPEATED", "REPEATED"]
    assert [verdict.grant for verdict in verdicts if isinstance(verdict, Rejected)] == [
        Grant(R1, 1, Ticket(PARTITION, 5))
    ] * 2


def test_a_redrive_for_a_user_who_has_the_coupon_by_another_request_is_already_issued() -> None:
    said = gists(state(coupon()), issue(5, ANN, R1), issue(50, ANN, R2, redrive=ORIGINAL))
    assert said == ["ISSUED 1", "ALREADY_ISSUED"]


def test_redrives_of_other_originals_are_judged_on_their_own() -> None:
    said = gists(
        state(coupon()), issue(50, ANN, redrive=redrive(2)), issue(51, BOB, redrive=redrive(2, partition=PARTITION + 1))
    )
    assert said == ["ISSUED 1", "ISSUED 2"]


def test_an_unknown_coupon_comes_before_the_repeat_of_a_redrive() -> None:
    before = state(redriven={ORIGINAL.original: None})
    assert gist(verdict_of(before, issue(50, redrive=ORIGINAL))) == "COUPON_NOT_FOUND"


def test_a_redriven_change_names_its_original_and_is_done_once() -> None:
    give = change(50, Action.ADJUST_STOCK, stock_delta=5, redrive=ORIGINAL)
    verdicts, after = decided_in(state(coupon()), [[give, replace(give, offset=51)]])
    assert [gist(verdict) for verdict in verdicts] == ["APPLIED", "REPEATED APPLIED"]
    assert [verdict.redrive_of for verdict in verdicts] == [ORIGINAL.original] * 2
    assert after.coupons[SPRING].total == 15


# Parked


@pytest.mark.parametrize("record", [issue(1), change(1, Action.CREATE, total=5), change(1, Action.PAUSE)])
def test_a_record_of_a_coupon_of_another_partition_is_parked_and_does_nothing(record: Any) -> None:
    decision = decide(state(foreign=frozenset({SPRING})), [record, issue(2, coupon_id=AUTUMN)])
    assert [gist(verdict) for verdict in decision.verdicts] == ["PARKED WRONG_PARTITION", "COUPON_NOT_FOUND"]
    assert decision.coupons == ()
    parked = decision.verdicts[0]
    assert isinstance(parked, Parked)
    assert (parked.coupon_id, parked.request_id, parked.known) == (SPRING, R1, False)


def test_a_redrive_to_another_partition_is_parked_and_settles_nothing() -> None:
    decision = decide(state(foreign=frozenset({SPRING})), [issue(1, redrive=ORIGINAL)])
    assert stored(state(), decision).redriven == {}
    assert decision.verdicts[0].redrive_of == ORIGINAL.original


def test_an_unprocessable_record_is_parked_as_it_is_between_its_neighbours() -> None:
    garbage = Unprocessable(2, 7, ParkReason.BAD_ID, "user_id", SPRING, None, R2, known=True)
    decision = decide(state(coupon()), [issue(1), garbage, issue(3, BOB)])
    assert [gist(verdict) for verdict in decision.verdicts] == ["ISSUED 1", "PARKED BAD_ID", "ISSUED 2"]
    assert decision.verdicts[1] == Parked(2, 7, ParkReason.BAD_ID, "user_id", SPRING, None, R2, None, True)


def test_parking_keeps_a_records_ids_and_an_unprocessable_ones_first_reason() -> None:
    parked = park(issue(1, BOB, R2, redrive=ORIGINAL), ParkReason.UNSTORABLE, "22021")
    assert parked == Unprocessable(1, DURING_US, ParkReason.UNSTORABLE, "22021", SPRING, BOB, R2, ORIGINAL, False)
    assert park(parked, ParkReason.INTERNAL, "later", known=True) == replace(parked, known=True)
    assert park(parked, ParkReason.INTERNAL, "later") == parked
    assert park(change(1, Action.PAUSE), ParkReason.UNSTORABLE, "22021").user_id is None


# A record that raises


class Boom(Exception):
    pass


def explode(*_: object) -> Any:
    raise Boom("boom\0\n")


def test_a_record_that_raises_is_parked_as_internal_and_its_neighbours_are_not_touched() -> None:
    broken = replace(change(2, Action.ADJUST_STOCK), stock_delta="five")  # type: ignore[arg-type]
    decision = decide(state(coupon()), [issue(1), broken, issue(3, BOB)])
    assert [gist(verdict) for verdict in decision.verdicts] == ["ISSUED 1", "PARKED INTERNAL", "ISSUED 2"]
    (after,) = decision.coupons
    assert (after.total, after.remaining, after.etag) == (10, 8, coupon().etag)


def test_the_message_of_a_record_that_raises_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide_module, "refusal", explode)
    parked = verdict_of(state(coupon()), issue(1, BOB, R2))
    assert isinstance(parked, Parked)
    assert parked.message.startswith("Boom: boom")
    assert parked.message.isprintable()
    assert (parked.coupon_id, parked.user_id, parked.request_id) == (SPRING, BOB, R2)


def test_an_issue_that_raises_settles_nothing_for_its_user_or_its_original(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = decide_module.refusal, iter((explode, refusal, refusal))
    monkeypatch.setattr(decide_module, "refusal", lambda *arguments: next(calls, real)(*arguments))
    records = [issue(1, redrive=ORIGINAL), issue(2, redrive=ORIGINAL), issue(3, ANN, R2)]
    assert gists(state(coupon()), *records) == ["PARKED INTERNAL", "ISSUED 1", "ALREADY_ISSUED"]


@pytest.mark.parametrize("action", [Action.CREATE, Action.PAUSE])
def test_a_change_that_raises_at_its_very_end_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, action: Action) -> None:
    before = state() if action is Action.CREATE else state(coupon())
    request = change(1, action, total=5)
    with monkeypatch.context() as patched:
        # Where the outcome is put together, behind the change itself.
        patched.setattr(decide_module, "state_at", explode)
        decision = decide(before, [request, issue(2, BOB)])
    alone = decide(before, [issue(2, BOB)])
    assert gist(decision.verdicts[0]) == "PARKED INTERNAL"
    assert decision.verdicts[1:] == alone.verdicts
    assert decision.coupons == alone.coupons
