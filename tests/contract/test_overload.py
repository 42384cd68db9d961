"""Many calls at once, and callers who go away: every call gets an answer, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import sys
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
from coupon.v1 import coupon_pb2, coupon_pb2_grpc, issuer_pb2, issuer_pb2_grpc
from grpc_status import rpc_status
from structlog.testing import capture_logs

from services.issuer import __main__ as issuer_main
from services.runtime.config import Access
from services.runtime.grpc_server import GrpcServer
from services.runtime.health import Health
from services.runtime.kafka import Topics
from services.runtime.rpc_errors import Refusal
from stack import Services, Stack, free_port
from tests.contract.issuing import SERVING, System, eventually, failure_of, health_of, new_id

CALLS = 10_000
RSS_BYTES_MAX = 640 * 1024 * 1024
"""grpc alone keeps about 20 KB a waiting call, over 90 MB that an idle issuer has: 350 to 420 MB were measured."""
_LOCAL = [("grpc.use_local_subchannel_pool", 1)]
_OK, _CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED


@dataclass(frozen=True)
class Held:
    server: GrpcServer
    servicer: Holding
    stub: Any
    address: str
    health_address: str


class Holding(issuer_pb2_grpc.IssuerServiceServicer):
    """Answers when it is told to; streams 64 KiB a message for ever."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.streams = 0
        self.refused: list[weakref.ref[Refusal]] = []

    async def IssueCoupon(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self.go.wait()
        return issuer_pb2.Issuance()

    async def GetIssuance(self, request: Any, context: Any) -> Any:  # noqa: N802
        refusal = Refusal("ISSUANCE_NOT_FOUND", "there is none")
        self.refused.append(weakref.ref(refusal))
        raise refusal

    async def WatchIssuance(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.streams += 1
        try:
            while True:
                yield issuer_pb2.Issuance(request_id="x" * 65_536)
        finally:
            self.streams -= 1


@contextlib.asynccontextmanager
async def holding(calls_max: int) -> AsyncIterator[Held]:
    """A bare boundary, what is behind it, and a stub."""
    health, servicer = Health(), Holding()
    address, health_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
    server = GrpcServer(health, concurrent_calls_max=calls_max, access=Access())
    server.add(issuer_pb2_grpc.add_IssuerServiceServicer_to_server, servicer)
    await health.start(health_address)
    await server.start(address, [])
    await health.set("", serving=True)
    try:
        async with grpc.aio.insecure_channel(address, options=_LOCAL) as channel:
            stub: Any = issuer_pb2_grpc.IssuerServiceStub(channel)
            yield Held(server, servicer, stub, address, health_address)
    finally:
        await server.stop(1)
        await health.stop()


def issue(stub: Any, user_id: str, coupon_id: str = "c", timeout_s: float = 60) -> Any:
    request = issuer_pb2.IssueCouponRequest(coupon=f"coupons/{coupon_id}", user_id=user_id, wait=True)
    return stub.IssueCoupon(request, timeout=timeout_s)


async def codes(calls: list[Any]) -> Counter[grpc.StatusCode]:
    return Counter(await asyncio.gather(*(call.code() for call in calls)))


async def test_every_call_above_the_limit_is_told_when_to_come_back() -> None:
    async with holding(50) as held:
        calls = [issue(held.stub, f"user{number}") for number in range(5_000)]
        answered = [asyncio.ensure_future(call.code()) for call in calls]

        async def all_but_those_held() -> bool:
            return len([task for task in answered if task.done()]) >= 4_950

        await eventually(all_but_those_held)
        assert held.server.boundary.calls_in_flight == 50
        assert await health_of(held.health_address) == SERVING
        held.servicer.go.set()
        assert await codes(calls) == {_OK: 50, grpc.StatusCode.RESOURCE_EXHAUSTED: 4_950}
        for call in calls:
            if await call.code() != _OK:
                # grpc's own limits answer without details.
                status = await rpc_status.aio.from_call(call)
                assert status is not None
                failure = failure_of(status)
                assert failure.reason == "OVERLOADED"
                assert "RetryInfo" in failure.details
        assert held.server.boundary.calls_in_flight == 0


async def test_the_limit_is_one_for_all_connections_and_the_port_nobody_elses() -> None:
    async with holding(50) as held, contextlib.AsyncExitStack() as stack:
        stubs: list[Any] = []
        for _ in range(32):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(held.address, options=_LOCAL))
            stubs.append(issuer_pb2_grpc.IssuerServiceStub(channel))
        calls = [issue(stub, f"user{number}") for number in range(2) for stub in stubs]
        answered = [asyncio.ensure_future(call.code()) for call in calls]

        async def all_but_those_held() -> bool:
            return len([task for task in answered if task.done()]) == 14

        await eventually(all_but_those_held)
        other = GrpcServer(Health(), concurrent_calls_max=50, access=Access())
        with pytest.raises(OSError, match="is the port taken"):
            await other.start(held.address, [])
        await other.stop(0)
        held.servicer.go.set()
        assert await codes(calls) == {_OK: 50, grpc.StatusCode.RESOURCE_EXHAUSTED: 14}


async def test_a_refused_call_is_gone_without_the_collector() -> None:
    async with holding(50) as held:

        async def gone() -> bool:
            return not any(refusal() for refusal in held.servicer.refused[1:-1])  # grpc keeps the first and the last

        gc.disable()
        try:
            for _ in range(4):
                call = held.stub.GetIssuance(issuer_pb2.GetIssuanceRequest(), timeout=60)
                assert await call.code() == grpc.StatusCode.NOT_FOUND
            await eventually(gone)
        finally:
            gc.enable()


async def test_a_rush_below_the_limit_is_held_whole_and_half_of_it_may_leave() -> None:
    async with holding(12_000) as held:
        calls = [issue(held.stub, f"user{number}") for number in range(CALLS)]
        await eventually(lambda: _in_flight(held.server, CALLS))
        for call in calls[::2]:
            call.cancel()
        await eventually(lambda: _in_flight(held.server, CALLS // 2))
        assert await health_of(held.health_address) == SERVING
        held.servicer.go.set()
        assert await codes(calls) == {_OK: CALLS // 2, _CANCELLED: CALLS // 2}
        assert held.server.boundary.calls_in_flight == 0


async def _in_flight(server: GrpcServer, calls: int) -> bool:
    return bool(server.boundary.calls_in_flight == calls)


async def test_streams_that_nobody_reads_any_more_end_at_once_and_in_silence() -> None:
    with capture_logs() as logs:
        async with holding(1_000) as held:
            streams = [held.stub.WatchIssuance(issuer_pb2.WatchIssuanceRequest()) for _ in range(100)]
            for stream in streams:
                await stream.read()
            # None is read on, so that each is held in the middle of a write by flow control.
            await asyncio.sleep(0.5)
            assert (held.server.boundary.calls_in_flight, held.servicer.streams) == (100, 100)
            for stream in streams:
                stream.cancel()
            await eventually(lambda: _in_flight(held.server, 0))
            assert held.servicer.streams == 0
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_a_client_that_disappears_takes_its_calls_with_it() -> None:
    async with holding(1_000) as held:
        program = (
            "import sys, grpc\n"
            "channel = grpc.insecure_channel(sys.argv[1])\n"
            "grpc.channel_ready_future(channel).result(10)\n"
            "ask = channel.unary_unary('/coupon.v1.IssuerService/IssueCoupon')\n"
            "watch = channel.unary_stream('/coupon.v1.IssuerService/WatchIssuance')\n"
            "calls = [ask.future(b'') for _ in range(200)], [watch(b'') for _ in range(50)]\n"
            "print('calling', flush=True)\n"
            "sys.stdin.read()\n"
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, held.address, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await eventually(lambda: _in_flight(held.server, 250))
        child.kill()
        await child.wait()
        await eventually(lambda: _in_flight(held.server, 0))
        assert held.servicer.streams == 0


@contextlib.asynccontextmanager
async def boundary_of_issuers() -> AsyncIterator[list[GrpcServer]]:
    """The servers of the issuers that are started meanwhile in this process."""
    made: list[GrpcServer] = []

    class Server(GrpcServer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    with mock.patch.object(issuer_main, "GrpcServer", Server):
        yield made


async def test_waiting_calls_that_leave_leave_no_waiter(fresh: System) -> None:
    coupon_id, count = new_id(), 2_000
    async with boundary_of_issuers() as servers, fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id, count)
        (server,) = servers
        calls = [issue(client.issuer, f"user{number}", coupon_id) for number in range(count)]
        await eventually(lambda: _waiters(client, count))
        for call in calls[::2]:
            call.cancel()
        await eventually(lambda: _waiters(client, count // 2))
        await eventually(lambda: _in_flight(server, count // 2))
        async with fresh.ledger():
            assert await codes(calls) == {_OK: count // 2, _CANCELLED: count // 2}
        assert await _waiters(client, 0)
        assert server.boundary.calls_in_flight == 0
        assert client.tail._waiters == {}


async def _waiters(client: Any, count: int) -> bool:
    return bool(client.tail._waiter_count == count)


async def test_watches_that_are_abandoned_leave_no_waiter(fresh: System) -> None:
    coupon_id = new_id()
    async with boundary_of_issuers() as servers, fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id)
        (server,) = servers
        accepted = await client.issue(coupon_id, "ann")
        asked = issuer_pb2.WatchIssuanceRequest(name=accepted.name, ticket=accepted.ticket)
        streams = [client.issuer.WatchIssuance(asked) for _ in range(300)]
        await asyncio.gather(*(stream.read() for stream in streams))
        assert server.boundary.calls_in_flight == 300
        for stream in streams:
            stream.cancel()
        await eventually(lambda: _in_flight(server, 0))
        assert await _waiters(client, 0)
        assert client.tail._waiters == {}


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4_096


@pytest.mark.timeout(300)
async def test_ten_thousand_waiting_calls_half_of_them_cancelled_again_and_again(
    stack: Stack, database: str, topic_prefix: str, tmp_path: Path
) -> None:
    """In a process of its own, whose memory can be looked at; with a ledger that is away, so that all have to wait."""
    settings = {"FIRSTCOME_DEAD_LETTER_RUN_MAX": "0"}
    services = Services(
        stack.kafka_bootstrap,
        database,
        names=("issuer", "ledger"),
        topic_prefix=topic_prefix,
        env=settings,
        log_dir=tmp_path,
    )
    system = System(stack, database, Topics(topic_prefix))

    async def in_line(count: int) -> bool:
        return sum(await system.ends()) >= count

    await asyncio.to_thread(services.start)
    try:
        issuer, ledger = services.processes["issuer"], services.processes["ledger"]
        health = f"127.0.0.1:{issuer.health_port}"
        async with grpc.aio.insecure_channel(services.issuer_address, options=_LOCAL) as channel:
            stub: Any = issuer_pb2_grpc.IssuerServiceStub(channel)
            coupons: Any = coupon_pb2_grpc.CouponServiceStub(channel)
            coupon = coupon_pb2.Coupon(total_quantity=10 * CALLS)
            await coupons.CreateCoupon(coupon_pb2.CreateCouponRequest(coupon_id="c", coupon=coupon), timeout=20)
            await asyncio.to_thread(ledger.stop)
            peaks = []
            for turn in range(3):
                # The issuer answers by itself after half a minute.
                calls = [issue(stub, f"user{turn}-{number}", timeout_s=120) for number in range(CALLS)]
                answers = [asyncio.ensure_future(call.code()) for call in calls]
                await eventually(functools.partial(in_line, 1 + (turn + 1) * CALLS))
                assert [task.result() for task in answers if task.done()] == []
                peaks.append(rss_bytes(issuer.pid))
                for call in calls[::2]:
                    call.cancel()
                assert await health_of(health) == SERVING
                if turn < 2:
                    for call in calls[1::2]:
                        call.cancel()
                    assert set(await codes(calls)) == {_CANCELLED}
                    assert await health_of(health) == SERVING
            await asyncio.to_thread(ledger.start)
            told = await codes(calls)
            assert told == {_CANCELLED: CALLS // 2, _OK: CALLS // 2}
            issued = await issue(stub, "afterwards")
            assert issued.state == issuer_pb2.Issuance.ISSUED
        print("resident MB at the height of each turn:", [peak // 1_000_000 for peak in peaks])
        assert max(peaks) < RSS_BYTES_MAX
        # Were anything kept of 10,000 calls, it would be seen twice by now.
        assert peaks[-1] < peaks[0] + 100 * 1024 * 1024
    finally:
        await asyncio.to_thread(services.stop)
        await system.close()
