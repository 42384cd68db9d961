"""Rounds of single calls, without Kafka and PostgreSQL: who waits for whom, and what becomes of those who leave."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import pytest

from services.domain.model import Coupon, CouponId, RequestId, Switch, UserId
from services.issuer.admission import Admission, Known
from services.issuer.entry import ROUND_MAX, ROUND_MOST_S, Entry, Place
from services.issuer.line import Line
from services.issuer.outcomes import OutcomesTail
from services.issuer.validation import IssueCall
from services.runtime import wire
from services.runtime.coalesce import QueueFull
from services.runtime.kafka import AWAITED, Appended, KafkaAway, Message
from services.runtime.postgres import DatabaseAway
from tests.contract.issuing import eventually

PARTITIONS = 2


class Admitting:
    """Coupon `0` is in partition 0 and so on. `go` lets look-ups through; `fails` is raised by the next."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.fails: Exception | None = None
        self.asked: list[int] = []

    async def look_up(self, keys: Sequence[tuple[CouponId, UserId]]) -> list[Known]:
        self.asked.append(len(keys))
        await self.go.wait()
        failure, self.fails = self.fails, None
        if failure is not None:
            raise failure
        return [Known(None, _coupon(coupon_id), int(coupon_id), False) for coupon_id, _ in keys]


class Appending:
    """A partition's appends end while it is not among `stuck`."""

    topic = "line"

    def __init__(self) -> None:
        self.stuck: set[int] = set()
        self.appended: dict[int, list[bytes]] = defaultdict(list)
        self.asked: dict[int, int] = defaultdict(int)
        self.awaited: list[bool] = []
        self.fails: Exception | None = None

    def end(self, partition: int) -> int:
        return 0

    async def append(self, partition: int, asked: Sequence[wire.Asked | Message]) -> list[Appended]:
        messages = list(wire.line_messages(asked, 0))
        self.asked[partition] += 1
        while partition in self.stuck:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if self.fails is not None:
            raise self.fails
        log = self.appended[partition]
        log += [message.value or b"" for message in messages]
        self.awaited += [(AWAITED, b"") in message.headers for message in messages]
        return [Appended(len(log) - len(messages) + place, 1_000) for place in range(len(messages))]


def _coupon(coupon_id: CouponId) -> Coupon:
    return Coupon(coupon_id, int(coupon_id), "", 9, 9, 0, None, None, Switch.ACTIVE, "0-0", 1, 1)


class World:
    def __init__(self) -> None:
        self.admission, self.line = Admitting(), Appending()
        self.tail = OutcomesTail(cast(Any, None), PARTITIONS, waiters_max=1_000_000)
        self.entry = Entry(cast(Admission, self.admission), cast(Line, self.line), self.tail, unsettled_max=1_000)

    def come(self, partition: int = 0, *, wait: bool = False) -> tuple[Place, asyncio.Task[None]]:
        """A call for one request, as IssuePath makes it."""
        user, mine = UserId(uuid.uuid4().hex), RequestId(str(uuid.uuid4()))
        place = Place(IssueCall(CouponId(str(partition)), user, mine, wait), None)

        async def call() -> None:
            try:
                await self.entry.enter_together(place)
            finally:
                if place.waiter is not None:
                    self.tail.leave(place.wait_key, place.waiter)

        return place, asyncio.create_task(call())


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_crowd_goes_in_few_rounds_and_each_gets_its_own_place(world: World) -> None:
    came = [world.come() for _ in range(ROUND_MAX + 10)]
    await asyncio.gather(*(task for _, task in came))
    assert [place.offset for place, _ in came] == list(range(ROUND_MAX + 10))
    assert world.admission.asked == [ROUND_MAX, 10]
    assert all(place.call.user_id.encode() in world.line.appended[0][place.offset] for place, _ in came)


async def test_only_the_record_of_who_waits_says_so(world: World) -> None:
    came = [world.come(wait=wait) for wait in (False, True, False)]
    await asyncio.gather(*(task for _, task in came))
    assert world.line.awaited == [False, True, False]


async def test_who_is_there_is_who_is_neither_told_nor_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(world.entry._gathering, "came", lambda waiting, there: seen.append((waiting, there)))
    world.admission.go.clear()
    in_a_round = [world.come() for _ in range(3)]
    await eventually(lambda: _is(world.admission.asked == [3]))
    gathered = [world.come() for _ in range(2)]
    await asyncio.sleep(0)
    assert seen == [(1, 1), (2, 2), (3, 3), (1, 4), (2, 5)]
    in_a_round[0][1].cancel()
    world.admission.go.set()
    await asyncio.gather(*(task for _, task in [*in_a_round[1:], *gathered]))
    _, task = world.come()
    await task
    assert seen[-1] == (1, 1)


