"""Client histories: written, read, and compared with the line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from coupon.v1 import events_pb2

from checker.audit import audit
from checker.findings import Check, Report
from checker.history import History, HistoryError, HistoryWriter
from checker.pace import Limits
from checker.records import Ticket
from tests.unit.checker_world import START_MS, World, coupon_at, request_id

COUPON = coupon_at(0)


def ticking(after_ms: int = 10) -> Callable[[], int]:
    """A clock that goes on by a millisecond each time, from so long after the line's first record."""
    begin_ns = (START_MS + after_ms) * 1_000_000
    now = iter(range(begin_ns, begin_ns + 10**9, 1_000_000))
    return lambda: next(now)


def broken(report: Report) -> set[Check]:
    return {finding.check for result in report.results for finding in result.examples}


def soldout_world() -> World:
    world = World()
    world.create(COUPON, 1)
    world.issue(COUPON, "ann", 1)
    world.issue(COUPON, "bob", 2)
    return world.settle()


async def check(world: World, path: Path) -> Report:
    return await world.report(History.read([path]))


async def test_what_was_told_truly_breaks_nothing(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "h.jsonl", ticking()) as history:
        ann = history.invoke(COUPON, "ann", request_id(1))
        history.ok(ann, "0-1", "ACCEPTED")
        again = history.invoke(COUPON, "ann", request_id(1))
        history.ok(again, "0-1", "ISSUED", 1)
        bob = history.invoke(COUPON, "bob", request_id(2))
        history.fail(bob, "SOLD_OUT", "0-2")
        third = history.invoke(COUPON, "ann", request_id(9))
        history.fail(third, "ALREADY_ISSUED")
        history.unknown(history.invoke(COUPON, "cyd", request_id(3)))
    report = await check(soldout_world(), tmp_path / "h.jsonl")
    assert report.held, broken(report)
    assert (report.counts.calls, report.counts.acknowledged) == (5, 2)


@pytest.mark.parametrize(
    ("user", "request_number", "ticket", "state", "reason", "sequence", "caught"),
    [
        ("cyd", 3, "0-9", "ACCEPTED", None, None, Check.TICKET_NOT_IN_LINE),
        ("cyd", 3, "5-0", "ACCEPTED", None, None, Check.TICKET_NOT_IN_LINE),
        ("cyd", 3, "0-1", "ACCEPTED", None, None, Check.TICKET_OF_ANOTHER),
        ("ann", 3, "0-1", "ACCEPTED", None, None, Check.TICKET_OF_ANOTHER),
        ("ann", 1, "0-0", "ACCEPTED", None, None, Check.TICKET_OF_ANOTHER),
        ("bob", 2, "0-2", "ISSUED", None, 1, Check.TOLD_OTHERWISE),
        ("ann", 1, "0-1", "ISSUED", None, 2, Check.TOLD_OTHERWISE),
        ("ann", 1, "0-1", "REJECTED", "SOLD_OUT", None, Check.TOLD_OTHERWISE),
        ("bob", 2, "0-2", "REJECTED", "PAUSED", None, Check.TOLD_OTHERWISE),
        ("cyd", 3, None, "REJECTED", "ALREADY_ISSUED", None, Check.REFUSAL_NOT_TRUE),
        ("ann", 7, None, "REJECTED", "PAUSED", None, Check.REFUSAL_NOT_TRUE),
        ("bob", 2, None, "REJECTED", "SOLD_OUT", None, Check.REFUSED_BUT_IN_LINE),
        ("ann", 1, None, "ISSUED", None, 1, Check.TOLD_OTHERWISE),
        ("bob", 2, "0-2", "PARKED", None, None, Check.TOLD_OTHERWISE),
    ],
)
async def test_what_was_told_wrongly_is_caught(
    tmp_path: Path,
    user: str,
    request_number: int,
    ticket: str | None,
    state: str,
    reason: str | None,
    sequence: int | None,
    caught: Check,
) -> None:
    with HistoryWriter(tmp_path / "h.jsonl", ticking()) as history:
        call = history.invoke(COUPON, user, request_id(request_number))
        if state == "REJECTED":
            history.fail(call, reason or "", ticket)
        else:
            history.ok(call, ticket, state, sequence)
    report = await check(soldout_world(), tmp_path / "h.jsonl")
    assert broken(report) == {caught}
    assert report.counts.lost == (1 if caught is Check.TICKET_NOT_IN_LINE else 0)


