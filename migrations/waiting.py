"""Waiting for the other side to be there, for a bounded time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.domain.retry import Backoff

_T = TypeVar("_T")
_BACKOFF = Backoff(base_s=0.2, cap_s=2.0)


class MigrationError(Exception):
    """The migration was not done; the message says why and what to do."""


class NotYet(Exception):
    """It did not work this time and may the next; the message says why."""


async def until(deadline: float, attempt: Callable[[], Awaitable[_T]]) -> _T:
    """What `attempt` returns, tried again while it raises NotYet, up to `deadline` (of time.monotonic()).

    It is tried once at least. Raises MigrationError with the last NotYet's message.
    """
    number = 0
    while True:
        number += 1
        try:
            return await attempt()
        except NotYet as error:
            wait_s = _BACKOFF.wait_s(number, random.random())
            if time.monotonic() + wait_s >= deadline:
                raise MigrationError(
                    f"{error} Tried {number} times; FIRSTCOME_STARTUP_TIMEOUT_S bounds that."
                ) from error
            await asyncio.sleep(wait_s)
