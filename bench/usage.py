"""What processes use: CPU time between two moments, and the most memory that they had."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

import psutil

INTERVAL_S = 0.5
_MB = 1 << 20


def cpu_s(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """CPU seconds so far by name, children (as PostgreSQL's) included."""
    return {name: sum(_cpu_s(pid) for pid in those) for name, those in pids.items()}


def between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds by name."""
    return {name: after[name] - before[name] for name in after}


def _cpu_s(pid: int) -> float:
    process = psutil.Process(pid)
    own = process.cpu_times()
    seconds = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            seconds += times.user + times.system
    return float(seconds)


class Memory:
    """The most resident memory that each service process had, looked at twice a second; an async context manager."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        """`pids` gives the processes that there are now, by name."""
        self._pids = pids
        self._looking: asyncio.Task[None] | None = None
        self.max_mb: dict[str, float] = {}

    async def __aenter__(self) -> Memory:
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def _look(self) -> None:
        while True:
            for name, pid in self._pids().items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    rss_mb = psutil.Process(pid).memory_info().rss / _MB
                    self.max_mb[name] = max(self.max_mb.get(name, 0.0), rss_mb)
            await asyncio.sleep(INTERVAL_S)
