"""Counts the dead letters by state now and then, and how old the oldest of each is."""

from __future__ import annotations

import asyncio
import contextlib
import time

from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.dead_letter import DeadLetterState
from services.runtime import metrics
from services.runtime.postgres import BooksWrong, DatabaseAway, DatabaseRefused, connection

COUNT_EVERY_S = 5.0
COUNT_SHARE_MAX = 0.02
"""Of the time: with millions of dead letters they are counted less often."""
_OPEN = (DeadLetterState.RETRYING, DeadLetterState.PARKED, DeadLetterState.REDRIVEN)


class StockTaking:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def run(self) -> None:
        """Count until cancelled."""
        while True:
            began_s = time.monotonic()
            with contextlib.suppress(DatabaseAway, DatabaseRefused, BooksWrong):
                await self.count()
            await asyncio.sleep(max(COUNT_EVERY_S, (time.monotonic() - began_s) / COUNT_SHARE_MAX))

    async def count(self) -> None:
        """Raises DatabaseAway."""
        async with connection(self._engine) as db:
            rows = {row["state"]: row for row in await db.fetch(_COUNT)}
        for state in DeadLetterState:
            metrics.DEAD_LETTERS.set(rows[state]["count"] if state in rows else 0, state)
        for state in _OPEN:
            metrics.DEAD_LETTER_AGE.set(float(rows[state]["age_s"]) if state in rows else 0, state)


_COUNT = """
SELECT state, count(*) AS count, greatest(0, extract(epoch FROM now() - min(first_failed_at))) AS age_s
FROM dead_letter GROUP BY state"""
