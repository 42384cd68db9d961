"""Planted bugs: books that are wrong in one way each, and the check that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from coupon.v1 import events_pb2

from checker.audit import audit
from checker.findings import EXAMPLES_MAX, Check, Promise, Report
from checker.outcomes import event_of
from checker.pace import Limits
from checker.records import ChangeRow, IssuedRow, Record, RejectedRow, Ticket
from tests.unit.checker_world import START_MS, World, coupon_at, request_id

COUPON = coupon_at(0)
OTHER = coupon_at(1)


@dataclass(frozen=True)
class Sale:
    """Two coupons of 2; of the first ann and bob get one, cyd is too late; one record is garbage."""

    world: World
    create: Ticket
    ann: Ticket
    bob: Ticket
    cyd: Ticket
    again: Ticket
    garbage: Ticket


def sale() -> Sale:
    world = World()
    create = world.create(COUPON, 2)
    world.create(OTHER, 2)
    ann = world.issue(COUPON, "ann", 1)
    bob = world.issue(COUPON, "bob", 2)
    cyd = world.issue(COUPON, "cyd", 3)
    again = world.issue(COUPON, "ann", 1)
    garbage = world.put(0, b"k", b"", (("ce_type", b"x"),))
    world.issue(OTHER, "ann", 1)
    return Sale(world.settle(), create, ann, bob, cyd, again, garbage)


def broken(report: Report) -> set[Check]:
    return {finding.check for result in report.results for finding in result.examples}


def issued(world: World, ticket: Ticket) -> IssuedRow:
    row = world.row(ticket)
    assert isinstance(row, IssuedRow)
    return row


def rejected(world: World, ticket: Ticket) -> RejectedRow:
    row = world.row(ticket)
    assert isinstance(row, RejectedRow)
    return row


async def test_books_that_are_right_break_no_promise() -> None:
    report = await sale().world.report()
    assert report.held, broken(report)
    counts = report.counts
    assert (counts.records, counts.issued, counts.parked, counts.changes) == (8, 3, 1, 2)
    assert counts.rejected == {"SOLD_OUT": 1, "REPEATED": 1}
    assert (counts.oversold, counts.duplicates, counts.lost) == (0, 0, 0)
    assert [result.promise for result in report.results] == list(Promise)


async def test_repetitions_of_an_outcome_and_of_a_dead_letter_are_lawful() -> None:
    world = sale().world
    world.published[0] += [record._replace(offset=100 + record.offset) for record in world.published[0]]
    world.dlq[0] += [record._replace(offset=100 + record.offset) for record in world.dlq[0]]
    report = await world.report()
    assert report.held, broken(report)
    assert report.counts.outcomes_repeated == 6


async def test_preloaded_rows_are_skipped() -> None:
    world = sale().world
    world.rows.append(issued(world, Ticket(1, 1))._replace(ticket=Ticket(-1, 5), user_id="old"))
    assert (await world.report()).held


# A grant too many: the ledger gave cyd a third of two.
def oversold(s: Sale) -> None:
    row = rejected(s.world, s.cyd)
    grant = IssuedRow(s.cyd, COUPON, "cyd", request_id(3), 3, None, row.accepted_us, row.settled_us)
    s.world.swap(s.cyd, grant)
    s.world.republish(s.cyd)
    coupons = s.world.coupon_rows
    coupons[0] = coupons[0]._replace(issued=3, remaining=0)


def granted_twice(s: Sale) -> None:
    row = rejected(s.world, s.again)
    s.world.swap(s.again, IssuedRow(s.again, COUPON, "ann", request_id(1), 3, None, row.accepted_us, row.settled_us))
    s.world.republish(s.again)


def told_twice_in_outcomes(s: Sale) -> None:
    event = events_pb2.CouponIssuedEvent(
        coupon_id=COUPON, user_id="ann", request_id=request_id(1), ticket=str(s.again), sequence=2
    )
    s.world.published[0].append(
        Record(
            0,
            200,
            START_MS,
            COUPON.encode(),
            event.SerializeToString(),
            (
                ("ce_type", b"coupon.v1.CouponIssuedEvent"),
                ("ce_id", f"{s.world.line_topic}/0/{s.again.offset}".encode()),
            ),
        )
    )


def stock_decreased_by_the_batch(s: Sale) -> None:
    coupons = s.world.coupon_rows
    coupons[1] = coupons[1]._replace(remaining=0, issued=2)


def stock_not_decreased(s: Sale) -> None:
    coupons = s.world.coupon_rows
    coupons[1] = coupons[1]._replace(remaining=2)


def sequence_skipped(s: Sale) -> None:
    s.world.swap(s.bob, issued(s.world, s.bob)._replace(sequence=3))
    s.world.republish(s.bob)


def record_lost(s: Sale) -> None:
    s.world.swap(s.cyd)
    del s.world.published[0][s.cyd.offset]


def settled_twice(s: Sale) -> None:
    row = issued(s.world, s.bob)
    s.world.rows.append(
        RejectedRow(
            s.bob, COUPON, "bob", request_id(2), "SOLD_OUT", None, None, None, None, row.accepted_us, row.settled_us
        )
    )


def row_without_record(s: Sale) -> None:
    s.world.rows.append(rejected(s.world, s.cyd)._replace(ticket=Ticket(0, 77)))


def row_of_a_partition_that_is_not(s: Sale) -> None:
    s.world.rows.append(rejected(s.world, s.cyd)._replace(ticket=Ticket(9, 0)))


def later_one_served_first(s: Sale) -> None:
    bob, cyd = issued(s.world, s.bob), rejected(s.world, s.cyd)
    s.world.swap(s.bob, cyd._replace(ticket=s.bob, user_id="bob", request_id=request_id(2)))
    s.world.swap(s.cyd, bob._replace(ticket=s.cyd, user_id="cyd", request_id=request_id(3)))
    s.world.republish(s.bob)
    s.world.republish(s.cyd)


def refused_with_another_reason(s: Sale) -> None:
    s.world.swap(s.cyd, rejected(s.world, s.cyd)._replace(reason="PAUSED"))
    s.world.republish(s.cyd)


def repeats_another_grant(s: Sale) -> None:
    s.world.swap(s.again, rejected(s.world, s.again)._replace(issued_sequence=2))
    s.world.republish(s.again)


def accepted_at_another_time(s: Sale) -> None:
    s.world.swap(s.ann, issued(s.world, s.ann)._replace(accepted_us=START_MS * 1000))


def change_with_another_outcome(s: Sale) -> None:
    row = s.world.row(s.create)
    assert isinstance(row, ChangeRow)
    event = events_pb2.CouponChangedEvent.FromString(row.outcome)
    event.coupon.remaining_count = 1
    s.world.swap(s.create, row._replace(outcome=event.SerializeToString()))
    s.world.republish(s.create)


def coupon_row_with_another_etag(s: Sale) -> None:
    coupons = s.world.coupon_rows
    coupons[0] = coupons[0]._replace(etag="0-99")


def coupon_row_gone(s: Sale) -> None:
    del s.world.coupon_rows[1]


def coupon_nobody_created(s: Sale) -> None:
    coupons = s.world.coupon_rows
    coupons.append(coupons[0]._replace(coupon_id="new", total=5, remaining=5, issued=0))


def parked_for_another_reason(s: Sale) -> None:
    s.world.swap(s.garbage, rejected(s.world, s.garbage)._replace(detail="WRONG_TYPE: odd"))


def good_one_parked(s: Sale) -> None:
    cyd = rejected(s.world, s.cyd)._replace(reason="PARKED", detail="UNDECODABLE: not so")
    s.world.swap(s.cyd, cyd)
    s.world.republish(s.cyd)


def garbage_refused(s: Sale) -> None:
    s.world.swap(s.garbage, rejected(s.world, s.garbage)._replace(reason="SOLD_OUT", detail=None))
    s.world.republish(s.garbage)


def parked_row_with_made_up_ids(s: Sale) -> None:
    s.world.swap(s.garbage, rejected(s.world, s.garbage)._replace(coupon_id=COUPON))
    s.world.republish(s.garbage)


def dead_letter_skipped(s: Sale) -> None:
    s.world.dlq[0].clear()


def dead_letter_with_other_bytes(s: Sale) -> None:
    s.world.dlq[0][0] = s.world.dlq[0][0]._replace(value=b"decoded and written anew")


def dead_letter_without_a_header_of_the_line(s: Sale) -> None:
    s.world.dlq[0][0] = s.world.dlq[0][0]._replace(headers=s.world.dlq[0][0].headers[1:])


def dead_letter_said_in_two_ways(s: Sale) -> None:
    first = s.world.dlq[0][0]
    s.world.dlq[0].append(first._replace(offset=1, headers=(*first.headers[:-1], ("dlq-first-failed-at", b"later"))))


def dead_letter_of_a_good_record(s: Sale) -> None:
    first = s.world.dlq[0][0]
    headers = tuple(
        (name, str(s.ann.offset).encode() if name == "dlq-original-offset" else value) for name, value in first.headers
    )
    s.world.dlq[0].append(first._replace(offset=1, headers=headers))


def dead_letter_on_another_partition(s: Sale) -> None:
    s.world.dlq[1].append(s.world.dlq[0].pop()._replace(partition=1))


def dead_letter_not_stored(s: Sale) -> None:
    s.world.dead_letter_table.clear()


def dead_letter_stored_with_other_bytes(s: Sale) -> None:
    s.world.dead_letter_table[0] = s.world.dead_letter_table[0]._replace(key=None)


def dead_letter_stored_of_a_good_record(s: Sale) -> None:
    s.world.dead_letter_table.append(s.world.dead_letter_table[0]._replace(ticket=s.ann))


def outcome_missing(s: Sale) -> None:
    del s.world.published[0][s.bob.offset]


def outcome_before_the_commit(s: Sale) -> None:
    record = s.world.published[0][s.bob.offset]
    headers = tuple((name, b"coupon.issue-requests.v1/0/99" if name == "ce_id" else v) for name, v in record.headers)
    s.world.published[0].append(record._replace(headers=headers))


def outcome_contradicted(s: Sale) -> None:
    ce_type, value = event_of(rejected(s.world, s.cyd)._replace(ticket=s.bob, user_id="bob", request_id=request_id(2)))
    first = s.world.published[0][s.bob.offset]
    headers = tuple((name, ce_type if name == "ce_type" else text) for name, text in first.headers)
    s.world.published[0].append(first._replace(offset=50, value=value, headers=headers))


def outcome_repeated_with_another_time(s: Sale) -> None:
    first = s.world.published[0][s.bob.offset]
    headers = tuple((name, b"2027-01-01T00:00:00.000Z" if name == "ce_time" else v) for name, v in first.headers)
    s.world.published[0].append(first._replace(offset=50, headers=headers))


def outcome_unlike_the_row(s: Sale) -> None:
    row = s.world.row(s.bob)
    s.world.swap(s.bob, issued(s.world, s.bob)._replace(sequence=7))
    s.world.republish(s.bob)
    s.world.swap(s.bob, row)


def outcome_without_the_trace(s: Sale) -> None:
    first = s.world.published[0][s.bob.offset]
    s.world.published[0][s.bob.offset] = first._replace(headers=first.headers[:-1])


@pytest.mark.parametrize(
    ("plant", "checks"),
    [
        (oversold, {Check.OVERSOLD, Check.STOCK_SUM, Check.WRONG_VERDICT, Check.COUPON_DIFFERS}),
        (
            granted_twice,
            {
                Check.TWICE_IN_TABLES,
                Check.OVERSOLD,
                Check.STOCK_SUM,
                Check.ISSUED_COUNT,
                Check.GRANT_BEHIND_SOLD_OUT,
                Check.WRONG_VERDICT,
            },
        ),
        (told_twice_in_outcomes, {Check.TWICE_IN_OUTCOMES, Check.OUTCOME_CONTRADICTORY, Check.OUTCOME_DIFFERS}),
        (stock_decreased_by_the_batch, {Check.STOCK_SUM, Check.ISSUED_COUNT, Check.COUPON_DIFFERS}),
        (stock_not_decreased, {Check.STOCK_SUM, Check.COUPON_DIFFERS}),
        (sequence_skipped, {Check.SEQUENCE, Check.WRONG_VERDICT}),
        (record_lost, {Check.NO_ROW}),
        (settled_twice, {Check.MANY_ROWS}),
        (row_without_record, {Check.ROW_WITHOUT_RECORD}),
        (row_of_a_partition_that_is_not, {Check.ROW_WITHOUT_RECORD}),
        (later_one_served_first, {Check.GRANT_BEHIND_SOLD_OUT, Check.WRONG_VERDICT}),
        (refused_with_another_reason, {Check.WRONG_VERDICT}),
        (repeats_another_grant, {Check.WRONG_VERDICT}),
        (accepted_at_another_time, {Check.WRONG_VERDICT}),
        (change_with_another_outcome, {Check.WRONG_VERDICT}),
        (coupon_row_with_another_etag, {Check.COUPON_DIFFERS}),
        (coupon_row_gone, {Check.COUPON_DIFFERS, Check.OVERSOLD}),
        (coupon_nobody_created, {Check.COUPON_DIFFERS}),
        (parked_for_another_reason, {Check.PARK_REASON, Check.DEAD_LETTER_DIFFERS}),
        (good_one_parked, {Check.WRONGLY_PARKED, Check.DEAD_LETTER_MISSING, Check.DEAD_LETTER_NOT_STORED}),
        (garbage_refused, {Check.NOT_PARKED, Check.DEAD_LETTER_WITHOUT_ROW}),
        (parked_row_with_made_up_ids, {Check.PARKED_ROW}),
        (dead_letter_skipped, {Check.DEAD_LETTER_MISSING}),
        (dead_letter_with_other_bytes, {Check.DEAD_LETTER_DIFFERS}),
        (dead_letter_without_a_header_of_the_line, {Check.DEAD_LETTER_DIFFERS}),
        (dead_letter_said_in_two_ways, {Check.DEAD_LETTER_DIFFERS}),
        (dead_letter_of_a_good_record, {Check.DEAD_LETTER_WITHOUT_ROW}),
        (dead_letter_on_another_partition, {Check.DEAD_LETTER_MISSING, Check.DEAD_LETTER_WITHOUT_ROW}),
        (dead_letter_not_stored, {Check.DEAD_LETTER_NOT_STORED}),
        (dead_letter_stored_with_other_bytes, {Check.DEAD_LETTER_DIFFERS}),
        (dead_letter_stored_of_a_good_record, {Check.DEAD_LETTER_WITHOUT_ROW}),
        (outcome_missing, {Check.OUTCOME_MISSING}),
        (outcome_before_the_commit, {Check.OUTCOME_WITHOUT_ROW}),
        (outcome_contradicted, {Check.OUTCOME_CONTRADICTORY, Check.OUTCOME_DIFFERS}),
        (outcome_repeated_with_another_time, {Check.OUTCOME_CONTRADICTORY, Check.OUTCOME_DIFFERS}),
        (outcome_unlike_the_row, {Check.OUTCOME_DIFFERS}),
        (outcome_without_the_trace, {Check.OUTCOME_DIFFERS}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_planted_bug_is_caught_by_the_check_that_names_it(
    plant: Callable[[Sale], None], checks: set[Check]
) -> None:
    planted = sale()
    plant(planted)
    report = await planted.world.report()
    found = broken(report)
    assert checks <= found
    assert not report.held
    # Nothing that has nothing to do with it.
    assert found - checks <= {Check.COUPON_DIFFERS, Check.GRANT_BEHIND_SOLD_OUT}


async def test_counts_name_what_was_oversold_doubled_and_lost() -> None:
    one, two, three = sale(), sale(), sale()
    oversold(one)
    granted_twice(two)
    record_lost(three)
    assert (await one.world.report()).counts.oversold == 1
    assert (await two.world.report()).counts.duplicates == 1
    assert (await three.world.report()).counts.lost == 1
    assert (await two.world.report()).counts.inversions == 1


async def test_stock_raised_between_lets_a_grant_follow_a_sold_out() -> None:
    world = World()
    world.create(COUPON, 1)
    world.issue(COUPON, "ann", 1)
    world.issue(COUPON, "bob", 2)
    world.change(
        events_pb2.CouponChangeRequestedEvent(
            coupon_id=COUPON, request_id=request_id(3), action="ADJUST_STOCK", stock_delta=1
        )
    )
    world.issue(COUPON, "cyd", 4)
    report = await world.settle().report()
    assert report.held, broken(report)
    assert report.counts.issued == 2


async def test_internal_failure_is_taken_from_the_dlq_and_leaves_no_trace_in_the_model() -> None:
    # The service failed on ann's record; her redrive is granted behind bob.
    world = World()
    world.create(COUPON, 2)
    ann = world.issue(COUPON, "ann", 1)
    world.issue(COUPON, "bob", 2)
    world.issue(COUPON, "ann", 1, headers=(("redrive-of", b"0-1"), ("redrive-original-timestamp", b"1")))
    failed = World()
    failed.lines = [[*world.lines[0]], []]
    failed.lines[0][1] = world.lines[0][1]._replace(value=b"")
    failed.settle()
    # As EMPTY is parked, INTERNAL is: put the record's own bytes back and name the reason.
    failed.lines = world.lines
    record = world.lines[0][1]
    row = rejected(failed, ann)
    failed.swap(
        ann, row._replace(coupon_id=COUPON, user_id="ann", request_id=request_id(1), detail="INTERNAL: RuntimeError")
    )
    failed.republish(ann)
    headers = tuple((name, b"INTERNAL" if name == "dlq-reason" else value) for name, value in failed.dlq[0][0].headers)
    failed.dlq[0][0] = failed.dlq[0][0]._replace(value=record.value, headers=headers)
    failed.dead_letter_table[0] = failed.dead_letter_table[0]._replace(value=record.value)
    report = await failed.report()
    assert report.held, [str(finding) for result in report.results for finding in result.examples]
    assert (report.counts.issued, report.counts.parked) == (2, 1)
    assert report.counts.believed == {"INTERNAL": 1}
    assert (await audit(failed, limits=Limits(believed_max=1))).held
    assert (await audit(failed, limits=Limits(believed_max=0))).checks == {Check.TOO_MANY_BELIEVED}


async def test_findings_are_counted_but_only_the_first_are_kept() -> None:
    world = World()
    world.create(COUPON, 1)
    for number in range(50):
        world.issue(COUPON, f"user-{number}", number)
    world.settle()
    world.rows = [row for row in world.rows if row.ticket.offset < 1]
    result = next(r for r in (await world.report()).results if r.promise is Promise.SETTLED)
    assert result.broken_count == 50
    assert len(result.examples) == EXAMPLES_MAX


def test_every_check_is_explained() -> None:
    explained = (Path(__file__).parents[2] / "docs" / "checker.md").read_text().partition("## Who checks")[0]
    assert [check for check in Check if f"`{check}`" not in explained] == []
