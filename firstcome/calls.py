"""Every call goes through here: with a deadline and the token, its error decoded."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from firstcome.channel import Connection
from firstcome.errors import DeadlineExceeded, FirstcomeError, Unavailable, error_of_call

PAGE_SIZE_DEFAULT = 500
WATCH_CALL_S_MAX = 240.0
"""A watch that lasts longer is opened anew: servers end connections of 5 minutes, so that newer servers are found."""
WATCH_FAILURES_MAX = 10
"""So many failures in a row, with no message between, end a watch."""
_BACKOFF_BASE_S = 0.2
_BACKOFF_CAP_S = 3.0
T = TypeVar("T")


class Calls:
    """Makes calls on one channel. The generated stubs are not typed, hence Any."""

    def __init__(self, connection: Connection) -> None:
        self._token = connection.token
        self.timeout_s = connection.timeout_s

    async def unary(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        """The answer. Raises FirstcomeError, which knows the request_id that was sent."""
        try:
            return await method(request, timeout=self._deadline_s(timeout_s), metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, getattr(request, "request_id", "")) from error

    async def stream(self, method: Any, request: Any, timeout_s: float) -> AsyncGenerator[Any, None]:
        """The answers, as they come. Raises FirstcomeError."""
        call = method(request, timeout=timeout_s, metadata=self._metadata())
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error) from error
        finally:
            call.cancel()

    async def watch(
        self, method: Any, request: Any, convert: Callable[[Any], T], timeout_s: float | None
    ) -> AsyncGenerator[T, None]:
        """What a watch tells, each once, until the server ends it; a broken connection is replaced on the way.

        `timeout_s` of None: as long as it takes. Raises DeadlineExceeded when it is over, Unavailable when the service
        stays away.
        """
        deadline_s = time.monotonic() + timeout_s if timeout_s is not None else None
        last: T | None = None
        failures = 0
        while True:
            call_s = WATCH_CALL_S_MAX
            if deadline_s is not None:
                call_s = min(call_s, max(deadline_s - time.monotonic(), 0.001))
            try:
                # Closed with this generator, so that a watch that is left early ends on the server, too.
                async with aclosing(self.stream(method, request, call_s)) as messages:
                    async for message in messages:
                        failures = 0
                        seen = convert(message)
                        if seen != last:
                            last = seen
                            yield seen
                return
            except Unavailable as error:
                if isinstance(error, DeadlineExceeded):
                    if deadline_s is not None and time.monotonic() >= deadline_s:
                        raise
                    continue
                failures += 1
                delay_s = pause_s(failures, error)
                late = deadline_s is not None and time.monotonic() + delay_s >= deadline_s
                if failures >= WATCH_FAILURES_MAX or late:
                    raise
            await asyncio.sleep(delay_s)

    def _deadline_s(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else timeout_s

    def _metadata(self) -> Sequence[tuple[str, str]]:
        return [("authorization", f"Bearer {self._token()}")] if self._token is not None else []


async def pages(fetch: Callable[[str], Awaitable[tuple[Sequence[T], str]]]) -> AsyncGenerator[T, None]:
    """The items of all pages; `fetch` gives a page and the token of the next, "" behind the last."""
    token = ""
    while True:
        items, token = await fetch(token)
        for item in items:
            yield item
        if not token:
            return


def pause_s(failures: int, error: FirstcomeError) -> float:
    """How long to wait after so many failures in a row: what the server asks for, and a growing, random part."""
    backoff_s: float = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0 ** min(failures - 1, 10))
    return (error.retry_after_s or 0.0) + backoff_s * random.uniform(0.5, 1.0)
