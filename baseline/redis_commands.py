"""Redis commands of many calls over one connection: what waits while a round trip is under way goes out together.

So do the usual clients of the Redis system. Each command of a call still waits for the answer to the one before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

Command = tuple[str | bytes | int, ...]
_Waiting = tuple[Sequence[Command], asyncio.Future[list[Any]]]

COMMANDS_MAX = 5_000
TIMEOUT_S = 5.0
ROUND_TRIP_TIMEOUT_S = 15.0
"""Of connecting, sending and receiving together: all other calls wait behind."""


class RedisAway(Exception):
    """Redis does not answer; what was sent may have been done or not."""


def connect(address: str) -> Redis:
    """A client that tries nothing twice: popping twice would lose what was popped first."""
    host, _, port = address.rpartition(":")
    return Redis(
        host=host,
        port=int(port),
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


class SharedConnection:
    """Runs the commands of all calls, in the order in which they come."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: deque[_Waiting] = deque()
        self._runner: asyncio.Task[None] | None = None

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Their answers, in order. Raises RedisAway."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((commands, future))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch: list[_Waiting] = []
                count = 0
                while self._waiting and (not batch or count + len(self._waiting[0][0]) <= COMMANDS_MAX):
                    batch.append(self._waiting.popleft())
                    count += len(batch[-1][0])
                await self._run_batch(batch)
        finally:
            self._runner = None

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        try:
            async with asyncio.timeout(ROUND_TRIP_TIMEOUT_S), self._redis.pipeline(transaction=False) as pipeline:
                for commands, _ in batch:
                    for command in commands:
                        pipeline.execute_command(*command)
                answers = await pipeline.execute(raise_on_error=True)
        except BaseException as error:  # whatever it is: no call of the batch may wait for ever
            for _, future in batch:
                if not future.done():
                    future.set_exception(RedisAway(f"{type(error).__name__}: {error}"))
            if not isinstance(error, Exception):
                raise
            return
        start = 0
        for commands, future in batch:
            if not future.done():
                future.set_result(answers[start : start + len(commands)])
            start += len(commands)
