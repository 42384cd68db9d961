"""Many callers, one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.runtime.coalesce import Coalescer, QueueFull


class Far:
    """The other side: keeps what it was asked, answers when it is let."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None
        self.at_once = 0
        self.at_once_max = 0

    async def call(self, items: Sequence[int]) -> Sequence[int]:
        self.calls.append(list(items))
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            await self.may_answer.wait()
        finally:
            self.at_once -= 1
        if self.error is not None:
            raise self.error
        return [item * 10 for item in items]


async def soon() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def made(far: Far, *, batch_max: int = 100, waiting_max: int = 1_000) -> Coalescer[int, int]:
    return Coalescer(far.call, batch_max=batch_max, waiting_max=waiting_max, queue="test")


async def test_what_waits_goes_together_in_its_order_and_each_gets_its_own() -> None:
    far = Far()
    coalescer = made(far)
    asked = [asyncio.ensure_future(coalescer.submit(items)) for items in ([1, 2], [3], [], [4, 5, 6])]
    await soon()
    later = asyncio.ensure_future(coalescer.submit([7]))
    await soon()
    far.may_answer.set()
    assert await asyncio.gather(*asked) == [[10, 20], [30], [], [40, 50, 60]]
    assert await later == [70]
    assert [item for call in far.calls for item in call] == [1, 2, 3, 4, 5, 6, 7]
    assert len(far.calls) <= 3


async def test_one_call_at_a_time() -> None:
    far = Far()
    coalescer = made(far, batch_max=2)
    asked = [asyncio.ensure_future(coalescer.submit([n])) for n in range(20)]
    await soon()
    far.may_answer.set()
    assert await asyncio.gather(*asked) == [[n * 10] for n in range(20)]
    assert far.at_once_max == 1
    assert max(map(len, far.calls)) == 2


async def test_how_long_each_call_took_is_known_to_what_keeps_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    far, taken_s = Far(), list[float]()
    coalescer = made(far)
    monkeypatch.setattr(coalescer._gathering, "took", taken_s.append)
    asked = asyncio.ensure_future(coalescer.submit([1]))
    await soon()
    assert far.calls == [[1]]
    await asyncio.sleep(0.05)
    far.may_answer.set()
    await asked
    assert len(taken_s) == 1
    assert taken_s[0] > 0.04


async def test_a_submission_larger_than_a_batch_goes_alone_and_whole() -> None:
    far = Far()
    far.may_answer.set()
    coalescer = made(far, batch_max=3)
    small, large, after = await asyncio.gather(
        coalescer.submit([1]), coalescer.submit(range(2, 10)), coalescer.submit([10])
    )
    assert (small, large, after) == ([10], [n * 10 for n in range(2, 10)], [100])
    assert list(range(2, 10)) in far.calls


async def test_an_error_reaches_everyone_of_its_batch_and_no_one_else() -> None:
    far = Far()
    coalescer = made(far, batch_max=2)
    asked = [asyncio.ensure_future(coalescer.submit([n])) for n in range(4)]
    await soon()
    far.error = OSError("away")
    far.may_answer.set()
    failed = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, OSError) for one in failed)
    far.error = None
    assert await coalescer.submit([9]) == [90]


async def test_more_than_may_wait_is_refused_at_once() -> None:
    far = Far()
    coalescer = made(far, batch_max=1, waiting_max=3)
    first = asyncio.ensure_future(coalescer.submit([0]))
    await soon()  # under way: waits no more
    waiting = [asyncio.ensure_future(coalescer.submit([n])) for n in (1, 2, 3)]
    await soon()
    with pytest.raises(QueueFull):
        await coalescer.submit([4])
    far.may_answer.set()
    assert await asyncio.gather(first, *waiting) == [[0], [10], [20], [30]]
    assert await coalescer.submit([4]) == [40]


async def test_what_a_caller_that_has_gone_wanted_is_not_asked_for() -> None:
    far = Far()
    coalescer = made(far, waiting_max=3)
    first = asyncio.ensure_future(coalescer.submit([0]))
    await soon()
    gone, kept = asyncio.ensure_future(coalescer.submit([1])), asyncio.ensure_future(coalescer.submit([2]))
    await soon()
    gone.cancel()
    await soon()
    far.may_answer.set()
    assert (await first, await kept) == ([0], [20])
    assert far.calls == [[0], [2]]
    # Its place is free again.
    assert await asyncio.gather(*(coalescer.submit([n]) for n in (5, 6, 7))) == [[50], [60], [70]]


async def test_a_caller_that_goes_during_its_call_spoils_it_for_no_one() -> None:
    far = Far()
    coalescer = made(far)
    asked = [asyncio.ensure_future(coalescer.submit([n])) for n in range(3)]
    await soon()
    asked[1].cancel()
    far.may_answer.set()
    assert await asked[0] == [0]
    assert await asked[2] == [20]


async def test_nothing_runs_while_nothing_waits() -> None:
    far = Far()
    coalescer = made(far)
    others = runners()
    asked = asyncio.ensure_future(coalescer.submit([1]))
    await soon()
    assert len(runners() - others) == 1
    far.may_answer.set()
    await asked
    await soon()
    assert runners() <= others


def runners() -> set[asyncio.Task[object]]:
    """Tasks of coalescers: other tests' services may share the event loop."""
    return {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == "Coalescer._run"}
