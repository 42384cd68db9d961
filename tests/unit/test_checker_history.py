"""Client histories: written, read, and compared with the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from coupon.v1 import events_pb2

from checker.findings import Check, Report
from checker.history import History, HistoryError, HistoryWriter
from checker.records import Ticket
from tests.unit.checker_world import World, coupon_at, request_id

COUPON = coupon_at(0)


def ticking() -> Callable[[], int]:
    now = iter(range(1_000, 10**9, 1_000_000))
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
        ("bob", 2, None, "REJECTED", "ALREADY_ISSUED", None, Check.TOLD_OTHERWISE),
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