def inverted(path: Path) -> None:
    """bob was told his ticket before ann was sent, and yet she is ahead of him."""
    with HistoryWriter(path, ticking()) as history:
        history.ok(history.invoke(COUPON, "bob", request_id(2)), "0-2", "ACCEPTED")
        history.ok(history.invoke(COUPON, "ann", request_id(1)), "0-1", "ACCEPTED")


async def test_overtaking_is_an_inversion(tmp_path: Path) -> None:
    inverted(tmp_path / "h.jsonl")
    assert broken(await check(soldout_world(), tmp_path / "h.jsonl")) == {Check.INVERSION}


async def test_concurrent_calls_have_no_order(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "h.jsonl", ticking()) as history:
        ann, bob = history.invoke(COUPON, "ann", request_id(1)), history.invoke(COUPON, "bob", request_id(2))
        history.ok(bob, "0-2", "ACCEPTED")
        history.ok(ann, "0-1", "ACCEPTED")
    assert (await check(soldout_world(), tmp_path / "h.jsonl")).held


async def test_repeated_call_counts_from_its_first_sending(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / "h.jsonl", ticking()) as history:
        history.unknown(history.invoke(COUPON, "ann", request_id(1)))
        history.ok(history.invoke(COUPON, "bob", request_id(2)), "0-2", "ACCEPTED")
        history.ok(history.invoke(COUPON, "ann", request_id(1)), "0-1", "ACCEPTED")
    assert (await check(soldout_world(), tmp_path / "h.jsonl")).held


async def test_stock_raised_between_the_two_is_no_inversion(tmp_path: Path) -> None:
    world = World()
    world.create(COUPON, 1)
    world.issue(COUPON, "zoe", 9)
    world.issue(COUPON, "bob", 2)
    world.change(
        events_pb2.CouponChangeRequestedEvent(
            coupon_id=COUPON, request_id=request_id(5), action="ADJUST_STOCK", stock_delta=1
        )
    )
    world.issue(COUPON, "ann", 1)
    with HistoryWriter(tmp_path / "h.jsonl", ticking()) as history:
        history.ok(history.invoke(COUPON, "bob", request_id(2)), "0-2", "ACCEPTED")
        history.ok(history.invoke(COUPON, "ann", request_id(1)), "0-4", "ACCEPTED")
    report = await check(world.settle(), tmp_path / "h.jsonl")
    assert report.held, broken(report)


def test_a_cut_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    inverted(path)
    path.write_text(path.read_text()[:-20])
    history = History.read([path])
    assert history.calls == 2
    assert history.unknown == 1
    assert set(history.told) == {Ticket(0, 2)}


def test_a_file_that_is_no_history_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text("hello\n")
    with pytest.raises(HistoryError, match="line 1"):
        History.read([tmp_path / "h.jsonl"])


SECOND_MS = 1_000
CHANGED = {"action": "ADJUST_STOCK", "stock_delta": 1}


def reopened_world(at_ms: int, **changed: object) -> World:
    """Sold out from the first moment on, and changed so much later."""
    world = World()
    world.create(COUPON, 1)
    world.issue(COUPON, "ann", 1)
    event = events_pb2.CouponChangeRequestedEvent(
        coupon_id=COUPON,
        request_id=request_id(5),
        **{**CHANGED, **changed},  # type: ignore[arg-type]
    )
    world.change(event, time_ms=START_MS + at_ms)
    settled = world.settle()
    # Each verdict is out when its record came.
    settled.rows = [row._replace(settled_us=row.accepted_us) for row in settled.rows]
    times = {record.offset: record.timestamp_ms for record in world.lines[0]}
    settled.published[0] = [one._replace(timestamp_ms=times[one.offset]) for one in settled.published[0]]
    return settled


