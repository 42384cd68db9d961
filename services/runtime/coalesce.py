"""Many callers, one round trip: what waits while a call is under way goes into the next call together."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from services.runtime import metrics
from services.runtime.gathering import Gathering

T = TypeVar("T")
R = TypeVar("R")


GATHER_MOST_S, CROWD = 0.005, 20.0
"""Calls begin up to so far apart, by how many items come during one."""


class QueueFull(Exception):
    """More is waiting than the limit allows."""


class Coalescer(Generic[T, R]):
    """Runs `call` on all items that wait, at most `batch_max` at once, one call at a time and in their order.

    `call` gives a result for each item, in their order; if it raises, everyone whose items were in it gets the error.
    """

    def __init__(
        self, call: Callable[[Sequence[T]], Awaitable[Sequence[R]]], *, batch_max: int, waiting_max: int, queue: str
    ) -> None:
        """`queue` names it in the metrics."""
        self._call = call
        self._batch_max = batch_max
        self._waiting_max = waiting_max
        self._queue = queue
        self._waiting: deque[tuple[Sequence[T], asyncio.Future[Sequence[R]]]] = deque()
        self._waiting_count = 0
        self._runner: asyncio.Task[None] | None = None
        self._gathering = Gathering(least_s=0.0, most_s=GATHER_MOST_S, crowd=CROWD)

    async def submit(self, items: Sequence[T]) -> Sequence[R]:
        """The results for these items. Raises QueueFull, and what `call` raises."""
        if self._waiting_count + len(items) > self._waiting_max:
            raise QueueFull(f"{self._waiting_count} waiting")
        future: asyncio.Future[Sequence[R]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        self._waiting_count += len(items)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), context=contextvars.Context())  # of no caller
        return await future

    async def _run(self) -> None:
        while self._waiting:
            await self._gathering.wait()
            batch: list[tuple[Sequence[T], asyncio.Future[Sequence[R]]]] = []
            items: list[T] = []
            while self._waiting and (not batch or len(items) + len(self._waiting[0][0]) <= self._batch_max):
                waiter = self._waiting.popleft()
                self._waiting_count -= len(waiter[0])
                if not waiter[1].done():  # its caller has gone
                    batch.append(waiter)
                    items.extend(waiter[0])
            if batch:
                self._gathering.begin(len(items))
                await self._run_batch(batch, items)
        self._runner = None

    async def _run_batch(
        self, batch: Sequence[tuple[Sequence[T], asyncio.Future[Sequence[R]]]], items: Sequence[T]
    ) -> None:
        metrics.GATHERED.record(len(items), self._queue)
        began_s = time.monotonic()
        try:
            results = await self._call(items)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self._gathering.took(time.monotonic() - began_s)
        start = 0
        for own, future in batch:
            if not future.done():
                future.set_result(results[start : start + len(own)])
            start += len(own)
