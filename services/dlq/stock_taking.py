"""Counts dead letters and replay jobs by state now and then, and how old the oldest dead letter of each is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from itertools import product

from coupon.v1 import replay_pb2
from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.dead_letter import DeadLetterState
from services.runtime import metrics
from services.runtime.postgres import BooksWrong, DatabaseAway, DatabaseRefused, connection

COUNT_EVERY_S = 5.0
COUNT_SHARE_MAX = 0.02
"""Of the time: with millions of dead letters they are counted less often."""
_KINDS = replay_pb2.ReplayJob.Kind.keys()[1:]  # without UNSPECIFIED
_STATES = replay_pb2.ReplayJob.State.keys()[1:]
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
            jobs = {(row["kind"], row["state"]): row["count"] for row in await db.fetch(_COUNT_JOBS)}
        metrics.REPLAY_JOBS.replace({key: jobs.get(key, 0) for key in product(_KINDS, _STATES)})
        for state in DeadLetterState:
            metrics.DEAD_LETTERS.set(rows[state]["count"] if state in rows else 0, state)
        for state in _OPEN:
            metrics.DEAD_LETTER_AGE.set(float(rows[state]["age_s"]) if state in rows else 0, state)


_COUNT = """
SELECT state, count(*) AS count, greatest(0, extract(epoch FROM now() - min(first_failed_at))) AS age_s
FROM dead_letter GROUP BY state"""
_COUNT_JOBS = "SELECT kind, state, count(*) AS count FROM replay_job GROUP BY kind, state"