async def test_how_long_each_look_up_took_is_known_to_what_keeps_rounds_apart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_s: list[float] = []
    monkeypatch.setattr(world.entry._gathering, "took", taken_s.append)
    world.admission.go.clear()
    _, task = world.come()
    await eventually(lambda: _is(world.admission.asked == [1]))
    await asyncio.sleep(0.05)
    world.line.stuck.add(0)  # what it waits for behind the look-up does not count
    world.admission.go.set()
    await eventually(lambda: _is(bool(taken_s)))
    world.line.stuck.clear()
    await task
    assert len(taken_s) == 1
    assert taken_s[0] > 0.04


async def test_who_leaves_is_not_looked_up_nor_sent_and_costs_those_behind_no_round(world: World) -> None:
    world.admission.go.clear()
    looked_up = [world.come(wait=True) for _ in range(10)]
    await eventually(lambda: _is(world.admission.asked == [10]))
    gathered = [world.come(wait=True) for _ in range(3 * ROUND_MAX)]
    await asyncio.sleep(0)
    live = [world.come(), world.come(1)]
    await asyncio.sleep(0)
    for _, task in [*looked_up[1:], *gathered]:
        task.cancel()
    await asyncio.sleep(0)
    world.line.stuck.add(0)
    world.admission.go.set()
    await live[1][1]  # the next round, and another partition
    assert world.admission.asked == [10, 2]
    queued = [world.come(wait=True) for _ in range(10)]
    await eventually(lambda: _is(world.admission.asked == [10, 2, 10]))
    await asyncio.sleep(2 * ROUND_MOST_S)
    for _, task in queued:
        task.cancel()
    world.line.stuck.clear()
    await asyncio.gather(looked_up[0][1], live[0][1])
    assert (looked_up[0][0].offset, live[0][0].offset) == (0, 1)
    last, task = world.come()
    await task
    assert last.offset == 2
    assert world.line.asked == {0: 2, 1: 1}
    assert (world.tail._waiters, world.tail._waiter_count) == ({}, 0)


async def test_a_partition_that_hangs_holds_up_no_other_and_no_round(world: World) -> None:
    world.line.stuck.add(0)
    stuck = [world.come(0) for _ in range(3)]
    for _ in range(3):
        place, task = world.come(1)
        await task
        assert place.offset >= 0
        stuck.append(world.come(0))
    assert not any(task.done() for _, task in stuck)
    world.line.stuck.clear()
    await asyncio.gather(*(task for _, task in stuck))
    assert [place.offset for place, _ in stuck] == list(range(6))


@pytest.mark.parametrize("failure", [DatabaseAway("away"), QueueFull("full")])
async def test_all_of_a_round_hear_that_it_could_not_be_looked_up(world: World, failure: Exception) -> None:
    world.admission.fails = failure
    came = [world.come() for _ in range(3)]
    await asyncio.gather(*(task for _, task in came))
    assert {place.failure for place, _ in came} == {failure}
    place, task = world.come()
    await task
    assert (place.failure, place.offset) == (None, 0)


async def test_an_error_that_nobody_foresaw_reaches_each_caller_and_the_next_round_begins(world: World) -> None:
    world.admission.fails = ZeroDivisionError()
    came = [world.come() for _ in range(3)]
    told = await asyncio.gather(*(task for _, task in came), return_exceptions=True)
    assert {type(one) for one in told} == {ZeroDivisionError}
    world.line.fails = ZeroDivisionError()
    (told_too,) = await asyncio.gather(world.come()[1], return_exceptions=True)
    assert isinstance(told_too, ZeroDivisionError)
    world.line.fails = KafkaAway("away")
    place, task = world.come()
    await task
    assert isinstance(place.failure, KafkaAway)
    world.line.fails = None
    place, task = world.come()
    await task
    assert place.offset == 0


async def test_more_than_the_limit_are_refused_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.issuer.entry.WAITING_MAX", 5)
    world.admission.go.clear()
    first, first_task = world.come(1)
    await eventually(lambda: _is(world.admission.asked == [1]))
    came = [world.come() for _ in range(7)]
    await asyncio.gather(*(task for _, task in came[5:]))
    assert [isinstance(place.failure, QueueFull) for place, _ in came] == [False] * 5 + [True] * 2
    world.admission.go.set()
    await asyncio.gather(first_task, *(task for _, task in came))
    assert [first.offset, *(place.offset for place, _ in came[:5])] == [0, 0, 1, 2, 3, 4]


async def test_more_than_the_limit_do_not_wait_for_a_partition_that_hangs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.issuer.entry.WAITING_MAX", 5)
    world.line.stuck.add(0)
    _, sent = world.come()
    await eventually(lambda: _is(world.line.asked[0] == 1))
    came = [world.come() for _ in range(5)]
    refused = [world.come() for _ in range(2)]
    await asyncio.gather(*(task for _, task in refused))
    late, late_task = world.come()
    await late_task
    assert all(isinstance(place.failure, QueueFull) for place in [*(place for place, _ in refused), late])
    world.line.stuck.clear()
    await asyncio.gather(sent, *(task for _, task in came))
    assert [place.offset for place, _ in came] == [1, 2, 3, 4, 5]


async def _is(held: bool) -> bool:
    return held
