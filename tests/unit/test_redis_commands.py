"""The Redis system's shared connection, over a Redis that fails as told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from baseline import redis_commands
from baseline.redis_commands import RedisAway, SharedConnection


class FailingRedis(Redis):
    """Each round trip raises the next of `failures`, never ends (`...`), or is answered by the commands themselves."""

    def __init__(self, failures: Sequence[BaseException | EllipsisType | None]) -> None:
        super().__init__()
        self._failures = deque(failures)

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        failure = self._failures.popleft()

        class Pipeline:
            def __init__(self) -> None:
                self._commands: list[tuple[Any, ...]] = []

            async def __aenter__(self) -> Pipeline:
                return self

            async def __aexit__(self, *exception: object) -> None:
                pass

            def execute_command(self, *command: Any) -> None:
                self._commands.append(command)

            async def execute(self, *, raise_on_error: bool) -> list[Any]:
                await asyncio.sleep(0)
                if isinstance(failure, EllipsisType):
                    await asyncio.Event().wait()
                elif failure is not None:
                    raise failure
                return self._commands

        return Pipeline()


@pytest.mark.parametrize(
    "failure",
    [
        RedisError("no"),
        ConnectionResetError("gone"),
        TimeoutError("late"),
        RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed"),
        asyncio.CancelledError("of some time limit inside"),
    ],
)
async def test_a_round_trip_that_fails_fails_its_own_calls_and_no_later_ones(failure: BaseException) -> None:
    connection = SharedConnection(FailingRedis([failure, None]))
    with pytest.raises(RedisAway, match=type(failure).__name__):
        await asyncio.wait_for(connection.run([("PING",)]), 5)
    assert await asyncio.wait_for(connection.run([("GET", "a"), ("GET", "b")]), 5) == [("GET", "a"), ("GET", "b")]


async def test_calls_behind_a_failed_round_trip_are_made_by_the_next() -> None:
    connection = SharedConnection(FailingRedis([RuntimeError("closed"), None]))
    first = asyncio.create_task(connection.run([("GET", "a")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(connection.run([("GET", "b")]))
    with pytest.raises(RedisAway):
        await asyncio.wait_for(first, 5)
    assert await asyncio.wait_for(second, 5) == [("GET", "b")]


async def test_a_round_trip_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_commands, "ROUND_TRIP_TIMEOUT_S", 0.05)
    connection = SharedConnection(FailingRedis([..., None]))
    with pytest.raises(RedisAway, match="TimeoutError"):
        await asyncio.wait_for(connection.run([("GET", "a")]), 5)
    assert await asyncio.wait_for(connection.run([("GET", "b")]), 5) == [("GET", "b")]
