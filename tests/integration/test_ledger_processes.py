"""The ledger as a process, and several of them: killed, stopped, sharing the partitions; both engines killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import asyncpg
import grpc
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from grpc_health.v1 import health_pb2, health_pb2_grpc

from migrations.database import upgrade
from migrations.topics import ensure_topics
from services.ledger.__main__ import serve
from services.runtime.config import Common, LedgerConfig
from services.runtime.kafka import Message, Topics
from stack import ServiceProcess, Stack, free_port
from tests.conftest import TEST_PARTITIONS, unique_name
from tests.integration.ledger_world import PATIENCE_S, World, coupon_at, create, eventually, garbage, issue

BACKLOG = 20_000
COUPONS = [coupon_at(partition) for partition in range(TEST_PARTITIONS)]
EVERY = range(TEST_PARTITIONS)


@pytest.fixture
async def world(stack: Stack, database: str, topics: Topics) -> AsyncIterator[World]:
    made = World(stack, database, topics)
    yield made
    await made.close()


@contextlib.contextmanager
def processes(world: World, folder: Path, count: int = 1) -> Iterator[list[ServiceProcess]]:
    made = []
    for number in range(count):
        port = free_port()
        env = {
            "FIRSTCOME_KAFKA_BOOTSTRAP": world.stack.kafka_bootstrap,
            "FIRSTCOME_POSTGRES_DSN": world.dsn,
            "FIRSTCOME_TOPIC_PREFIX": world.topics.prefix,
            "FIRSTCOME_HEALTH_LISTEN": f"127.0.0.1:{port}",
            "FIRSTCOME_METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        }
        made.append(ServiceProcess("ledger", env, log_path=folder / f"ledger-{number}.log", health_port=port))
    try:
        yield made
    finally:
        for process in made:
            if process.running:
                process.kill()


async def start(process: ServiceProcess) -> None:
    process.start()
    await asyncio.to_thread(process.wait_ready)


async def put_backlog(world: World, size: int) -> None:
    """A quarter for each partition: twice as many requests as there are coupons, repeats and garbage among them."""
    each = size // TEST_PARTITIONS
    for partition, coupon_id in enumerate(COUPONS):
        messages: list[Message] = [create(each // 2, coupon_id)]
        for number in range(1, each):
            repeat = number % 10 == 0
            odd = number % 500 == 250
            messages.append(garbage(number) if odd else issue(f"user-{number - repeat}", coupon_id))
        await world.put(*messages, partition=partition)


async def settled_count(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    return int(await connection.fetchval("SELECT coalesce(sum(next_offset), 0)::int FROM ledger_progress"))


async def settled_more_than(world: World, count: int) -> int:
    connection = await asyncpg.connect(world.dsn)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while (settled := await settled_count(connection)) <= count:
            assert time.monotonic() < deadline, "not within the time"
            await asyncio.sleep(0.002)
        return settled
    finally:
        await connection.close()


async def committed_offsets(world: World) -> Mapping[int, int]:
    """What the consumer group has told to tools that show its lag."""
    admin = AIOKafkaAdminClient(bootstrap_servers=world.stack.kafka_bootstrap)
    await admin.start()
    try:
        found = await admin.list_consumer_group_offsets(f"{world.topics.prefix}ledger")
    finally:
        await admin.close()
    return {tp.partition: told.offset for tp, told in found.items()}


async def ended(process: ServiceProcess) -> int | None:
    async def over() -> bool:
        return not process.running

    await eventually(over)
    return process.returncode


async def has_logged(process: ServiceProcess, event: str) -> bool:
    return event in process.log_path.read_text()


async def check_counts(world: World, size: int) -> None:
    """All coupons went out, and every record has one row."""
    rows = await world.fetch("SELECT count(*) AS n FROM user_coupon GROUP BY coupon_id")
    assert [row["n"] for row in rows] == [size // TEST_PARTITIONS // 2] * TEST_PARTITIONS
    await check_rows(world, size)


async def check_rows(world: World, size: int) -> None:
    assert [len(await world.verdicts(partition)) for partition in EVERY] == [size // TEST_PARTITIONS] * TEST_PARTITIONS
    await world.audit()


async def test_a_ledger_killed_in_the_middle_of_a_backlog_settles_all_of_it_once(world: World, tmp_path: Path) -> None:
    await put_backlog(world, BACKLOG)
    with processes(world, tmp_path) as (process,):
        await start(process)
        await settled_more_than(world, 0)
        process.kill()
        await start(process)
        await world.rest(*EVERY)
        process.kill(signal.SIGTERM)
        assert await ended(process) == 0
    await check_counts(world, BACKLOG)


async def test_a_stopped_ledger_finishes_its_batch_and_owes_nothing(world: World, tmp_path: Path) -> None:
    await put_backlog(world, BACKLOG)
    with processes(world, tmp_path) as (process,):
        await start(process)
        await settled_more_than(world, 0)
        process.kill(signal.SIGTERM)
        assert await ended(process) == 0
        for partition in EVERY:
            row = await world.progress(partition)
            assert row["next_offset"] == row["published_offset"] == len(await world.outcomes(partition))
            assert row["next_offset"] == (await committed_offsets(world))[partition]
        await start(process)
        await world.rest(*EVERY)
    # Nothing was published twice: the stopped one had noted all of it.
    assert [len(await world.outcomes(partition)) for partition in EVERY] == [BACKLOG // TEST_PARTITIONS] * 4
    await check_counts(world, BACKLOG)


async def test_a_halted_partition_shows_in_a_health_of_its_own(world: World, tmp_path: Path) -> None:
    await world.put(create(1, COUPONS[0]), partition=0)
    with processes(world, tmp_path) as (process,):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{process.health_port}") as channel:

            async def health(part: str) -> str:
                request = health_pb2.HealthCheckRequest(service=part)
                try:
                    answer = await health_pb2_grpc.HealthStub(channel).Check(request, wait_for_ready=True, timeout=5)
                except grpc.aio.AioRpcError as error:
                    return error.code().name
                return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

            async def line_is(status: str) -> bool:
                return await health("firstcome.ledger.line") == status

            await start(process)
            await world.rest(0)
            await eventually(lambda: line_is("SERVING"))
            await world.execute("UPDATE ledger_progress SET last_checksum = last_checksum + 1 WHERE partition = 0")
            process.kill()
            await start(process)
            await eventually(lambda: line_is("NOT_SERVING"))
            # Liveness looks at this one, and a restart would not help.
            assert await health("") == "SERVING"
            process.kill(signal.SIGTERM)
            assert await ended(process) == 0


async def test_ledgers_share_the_partitions_and_take_over_from_one_that_is_frozen_or_killed(
    world: World, tmp_path: Path
) -> None:
    with processes(world, tmp_path, 2) as (first, second):
        await asyncio.gather(start(first), start(second))

        async def shared() -> bool:
            logs = [process.log_path.read_text() for process in (first, second)]
            return all("position_taken" in log for log in logs)

        await eventually(shared)
        await put_backlog(world, BACKLOG)
        await settled_more_than(world, 0)
        first.kill(signal.SIGSTOP)
        await world.rest(*EVERY)
        # It wakes beside its successor, in whatever it was doing.
        first.kill(signal.SIGCONT)
        await check_counts(world, BACKLOG)
        second.kill()
        for partition, coupon_id in enumerate(COUPONS):
            await world.put(issue("late", coupon_id), partition=partition)
        await world.rest(*EVERY)
        assert first.running
    await check_rows(world, BACKLOG + TEST_PARTITIONS)


async def test_a_killed_ledger_is_dismissed_by_who_starts_in_its_place_and_nobody_else(
    world: World, tmp_path: Path
) -> None:
    with processes(world, tmp_path, 2) as (first, second):
        for process in (first, second):
            await start(process)
        await eventually(lambda: has_logged(first, "partitions_assigned"))
        first.kill()
        await start(first)
        await eventually(lambda: has_logged(first, "predecessor_dismissed"))
        for partition, coupon_id in enumerate(COUPONS):
            await world.put(create(1, coupon_id), partition=partition)
        await world.rest(*EVERY)
        assert [process.log_path.read_text().count("predecessor_dismissed") for process in (first, second)] == [1, 0]


async def test_killed_engines_that_come_back_are_gone_on_with(tmp_path: Path) -> None:
    """Kafka and PostgreSQL of its own, for no other test would survive that."""
    running = await asyncio.to_thread(Stack.start)
    try:
        topics = Topics(unique_name("t") + ".")
        deadline = time.monotonic() + PATIENCE_S
        await upgrade(running.postgres_dsn, deadline)
        await ensure_topics(
            running.kafka_bootstrap, topics, partitions=TEST_PARTITIONS, replication=1, deadline=deadline
        )
        world, stopping = World(running, running.postgres_dsn, topics), asyncio.Event()
        common = Common(running.kafka_bootstrap, running.postgres_dsn, topics.prefix, "127.0.0.1:0", "INFO", 8, 30, 15)
        serving = asyncio.create_task(serve(LedgerConfig(common, 1_000), stopping))
        try:
            await put_backlog(world, 4_000)
            await settled_more_than(world, 0)
            engines = running.own_engines()
            for engine in engines:
                await asyncio.to_thread(engine.kill)
            for engine in engines:
                await asyncio.to_thread(engine.start)
            for engine in engines:
                await asyncio.to_thread(engine.wait_ready)
            await world.producer.stop()
            for partition, coupon_id in enumerate(COUPONS):
                await world.put(issue("late", coupon_id), partition=partition)
            await world.rest(*EVERY)
        finally:
            stopping.set()
            await asyncio.wait_for(serving, PATIENCE_S)
            await world.close()
        await check_rows(world, 4_000 + TEST_PARTITIONS)
    finally:
        await asyncio.to_thread(running.stop)
