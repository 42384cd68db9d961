"""How long to gather what comes before it is worked on together."""

from __future__ import annotations

import asyncio
import contextlib
import time

BEFORE = 0.75
"""How much a batch counts beside the one after it: what comes in rounds itself comes unevenly, and so does what a batch
takes."""
CROWDS = 2.0
"""More than so many crowds during one batch are no more of a crowd, and would be remembered for longer."""
PATIENCE = 2.0
"""So many times as far apart are batches of a crowd that nobody waits for."""
LONG_BEFORE = 0.9
"""As BEFORE, of how much of a crowd there is: patience is for what lasts."""
PAUSE_BATCHES = 5
"""A pause counts as so many batches' time at most: behind it the rate is known again within a few."""
REMEMBERED = 0.9
"""How much of the most that were there at once is still expected one batch later, where fewer are."""


class Gathering:
    """Keeps batches apart, the further the more items come while one is worked on: because they come fast, or because
    the machine is slow or busy. So a crowd shares fewer, larger batches, and what each of them costs beside its items.

    Who comes after a pause does not wait. Where whoever gathers says who `came`, none waits for its time once nobody
    seems to be left to come.
    """

    def __init__(self, *, least_s: float, most_s: float, crowd: float) -> None:
        """From `crowd` items on that come during one batch, batches begin `most_s` apart; in proportion below, to
        `least_s`. No batch counts as one that takes longer than `most_s`."""
        self._least_s = least_s
        self._most_s = most_s
        self._crowd = crowd
        self._takes_s = 0.0
        self._apart_s = 0.0
        self._crowded = 0.0
        self._items = self._items_s = 0.0
        self._began_s = 0.0
        self._most, self._expected = 0, 0.0
        self._all_here = asyncio.Event()

    async def wait(self) -> bool:
        """Until the next batch may begin; whether its time had to be waited for."""
        early_s = self._began_s + self._apart_s - time.monotonic()
        if early_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(early_s):
                    await self._all_here.wait()
        timed = early_s > 0 and not self._all_here.is_set()
        self._all_here.clear()
        return timed

    def came(self, waiting: int, there: int) -> None:
        """So many wait for the next batch now (some may have left again), of so many there are with batches under way.

        Callers call again when they are answered: once as many wait as there lately were at once, none is left to come.
        """
        self._most = max(self._most, there)
        if waiting >= self._expected:
            self._all_here.set()

    def begin(self, count: int, *, patient: bool = False) -> None:
        """A batch of so many items begins now.

        `patient`: nobody has lately waited for what comes of one. The next is up to PATIENCE times as far away then, by
        how much of a crowd has lasted.
        """
        now_s = time.monotonic()
        since_s = min(max(now_s - self._began_s, 1e-3), PAUSE_BATCHES * self._most_s)
        self._items = BEFORE * self._items + count
        self._items_s = BEFORE * self._items_s + since_s
        meanwhile = self._items / self._items_s * self._takes_s
        if meanwhile > CROWDS * self._crowd:
            self._items *= CROWDS * self._crowd / meanwhile
        crowded = min(meanwhile / self._crowd, 1.0)
        self._crowded = LONG_BEFORE * self._crowded + (1 - LONG_BEFORE) * crowded
        self._apart_s = max(self._most_s * crowded, self._least_s)
        if patient:
            self._apart_s *= max(PATIENCE * self._crowded, 1.0)
        self._began_s = now_s
        self._most, self._expected = count, max(self._most, REMEMBERED * self._expected)

    def took(self, seconds: float) -> None:
        """What a batch has taken."""
        self._takes_s = BEFORE * self._takes_s + (1 - BEFORE) * min(seconds, self._most_s)
