"""The issuer as a server: health, readiness, reflection, drain, and callers that go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from coupon.v1 import issuer_pb2
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.issuer import __main__ as issuer_main
from services.issuer.outcomes import OutcomesTail
from services.runtime.config import issuer_config
from services.runtime.kafka import AWAITED, PartitionReader, Topics
from stack import Stack, free_port
from tests.conftest import TEST_PARTITIONS
from tests.contract.issuing import (
    PATIENCE_S,
    SERVING,
    Client,
    Issuance,
    System,
    eventually,
    health_of,
    home,
    impatient,
    new_id,
)

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("coupon.v1.CouponService", "coupon.v1.IssuerService")


@pytest.fixture
async def fresh(stack: Stack, database: str, topics: Topics) -> AsyncIterator[System]:
    made = System(stack, database, topics)
    yield made
    await made.close()


async def test_health_on_both_ports_for_the_server_and_each_service(fresh: System) -> None:
    async with fresh.issuer() as issuer:
        for address in (issuer.address, issuer.health_address):
            for name in ("", *SERVICES):
                assert await health_of(address, name) == SERVING
            assert await health_of(address, "coupon.v1.Nothing") == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_and_describes(fresh: System) -> None:
    async with fresh.issuer() as issuer:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(issuer.channel)
        request = reflection_pb2.ServerReflectionRequest

        async def ask() -> list[Any]:
            asked = [
                request(list_services=""),
                request(file_containing_symbol="coupon.v1.IssuerService"),
                request(file_containing_symbol="coupon.v1.Coupon"),
                request(file_by_filename="coupon/v1/issuer.proto"),
                request(file_containing_symbol="coupon.v1.IssuerService.IssueCoupon"),  # as ghz asks
                request(file_containing_symbol="coupon.v1.IssuerService.Nothing"),
            ]
            return [answer async for answer in stub.ServerReflectionInfo(iter(asked), timeout=10)]

        listed, *described, unknown = await ask()
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        names = {service.name for service in listed.list_services_response.service}
        assert names >= {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(raw)
            for answer in described
            for raw in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert {"coupon/v1/issuer.proto", "coupon/v1/coupon.proto"} <= {file.name for file in files}
        assert [file.name for file in files].count("coupon/v1/issuer.proto") == 3
        (service, *_) = [s for file in files for s in file.service if s.name == "IssuerService"]
        assert {method.name for method in service.method} >= {"IssueCoupon", "BatchIssueCoupons", "GetIssuance"}


async def test_not_ready_before_the_tail_has_a_position_on_every_partition(
    fresh: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = asyncio.Event()

    class Slow(PartitionReader):
        async def bounds(self) -> tuple[int, int]:
            await let_go.wait()
            return await super().bounds()

    class Tail(OutcomesTail):
        def __init__(self, make_reader: Any, partition_count: int, **limits: Any) -> None:
            def make(partition: int) -> PartitionReader:
                kind = Slow if partition == TEST_PARTITIONS - 1 else PartitionReader
                return kind(fresh.stack.kafka_bootstrap, "test", fresh.topics.outcomes, partition)

            super().__init__(make, partition_count, **limits)
            tails.append(self)

    tails: list[Any] = []
    monkeypatch.setattr(issuer_main, "OutcomesTail", Tail)
    address, health = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    config = issuer_config(fresh.environ(FIRSTCOME_LISTEN=address, FIRSTCOME_HEALTH_LISTEN=health))
    stopping = asyncio.Event()
    with impatient():
        task = asyncio.ensure_future(issuer_main.serve(config, stopping))
        try:

            async def all_but_one() -> bool:
                return bool(tails) and len(tails[0]._positioned) == TEST_PARTITIONS - 1

            await eventually(all_but_one)
            assert await health_of(health) == NOT_SERVING
            assert await health_of(address) == grpc.StatusCode.UNAVAILABLE
            let_go.set()

            async def serves() -> bool:
                return bool(await health_of(health) == SERVING)

            await eventually(serves)
            assert await health_of(address) == SERVING
        finally:
            let_go.set()
            stopping.set()
            await asyncio.wait_for(task, PATIENCE_S)


async def test_a_drain_says_not_serving_first_and_answers_the_calls_under_way(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as issuer:
        async with fresh.ledger():
            await issuer.create(coupon_id, 100)
        clients = [Client(issuer.address) for _ in range(10)]  # of each server of the port
        held = [asyncio.ensure_future(c.issue(coupon_id, f"user{n}", wait=True)) for n, c in enumerate(clients)]

        async def entered() -> bool:
            return sum(await fresh.ends()) == 11

        await eventually(entered)
        told: list[int] = []
        watched = asyncio.ensure_future(watch_health(issuer.health_address, told))
        await eventually(lambda: _has(told, SERVING))
        issuer.stopping.set()
        await eventually(lambda: _has(told, NOT_SERVING))
        assert not any(call.done() for call in held)
        async with grpc.aio.insecure_channel(
            issuer.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call: Any = channel.unary_unary("/coupon.v1.IssuerService/GetIssuance")
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await call(issuer_pb2.GetIssuanceRequest().SerializeToString(), timeout=5)
            assert late.value.code() == grpc.StatusCode.UNAVAILABLE
        async with fresh.ledger():
            assert {(await call).state for call in held} == {Issuance.ISSUED}
        for client in clients:
            await client.channel.close()
        await asyncio.wait_for(asyncio.shield(issuer.task), PATIENCE_S)
        watched.cancel()


async def test_a_drain_does_not_wait_for_those_who_watch_the_health(fresh: System) -> None:
    """Clients that check health keep a stream open for ever, on the main port too."""
    async with fresh.issuer(FIRSTCOME_DRAIN_TIMEOUT_S="600") as issuer:
        told: list[int] = []
        watched = asyncio.ensure_future(watch_health(issuer.address, told))
        await eventually(lambda: _has(told, SERVING))
        issuer.stopping.set()
        await eventually(lambda: _has(told, NOT_SERVING))
        await asyncio.wait_for(asyncio.shield(issuer.task), PATIENCE_S)
        watched.cancel()


async def watch_health(address: str, told: list[int]) -> None:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                told += [answer.status]


async def _has(told: list[int], status: int) -> bool:
    return status in told


async def test_callers_that_go_away_leave_no_waiter_behind(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as issuer:
        async with fresh.ledger():
            await issuer.create(coupon_id, 10_000)

        async def waiting(count: int) -> bool:
            return bool(issuer.tail._waiter_count == count == sum(map(len, issuer.tail._waiters.values())))

        calls = [issuer.issue(coupon_id, f"user{n}", wait=True) for n in range(500)]
        tasks = [asyncio.ensure_future(_ended(call)) for call in calls]
        await eventually(lambda: waiting(500))
        for call in calls:
            call.cancel()
        await asyncio.gather(*tasks)
        await eventually(lambda: waiting(0))
        # A connection that goes, with calls and a batch on it.
        channel = grpc.aio.insecure_channel(issuer.address, options=[("grpc.use_local_subchannel_pool", 1)])
        issue: Any = channel.unary_unary("/coupon.v1.IssuerService/BatchIssueCoupons")
        batch = issuer_pb2.BatchIssueCouponsRequest(
            requests=[
                issuer_pb2.IssueCouponRequest(coupon=f"coupons/{coupon_id}", user_id=f"gone{n}", wait=True)
                for n in range(300)
            ]
        )
        lost = asyncio.ensure_future(_ended(issue(batch.SerializeToString())))
        await eventually(lambda: waiting(300))
        await channel.close(grace=None)
        await lost
        await eventually(lambda: waiting(0))
        # Whoever is there now is served.
        async with fresh.ledger():
            assert (await issuer.issue(coupon_id, "late", wait=True)).state == Issuance.ISSUED
        assert issuer.tail._waiters == {}


async def _ended(call: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call


async def test_records_say_whether_their_sender_waits_for_the_verdict(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as issuer, fresh.ledger():
        await issuer.create(coupon_id)
        await issuer.issue(coupon_id, "ann", wait=True)
        await issuer.issue(coupon_id, "bob")
        requests = [
            issuer_pb2.IssueCouponRequest(coupon=f"coupons/{coupon_id}", user_id=user, wait=wait)
            for user, wait in (("cem", True), ("dan", False))
        ]
        await issuer.issuer.BatchIssueCoupons(issuer_pb2.BatchIssueCouponsRequest(requests=requests), timeout=20)
    records = await fresh.records(fresh.topics.line, home(coupon_id))
    assert [record.header(AWAITED) for record in records.values()] == [b"", b"", None, b"", None]
