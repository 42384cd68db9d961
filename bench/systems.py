"""The two systems under test, each in a database of its own: how to start them, fill them, and see how far they are."""

from __future__ import annotations

import asyncio
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from aiokafka import AIOKafkaConsumer, TopicPartition
from coupon.v1 import coupon_pb2, coupon_pb2_grpc
from redis.asyncio import Redis

from stack import ServiceProcess, Services, Stack, free_port
from stack.ports import HOST

PARTITIONS = 4
POLL_S = 0.03
SETTLE_TIMEOUT_S = 300.0
CALL_TIMEOUT_S = 60.0
CREATED_AT_ONCE = 50
CONNECTIONS = 3
AWAY_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 400
_POSITION = "SELECT sum(next_offset)::bigint, sum(published_offset)::bigint FROM ledger_progress WHERE topic = $1"
_STORED = "SELECT coalesce(max(id), 0)::bigint FROM baseline.issued_coupon"


class Unsettled(Exception):
    """A system did not settle in time what it had accepted."""


class System(ABC):
    """A running system."""

    name: str
    address: str

    def __init__(self, stack: Stack, dsn: str) -> None:
        self.stack = stack
        self.dsn = dsn
        self.processes: dict[str, ServiceProcess] = {}
        self.database: Any = None

    @abstractmethod
    async def settled(self) -> int:
        """How many requests have been settled since the beginning, as the database says."""

    @abstractmethod
    async def accepted(self) -> int:
        """How many there are to be settled, the settled ones included."""

    @abstractmethod
    def engines(self) -> dict[str, int]:
        """The pids of the servers that it stands on."""

    def pids(self) -> dict[str, list[int]]:
        """Everything that works for it, by what it is; two ledgers count as one name."""
        found: dict[str, list[int]] = {}
        for name, process in self.processes.items():
            if process.running:
                found.setdefault(name.rstrip("0123456789"), []).append(process.pid)
        return {**found, **{name: [pid] for name, pid in self.engines().items()}}

    async def until_settled(self, count: int | None = None) -> float:
        """When `count` requests (all that are accepted) were settled, in seconds since the epoch. Raises Unsettled."""
        wanted = await self.accepted() if count is None else count
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        while (found := await self.settled()) < wanted:
            if time.monotonic() > deadline_s:
                raise Unsettled(f"{self.name} has settled {found} of {wanted} within {SETTLE_TIMEOUT_S:g} s")
            await asyncio.sleep(POLL_S)
        return time.time()

    async def create(self, coupon_ids: Sequence[str], stock: int) -> None:
        """Coupons of that stock. Raises grpc.aio.AioRpcError."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: Any = coupon_pb2_grpc.CouponServiceStub(channel)
            for start in range(0, len(coupon_ids), CREATED_AT_ONCE):
                requests = [
                    coupon_pb2.CreateCouponRequest(
                        coupon_id=coupon_id, coupon=coupon_pb2.Coupon(display_name="bench", total_quantity=stock)
                    )
                    for coupon_id in coupon_ids[start : start + CREATED_AT_ONCE]
                ]
                await asyncio.gather(*(stub.CreateCoupon(one, timeout=CALL_TIMEOUT_S) for one in requests))

    async def query(self, statement: str, *arguments: object) -> list[Any]:
        """Rows; asked again while the database is away, for it may have been killed."""
        deadline_s = time.monotonic() + AWAY_TIMEOUT_S
        while True:
            try:
                return list(await self.database.fetch(statement, *arguments))
            except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.CannotConnectNowError):
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(POLL_S)


class Firstcome(System):
    """Issuer, ledger and dlq on Kafka and PostgreSQL."""

    name = "firstcome"

    def __init__(self, stack: Stack, dsn: str, topic_prefix: str, sets: Sequence[Services]) -> None:
        super().__init__(stack, dsn)
        self.topic_prefix = topic_prefix
        self.line = f"{topic_prefix}coupon.issue-requests.v1"
        self.addresses = [services.issuer_address for services in sets if "issuer" in services.processes]
        self.address = self.addresses[0] if self.addresses else ""
        for number, services in enumerate(sets):
            for name, process in services.processes.items():
                self.processes[f"{name}{number or ''}"] = process
        self._consumer = AIOKafkaConsumer(bootstrap_servers=stack.kafka_bootstrap)

    def engines(self) -> dict[str, int]:
        return {"kafka": self.stack.kafka.pid, "postgres": self.stack.postgres.pid}

    async def settled(self) -> int:
        """With all outcomes acknowledged by the broker."""
        ((settled, published),) = await self.query(_POSITION, self.line)
        return min(settled or 0, published or 0)

    async def accepted(self) -> int:
        partitions = [TopicPartition(self.line, number) for number in range(PARTITIONS)]
        return sum((await self._consumer.end_offsets(partitions)).values())

    async def check(self, *, histories: Sequence[Path] = ()) -> tuple[bool, str]:
        """Whether the checker finds that every promise held, and its last line."""
        command = [sys.executable, "-m", "checker", "--kafka", self.stack.kafka_bootstrap, "--postgres", self.dsn]
        command += ["--topic-prefix", self.topic_prefix, "--drain-timeout", "60"]
        for history in histories:
            command += ["--history", str(history)]
        child = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            said, told = await asyncio.wait_for(child.communicate(), CHECK_TIMEOUT_S)
        finally:
            if child.returncode is None:
                child.kill()
        text = said.decode().strip() or told.decode().strip()
        held = child.returncode == 0
        return held, text.splitlines()[-1] if held and text else text

    async def open(self) -> None:
        self.database = await asyncpg.create_pool(
            self.dsn, min_size=0, max_size=CONNECTIONS, command_timeout=SETTLE_TIMEOUT_S
        )
        await self._consumer.start()

    async def close(self) -> None:
        await self._consumer.stop()
        self.database.terminate()


class RedisSystem(System):
    """API and scheduler on Redis and PostgreSQL."""

    name = "redis"

    def __init__(self, stack: Stack, dsn: str, listen: str) -> None:
        super().__init__(stack, dsn)
        self.address = listen
        self.redis = Redis(host=HOST, port=stack.redis.port)

    def engines(self) -> dict[str, int]:
        return {"redis": self.stack.redis.pid, "postgres": self.stack.postgres.pid}

    async def settled(self) -> int:
        ((stored,),) = await self.query(_STORED)
        return int(stored)

    async def accepted(self) -> int:
        """What is stored and what waits in the queue; a batch that the scheduler has in its hands is in neither."""
        return await self.settled() + int(await self.redis.llen("coupon-issue-queue"))

    async def open(self) -> None:
        self.database = await asyncpg.create_pool(
            self.dsn, min_size=0, max_size=CONNECTIONS, command_timeout=SETTLE_TIMEOUT_S
        )

    async def close(self) -> None:
        await self.redis.aclose()
        self.database.terminate()


@asynccontextmanager
async def firstcome(
    stack: Stack,
    name: str,
    logs: Path,
    *,
    telemetry: str | None,
    copies: int = 1,
    names: Sequence[str] = ("issuer", "ledger", "dlq"),
) -> AsyncIterator[Firstcome]:
    """Our system in database `name`; `copies` of issuer and ledger. `telemetry`: where 1 % of the traces go."""
    dsn = await asyncio.to_thread(stack.create_database, name)
    prefix = f"{name}."
    env: Mapping[str, str] = tracing(telemetry)
    sets = [
        Services(
            stack.kafka_bootstrap,
            dsn,
            names=names if number == 0 else ("issuer", "ledger"),
            topic_prefix=prefix,
            env=env,
            log_dir=logs / name / str(number),
            partitions=PARTITIONS,
        )
        for number in range(copies)
    ]
    try:
        for services in sets:
            await asyncio.to_thread(services.start)
        system = Firstcome(stack, dsn, prefix, sets)
        await system.open()
        try:
            yield system
        finally:
            await system.close()
    finally:
        for services in sets:
            await asyncio.to_thread(services.stop)


@asynccontextmanager
async def redis_system(stack: Stack, name: str, logs: Path, *, batch: int) -> AsyncIterator[RedisSystem]:
    """The Redis system in database `name`, on an emptied Redis; its scheduler stores `batch` at once."""
    dsn = await asyncio.to_thread(stack.create_database, name)
    api_port, scheduler_port = free_port(), free_port()
    env = {
        "BASELINE_REDIS": stack.redis.address,
        "BASELINE_POSTGRES_DSN": dsn,
        "BASELINE_LISTEN": f"{HOST}:{api_port}",
        "BASELINE_HEALTH_LISTEN": f"{HOST}:{scheduler_port}",
        "BASELINE_BATCH": str(batch),
    }
    system = RedisSystem(stack, dsn, f"{HOST}:{api_port}")
    for part, port in (("api", api_port), ("scheduler", scheduler_port)):
        log_path = logs / name / f"{part}.log"
        system.processes[part] = ServiceProcess(
            part,
            env,
            log_path=log_path,
            health_port=port,
            module=f"baseline.{part}",
            background=part == "scheduler",
        )
    try:
        await system.redis.flushall()
        for process in system.processes.values():
            process.start()
        for process in system.processes.values():
            await asyncio.to_thread(process.wait_ready)
        await system.open()
        try:
            yield system
        finally:
            await system.close()
    finally:
        for process in system.processes.values():
            await asyncio.to_thread(process.stop)


def tracing(endpoint: str | None) -> dict[str, str]:
    """A service's settings: 1 % of the traces to `endpoint`, or none."""
    if endpoint is None:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{endpoint}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.01",
    }
