"""How calls are taken up, by a real server and a client process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from coupon.v1 import issuer_pb2, issuer_pb2_grpc

from services.runtime.accepting import CALLS_A_TURN, POLLER, make_server

CALLS = 3 * CALLS_A_TURN
ISSUE = "/coupon.v1.IssuerService/IssueCoupon"
_ARRIVED_S = 1.0
_CLIENT = """
import asyncio, grpc, sys

async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        await channel.channel_ready()
        issue = channel.unary_unary("/coupon.v1.IssuerService/IssueCoupon")
        print("ready", flush=True)
        sys.stdin.readline()
        calls = [issue(b"", timeout=20) for _ in range(int(sys.argv[2]))]
        print(*[(await call.code()).name for call in calls], flush=True)

asyncio.run(main())
"""
_DYING = """
import asyncio, sys, time, uvloop
from services.runtime.accepting import make_server

async def main():
    server = make_server([], [("grpc.so_reuseport", 0)], concurrent_calls_max=1_000, apart=())
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.readline)
    print("called", flush=True)
    time.sleep(float(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        await asyncio.sleep(0)
    raise RuntimeError("planted")

uvloop.run(main())
"""
_LEAVING = """
import asyncio, gc
from tests.unit.test_accepting import called

async def main():
    async with called() as (_, _, client):
        gc.collect()
        gc.disable()
        codes = await client.codes()
        await asyncio.sleep(0.1)
        print(codes["OK"], gc.collect())

asyncio.run(main())
"""


class Turns(grpc.aio.ServerInterceptor):
    """In which turn of the event loop each call was taken up."""

    def __init__(self) -> None:
        self.turn = 0
        self.taken_up: list[int] = []
        self._counting = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        self.taken_up.append(self.turn)
        return await continuation(details)

    def stop(self) -> None:
        self._counting.cancel()


class Answering(issuer_pb2_grpc.IssuerServiceServicer):
    async def IssueCoupon(self, request: Any, context: Any) -> issuer_pb2.Issuance:  # noqa: N802
        await asyncio.sleep(0.05)
        return issuer_pb2.Issuance()


class Client:
    """Calls from another process, by one connection."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._tell, self._told = process.stdin, process.stdout

    async def connected(self) -> None:
        assert await self._told.readline() == b"ready\n"

    async def call(self) -> None:
        """All at once."""
        self._tell.write(b"\n")
        await self._tell.drain()

    async def codes(self) -> Counter[str]:
        return Counter((await self._told.readline()).decode().split())


@contextlib.asynccontextmanager
async def running(program: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *map(str, arguments), stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def called() -> AsyncIterator[tuple[grpc.aio.Server, Turns, Client]]:
    """A server to which all calls have come, and whose event loop has seen none of them."""
    turns = Turns()
    options = [("grpc.so_reuseport", 0)]
    server = make_server([turns], options, concurrent_calls_max=1_000, apart=frozenset({ISSUE}))
    issuer_pb2_grpc.add_IssuerServiceServicer_to_server(Answering(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with running(_CLIENT, address, CALLS) as process:
        try:
            client = Client(process)
            await client.connected()
            await client.call()
            time.sleep(_ARRIVED_S)  # noqa: ASYNC251
            yield server, turns, client
        finally:
            await server.stop(None)
            turns.stop()


async def test_calls_that_have_come_are_taken_up_in_one_turn() -> None:
    async with called() as (_, turns, client):
        assert await client.codes() == {"OK": CALLS}
        assert max(Counter(turns.taken_up).values()) >= CALLS_A_TURN / 2


async def test_the_thread_that_tells_of_calls_interrupts_nobody_when_it_wakes() -> None:
    async with called() as (_, _, client):
        pollers = [one.native_id for one in threading.enumerate() if one.name.endswith(POLLER) and one.native_id]
        assert [os.sched_getscheduler(poller) for poller in pollers] == [os.SCHED_BATCH]
        assert os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER
        assert await client.codes() == {"OK": CALLS}


async def test_calls_leave_nothing_for_the_collector() -> None:
    # In a process of its own: timers and threads of earlier tests let go of garbage, too (asyncpg's statements, minutes
    # later), and what the collector finds is that of the whole process.
    async with running(_LEAVING) as leaving:
        assert leaving.stdout is not None
        answered, left = map(int, (await leaving.stdout.read()).split())
        assert answered == CALLS
        assert left < CALLS


@pytest.mark.parametrize("turns_before", [0, 3, 20, 60])
async def test_a_stop_meanwhile_ends_soon_and_in_silence(turns_before: int, caplog: pytest.LogCaptureFixture) -> None:
    async with called() as (server, turns, client):
        for _ in range(turns_before):
            await asyncio.sleep(0)
        await asyncio.wait_for(server.stop(20), timeout=10)
        codes = await client.codes()
        assert codes["OK"] == len(turns.taken_up)
        assert codes["OK"] + codes["CANCELLED"] + codes["UNAVAILABLE"] == CALLS
    gc.collect()
    await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("turns_before", [0, 3, 20])
async def test_a_process_that_dies_meanwhile_does_end(turns_before: int) -> None:
    async with running(_DYING, _ARRIVED_S, turns_before) as dying:
        assert dying.stdin is not None
        assert dying.stdout is not None
        address = f"127.0.0.1:{int(await dying.stdout.readline())}"
        async with running(_CLIENT, address, CALLS) as process:
            client = Client(process)
            await client.connected()
            dying.stdin.write(b"\n")
            assert await dying.stdout.readline() == b"called\n"
            await client.call()
            _, said = await asyncio.wait_for(dying.communicate(), timeout=15)
    assert dying.returncode == 1
    assert b"RuntimeError: planted" in said