@pytest.mark.parametrize(
    ("user", "reason", "at_ms", "true"),
    [
        ("cyd", "SOLD_OUT", 500, True),
        ("cyd", "SOLD_OUT", 10_000 + SECOND_MS, True),
        ("cyd", "SOLD_OUT", 10_000 + SECOND_MS + 200, False),
        ("cyd", "COUPON_NOT_FOUND", 500, True),
        ("cyd", "COUPON_NOT_FOUND", 1_500, False),
        ("cyd", "NOT_OPEN", 500, False),
        ("cyd", "ALREADY_ISSUED", 500, False),
        ("ann", "ALREADY_ISSUED", 500, True),
        # Who won a moment ago may hear of the sell-out still; later the grant comes first.
        ("ann", "SOLD_OUT", 500, True),
        ("ann", "SOLD_OUT", 1_500, False),
    ],
)
async def test_a_refusal_without_a_ticket_was_true_within_the_second_before(
    tmp_path: Path, user: str, reason: str, at_ms: int, true: bool
) -> None:
    with HistoryWriter(tmp_path / "h.jsonl", ticking(at_ms)) as history:
        history.fail(history.invoke(COUPON, user, request_id(7)), reason)
    report = await check(reopened_world(at_ms=10_000), tmp_path / "h.jsonl")
    assert broken(report) == (set() if true else {Check.REFUSAL_NOT_TRUE})
    assert report.counts.refusals_without_ticket == 1


@pytest.mark.parametrize(("at_ms", "reason"), [(12_000, "PAUSED"), (30_000, "ENDED"), (19_950, "ENDED")])
async def test_refusals_by_the_window_are_judged_by_the_clock(tmp_path: Path, at_ms: int, reason: str) -> None:
    world = World()
    world.create(COUPON, 5)
    event = events_pb2.CouponChangeRequestedEvent(coupon_id=COUPON, request_id=request_id(5), action="UPDATE")
    event.update_paths.append("end_time")
    event.coupon.end_time.FromMilliseconds(START_MS + 20_000)
    world.change(event)
    world.change(
        events_pb2.CouponChangeRequestedEvent(coupon_id=COUPON, request_id=request_id(6), action="PAUSE"),
        time_ms=START_MS + 11_000,
    )
    world.settle()
    for told, holds in ((reason, True), ("NOT_OPEN", False), ("ENDED" if reason == "PAUSED" else "PAUSED", False)):
        with HistoryWriter(tmp_path / "h.jsonl", ticking(at_ms)) as history:
            history.fail(history.invoke(COUPON, "cyd", request_id(7)), told)
        found = broken(await check(world, tmp_path / "h.jsonl"))
        # Within the tolerance around the end both are true.
        assert found == (set() if holds or (at_ms == 19_950 and told == "PAUSED") else {Check.REFUSAL_NOT_TRUE}), told


async def test_who_was_refused_without_a_ticket_may_be_in_the_line_by_another_call_alone(tmp_path: Path) -> None:
    world = soldout_world()
    for calls, caught in ((2, set[Check]()), (1, {Check.REFUSED_BUT_IN_LINE})):
        with HistoryWriter(tmp_path / "h.jsonl", ticking()) as history:
            if calls == 2:
                history.unknown(history.invoke(COUPON, "bob", request_id(2)))
            history.fail(history.invoke(COUPON, "bob", request_id(2)), "SOLD_OUT")
        assert broken(await check(world, tmp_path / "h.jsonl")) == caught


async def test_drain_after_healing_and_standstill_have_limits() -> None:
    """ann's verdict came 7 s after she did; the rest at once."""
    world = soldout_world()
    world.rows = [
        row._replace(
            settled_us=row.accepted_us + (7_000_000 if row.ticket.offset == 1 else 7_000_000 * (row.ticket.offset > 1)),
        )
        for row in world.rows
    ]
    healed_s = START_MS / 1000 + 2
    fine = Limits(healed_at_s=healed_s, drained_within_s=6, standstill_s_max=8)
    report = await audit(world, limits=fine)
    assert report.held, report.findings
    assert report.counts.standstill_s == 7
    assert report.counts.standstill_ticket == "0-1"
    assert report.counts.drained_after_s == pytest.approx(5.002)
    for limits, check_ in (
        (replace(fine, drained_within_s=4), Check.DRAINED_LATE),
        (replace(fine, standstill_s_max=6), Check.STANDSTILL),
    ):
        assert (await audit(world, limits=limits)).checks == {check_}
    later = replace(fine, standstill_s_max=6, standstill_since_s=healed_s + 60)
    assert (await audit(world, limits=later)).held
