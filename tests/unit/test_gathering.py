"""How far apart batches begin."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType, SimpleNamespace

import pytest

from services.runtime import gathering as everybodys
from services.runtime.gathering import Gathering

LEAST_S, MOST_S, CROWD = 0.01, 0.04, 20.0
TAKES_S = 0.005
CROWD_PER_S = CROWD / TAKES_S
"""How fast a crowd comes where a batch takes TAKES_S."""


def _copied(module: ModuleType) -> ModuleType:
    """Services of other tests share the event loop: they keep their module, and real time."""
    spec = module.__spec__
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


ours = _copied(everybodys)


class Clock:
    """Time that passes when somebody waits in vain, or when a test says so."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        self.slept_s = 0.0
        patch.setattr(ours, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        patch.setattr(ours, "asyncio", SimpleNamespace(timeout=self._timeout, Event=asyncio.Event))

    @asynccontextmanager
    async def _timeout(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(0):
                yield
        except TimeoutError:
            self.now_s += seconds
            self.slept_s += seconds
            raise


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def made(takes_s: float = TAKES_S) -> Gathering:
    """One that knows for long that a batch takes so many seconds."""
    gathering = fresh()
    for _ in range(60):
        gathering.took(takes_s)
    return gathering


def fresh() -> Gathering:
    """One that knows nothing yet."""
    gathering: Gathering = ours.Gathering(least_s=LEAST_S, most_s=MOST_S, crowd=CROWD)
    return gathering


async def steady_apart_s(clock: Clock, gathering: Gathering, per_s: float, *, patient: bool = False) -> float:
    """How far apart batches begin after many of a steady stream."""
    for _ in range(60):
        clock.now_s += 0.1
        gathering.begin(round(per_s / 10), patient=patient)
    return await waited_s(clock, gathering)


async def waited_s(clock: Clock, gathering: Gathering) -> float:
    before_s = clock.slept_s
    assert await gathering.wait() is (clock.slept_s > before_s)
    return clock.slept_s - before_s


async def test_who_comes_first_or_after_a_while_does_not_wait(clock: Clock) -> None:
    gathering = made()
    assert await waited_s(clock, gathering) == 0
    gathering.begin(1)
    clock.now_s += 2 * LEAST_S
    assert await waited_s(clock, gathering) == 0


@pytest.mark.parametrize("takes_s", [TAKES_S / 4, TAKES_S, 4 * TAKES_S])
async def test_the_more_come_during_one_the_further_apart_within_limits(clock: Clock, takes_s: float) -> None:
    crowd_per_s = CROWD / takes_s

    async def apart_s(per_s: float) -> float:
        return await steady_apart_s(clock, made(takes_s), per_s)

    assert await apart_s(10) == pytest.approx(LEAST_S)
    assert await apart_s(crowd_per_s / 2) == pytest.approx(MOST_S / 2, rel=0.01)
    assert await apart_s(crowd_per_s) == pytest.approx(MOST_S, rel=0.01)
    assert await apart_s(100 * crowd_per_s) == pytest.approx(MOST_S)


async def test_batches_of_a_lasting_crowd_that_nobody_waits_for_are_further_apart(clock: Clock) -> None:
    async def apart_s(crowds: float) -> float:
        return await steady_apart_s(clock, made(), crowds * CROWD_PER_S, patient=True)

    assert await apart_s(0.01) == pytest.approx(LEAST_S)
    assert await apart_s(0.5) == pytest.approx(MOST_S / 2, rel=0.01)
    assert await apart_s(0.75) == pytest.approx(0.75 * MOST_S * 0.75 * ours.PATIENCE, rel=0.02)
    assert await apart_s(100) == pytest.approx(MOST_S * ours.PATIENCE, rel=0.02)


async def test_a_crowd_of_a_moment_makes_no_patience(clock: Clock) -> None:
    gathering = made()
    await steady_apart_s(clock, gathering, CROWD_PER_S / 10, patient=True)
    clock.now_s += 0.1
    gathering.begin(round(3 * CROWD_PER_S / 10), patient=True)
    assert MOST_S * 0.5 < await waited_s(clock, gathering) <= MOST_S


async def test_who_comes_alone_pays_nothing_for_a_batch_that_took_long(clock: Clock) -> None:
    assert await steady_apart_s(clock, made(100 * MOST_S), 10) == pytest.approx(LEAST_S)


async def test_one_slow_batch_is_soon_forgotten(clock: Clock) -> None:
    gathering = made()
    gathering.took(10.0)
    slow_s = await steady_apart_s(clock, gathering, CROWD_PER_S / 2)
    for _ in range(30):
        gathering.took(TAKES_S)
    assert slow_s == pytest.approx(MOST_S, rel=0.01)
    assert await steady_apart_s(clock, gathering, CROWD_PER_S / 2) == pytest.approx(MOST_S / 2, rel=0.01)


async def test_nobody_is_kept_longer_than_needed_before_it_is_known_what_a_batch_takes(clock: Clock) -> None:
    gathering = fresh()
    assert await steady_apart_s(clock, gathering, 100 * CROWD_PER_S) == pytest.approx(LEAST_S)


async def test_a_steady_stream_settles_at_its_distance(clock: Clock) -> None:
    gathering, per_s = made(), CROWD_PER_S / 2
    last_s = clock.now_s
    for _ in range(20):
        await gathering.wait()
        gathering.begin(max(round(per_s * (clock.now_s - last_s)), 1))
        last_s = clock.now_s
        clock.now_s += 0.001  # the first of the next come
    assert await waited_s(clock, gathering) == pytest.approx(MOST_S / 2 - 0.001, rel=0.1)


async def test_an_uneven_stream_is_kept_apart_almost_evenly(clock: Clock) -> None:
    gathering = made()
    for count in (30, 90) * 10:
        gathering.begin(count)
        clock.now_s += 0.03
    apart_s = []
    for count in (30, 90):
        gathering.begin(count)
        apart_s.append(await waited_s(clock, gathering))
        clock.now_s += 0.03 - apart_s[-1]
    assert apart_s == pytest.approx([MOST_S / 2] * 2, rel=0.2)


async def test_a_pause_is_forgotten_within_a_few_batches(clock: Clock) -> None:
    gathering = made()
    gathering.begin(1)
    clock.now_s += 3_600
    for _ in range(15):
        clock.now_s += MOST_S
        gathering.begin(round(CROWD_PER_S * MOST_S))
    assert await waited_s(clock, gathering) == pytest.approx(MOST_S, rel=0.1)


async def test_a_rush_is_forgotten_within_a_few_batches(clock: Clock) -> None:
    gathering = made()
    for _ in range(60):
        clock.now_s += MOST_S
        gathering.begin(round(100 * CROWD_PER_S * MOST_S))
    assert await waited_s(clock, gathering) == pytest.approx(MOST_S)
    for _ in range(4):
        gathering.begin(round(CROWD_PER_S / 10 * MOST_S))
        clock.now_s += MOST_S
    gathering.begin(round(CROWD_PER_S / 10 * MOST_S))
    assert await waited_s(clock, gathering) < 0.8 * MOST_S


async def test_batches_that_take_longer_follow_each_other_at_once(clock: Clock) -> None:
    gathering = made()
    for _ in range(3):
        assert await waited_s(clock, gathering) == 0
        gathering.begin(8_000)
        clock.now_s += MOST_S


async def test_once_all_are_here_who_lately_were_nobody_is_waited_for(clock: Clock) -> None:
    gathering = made()

    async def come(count: int, under_way: int = 0) -> bool:
        """Whether the next batch had to wait for its time."""
        for waiting in range(1, count + 1):
            gathering.came(waiting, waiting + under_way)
        timed = await waited_s(clock, gathering) > 0
        clock.now_s += 0.001
        gathering.begin(count)
        return timed

    assert not await come(50)
    assert await come(49)  # for the one who has not come yet
    assert not await come(50)
    assert not await come(50, under_way=50)
    assert await come(50)  # for those who were under way
    assert not await come(100)


async def test_the_last_who_comes_ends_the_wait() -> None:
    gathering = Gathering(least_s=60.0, most_s=60.0, crowd=CROWD)
    gathering.came(2, 2)
    await gathering.wait()
    gathering.begin(2)
    waiting = asyncio.create_task(gathering.wait())
    for count in (1, 2):
        await asyncio.sleep(0)
        assert not waiting.done()
        gathering.came(count, count)
    async with asyncio.timeout(10.0):
        assert not await waiting
    gathering.begin(2)
    with pytest.raises(TimeoutError):  # the next one waits anew
        async with asyncio.timeout(0.01):
            await gathering.wait()


async def test_those_who_have_left_for_good_are_soon_not_expected_any_more(clock: Clock) -> None:
    gathering = made()
    gathering.came(200, 200)
    await gathering.wait()
    waited = []
    for _ in range(40):
        clock.now_s += 0.001
        gathering.begin(10)
        gathering.came(10, 10)
        waited.append(await waited_s(clock, gathering) > 0)
    assert waited[0]
    assert not any(waited[30:])
