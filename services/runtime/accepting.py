"""A server of grpc.aio that takes up all calls that have come in one turn of the event loop, leaves no garbage, and
whose thread for events does not interrupt the event loop.

grpc's own asks its core for one call, learns of it by way of a thread, and asks for the next some turns later. Under
load that, and not what a call costs, is how fast calls come in, and where the slowest wait (docs/decisions/0018).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self, cast

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

CALLS_A_TURN = 32
"""How many of each queue are asked for. To take them up needs a few milliseconds, and other tasks wait meanwhile."""
_WAIT = "_wait.<locals>._on_completion"
"""What `asyncio.wait` is called back by."""
POLLER = "(_poll_wrapper)"
"""How the name of grpc's thread ends that tells the event loop of events."""


def make_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    options: Sequence[tuple[str, Any]],
    *,
    concurrent_calls_max: int,
    apart: Collection[str],
) -> grpc.aio.Server:
    """As `grpc.aio.server`, for this event loop.

    `concurrent_calls_max`: beyond it grpc answers without details. `apart`: methods whose calls wait apart from all
    others to be taken up, so that a rush of them holds up nothing else.
    """
    server = _Server(interceptors, options, concurrent_calls_max, apart)
    _keep_poller_from_interrupting()
    return cast("grpc.aio.Server", server)


def _keep_poller_from_interrupting() -> None:
    """It wakes for each event, and would take the core from the event loop each time (docs/decisions/0019)."""
    if not hasattr(os, "SCHED_BATCH"):  # Linux alone has it
        return
    for thread in threading.enumerate():
        if thread.name.endswith(POLLER) and thread.native_id is not None:
            with contextlib.suppress(OSError):  # a sandbox may forbid it, and all works without
                os.sched_setscheduler(thread.native_id, os.SCHED_BATCH, os.sched_param(0))


class _Server(_server.Server):
    def __init__(
        self,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        options: Sequence[tuple[str, Any]],
        concurrent_calls_max: int,
        apart: Collection[str],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _Accepting(self._loop, None, (), tuple(interceptors), tuple(options), concurrent_calls_max)
        self._apart = apart

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """By default each method has a queue of its own, and all of them are waited for anew with every call."""
        few = {name: one for name, one in method_handlers.items() if f"/{service_name}/{name}" in self._apart}
        super().add_registered_method_handlers(service_name, few)


class _Accepting(cygrpc.AioServer):  # type: ignore[misc]
    """Has asked for more calls of each queue than grpc's loop waits for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._asked: dict[bytes | None, deque[_Asked]] = defaultdict(deque)

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """What grpc's loop is to wait for next: the call that was asked for first. It may have come already."""
        asked = self._asked[method]
        while len(asked) < CALLS_A_TURN:
            asked.append(_Asked(super()._make_request_call_future(method)))
        return asked.popleft()

    async def _start_shutting_down(self) -> None:
        try:
            await super()._start_shutting_down()
        finally:
            # Calls that have come in the last moment are cut off, like those that the core has not told of.
            self._asked.clear()


class _Asked(asyncio.Future[Any]):
    """A call that was asked for. `asyncio.wait` for one that has come goes on at once, not two turns later."""

    def __init__(self, asking: asyncio.Task[Any]) -> None:
        super().__init__(loop=asking.get_loop())
        asking.add_done_callback(self._take)

    def add_done_callback(self, fn: Callable[[Self], object], *, context: Any = None) -> None:
        # Nobody else: in the end they are gathered, and asyncio.gather would never end if it was called back at once.
        if self.done() and getattr(fn, "__qualname__", "") == _WAIT:
            fn(self)
        else:
            super().add_done_callback(fn, context=context)

    def _take(self, asking: asyncio.Task[Any]) -> None:
        if asking.cancelled():
            self.cancel()
            return
        error = asking.exception()  # asked for also where nobody waits for the call any more
        if self.done():
            return
        if error is None:
            self.set_result(asking.result())
        else:
            self.set_exception(error)
            self.exception()  # at the end nobody asks for it, which is no error


async def _find_method_handler(
    method: str, metadata: Any, resolver: Any, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> Any:
    """As grpc's own, in which an inner function and its closure hold each other: five objects of each call would stay
    in memory until the collector comes by, and it looks at those of all calls under way, too (docs/decisions/0014)."""
    details = cygrpc._HandlerCallDetails(method, metadata)
    return await cygrpc._run_interceptor(iter(interceptors), resolver.resolve_handler, details)


cygrpc._find_method_handler = _find_method_handler
