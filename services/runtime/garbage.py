"""Garbage of calls, collected in small portions.

grpc leaves a few objects of each call in reference cycles. By the threshold that suits batches, of lifecycle, a hundred
thousand of them would be collected at once, and all calls would wait 40 ms for it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools

INTERVAL_S = 0.25
PORTION_OBJECTS = 20_000
"""About 5 ms of looking at them. More are in memory while batches are, and it would be for nothing."""
OLDER_TURNS, ALL_TURNS = 8, 400
"""Of so many turns one looks at what outlived an earlier one, too, or at all that was made since the start: each such
object takes 0.4 µs."""


async def collect_in_portions() -> None:
    """Until cancelled."""
    for turn in itertools.count(1):
        await asyncio.sleep(INTERVAL_S)
        if gc.get_count()[0] < PORTION_OBJECTS:
            gc.collect((turn % OLDER_TURNS == 0) + (turn % ALL_TURNS == 0))
