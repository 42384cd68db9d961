"""Waiting between tries, with jitter, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import random

from services.domain.retry import backoff_s

BASE_S = 0.1
CAP_S = 5.0


class Pace:
    """Exponential backoff with full jitter over the failures since the last success."""

    def __init__(self, stopping: asyncio.Event, *, base_s: float = BASE_S, cap_s: float = CAP_S) -> None:
        self._stopping = stopping
        self._base_s = base_s
        self._cap_s = cap_s
        self.failures = 0

    def succeeded(self) -> None:
        self.failures = 0

    async def failed(self) -> None:
        """Wait before the next try; returns at once when stopping."""
        self.failures += 1
        delay_s = backoff_s(self.failures, random.random(), base_s=self._base_s, cap_s=self._cap_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), timeout=delay_s)
