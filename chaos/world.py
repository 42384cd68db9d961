"""One system in the middle of its rush: its processes, links, engines and tables, for a fault to lay hands on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chaos.clients import Clients
from chaos.fault import Setup
from chaos.plan import PARTITIONS
from checker.topics import extents
from stack import Engine, KafkaCluster, Link, ServiceProcess, Stack, StackError, free_port, migrate
from stack.ports import HOST
from stack.services import BACKGROUND

PATIENCE_S = 60.0
POLL_S = 0.05
SEND_TIMEOUT_S = 20.0
_INSIDE = Path(__file__).with_name("inside")

Header = tuple[str, bytes]


class NotAsExpected(Exception):
    """A fault did not do what it was to do, or the system did not answer it as it must."""


class Engines:
    """What all faults share: the stack, the links to it, and three brokers from when they are first asked for."""

    def __init__(self, stack: Stack, kafka_link: Link, postgres_link: Link) -> None:
        self.stack = stack
        self.kafka_link = kafka_link
        self.postgres_link = postgres_link
        self._cluster: KafkaCluster | None = None

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Engines]:
        """Raises StackError."""
        port = free_port()
        stack = await asyncio.to_thread(Stack.start, kafka_detour_port=port)
        try:
            target = stack.kafka.detour_target_port
            if target is None:
                raise StackError("the broker has no second listener")
            async with Link(target, port) as kafka_link, Link(stack.postgres.port) as postgres_link:
                engines = cls(stack, kafka_link, postgres_link)
                try:
                    yield engines
                finally:
                    engines.drop_cluster()
        finally:
            await asyncio.to_thread(stack.stop)

    async def cluster(self) -> KafkaCluster:
        """Three brokers."""
        if self._cluster is None:
            self._cluster = await asyncio.to_thread(KafkaCluster().__enter__)
        return self._cluster

    def drop_cluster(self) -> None:
        """End the three brokers, if there are any."""
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None

    async def mend(self) -> None:
        """Let everything run and every way be an ordinary one."""
        self.kafka_link.heal()
        self.postgres_link.heal()
        engines: list[Engine] = [self.stack.kafka, self.stack.postgres]
        if self._cluster is not None:
            engines += self._cluster.brokers
        for engine in engines:
            if engine.running:
                engine.kill(signal.SIGCONT)
            else:
                await asyncio.to_thread(engine.start)
        for engine in engines:
            await asyncio.to_thread(engine.wait_ready)


class World:
    """A system of its own, in topics and a database of its own; an async context manager that starts and ends it."""

    def __init__(self, engines: Engines, setup: Setup, folder: Path) -> None:
        self.engines = engines
        self.setup = setup
        self.folder = folder
        self.prefix = f"chaos-{secrets.token_hex(4)}."
        self.stack = engines.stack
        self.kafka_link, self.postgres_link = engines.kafka_link, engines.postgres_link
        self.kafka_bootstrap = self.stack.kafka_bootstrap
        self.dsn = ""
        self.services: dict[str, ServiceProcess] = {}
        self.notes: list[str] = []
        """What the fault saw, for its line of the report."""
        self.findings: list[str] = []
        self.healed_at_s = 0.0
        self.clients: Clients
        """The people of the rush; set before a fault is injected."""
        self._env: dict[str, dict[str, str]] = {}
        self._ports: dict[str, tuple[int, int, int]] = {}
        self._opened_s = 0.0
        self._killed: set[str] = set()

    @property
    def line(self) -> str:
        return f"{self.prefix}coupon.issue-requests.v1"

    @property
    def outcomes(self) -> str:
        return f"{self.prefix}coupon.issue-outcomes.v1"

    @property
    def dlq(self) -> str:
        return f"{self.line}.dlq"

    @property
    def issuer_addresses(self) -> list[str]:
        return self._addresses("issuer")

    @property
    def dlq_addresses(self) -> list[str]:
        return self._addresses("dlq")

    async def __aenter__(self) -> World:
        if self.setup.clustered:
            self.kafka_bootstrap = (await self.engines.cluster()).bootstrap
        database = self.prefix.rstrip(".").replace("-", "_")
        self.dsn = await asyncio.to_thread(self.stack.create_database, database)
        replication = 3 if self.setup.clustered else 1
        await asyncio.to_thread(
            migrate,
            self.kafka_bootstrap,
            self.dsn,
            partitions=PARTITIONS,
            replication=replication,
            topic_prefix=self.prefix,
        )
        try:
            for name in self.setup.names:
                self._ports[name] = free_port(), free_port(), free_port()
                self._env[name] = self.settings(name)
                self.services[name] = self._process(name, {})
            for process in self.services.values():
                await asyncio.to_thread(process.start)
            await self._ready(*self.services)
            await self.until("the ledgers share the partitions", self._are_shared)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    # What a fault waits for

    def open(self) -> None:
        """The rush begins now."""
        self._opened_s = time.monotonic()

    async def at(self, rush_s: float) -> None:
        """Returns so many seconds after the rush began."""
        await asyncio.sleep(max(0.0, self._opened_s + rush_s - time.monotonic()))

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> float:
        """How many seconds it took until that held. Raises NotAsExpected."""
        began_s = time.monotonic()
        while not await holds():
            if time.monotonic() > began_s + patience_s:
                raise NotAsExpected(f"not within {patience_s:g} s: {what}")
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began_s

    async def until_drained(self, patience_s: float = PATIENCE_S) -> float:
        """How many seconds it took until all that is in the line now was settled."""
        ends = await self.ends(self.line)

        async def drained() -> bool:
            rows = await self.fetch("SELECT partition, next_offset FROM ledger_progress WHERE topic = $1", self.line)
            reached = {row["partition"]: row["next_offset"] for row in rows}
            return all(reached.get(partition, 0) >= end for partition, end in ends.items())

        return await self.until("the line is settled", drained, patience_s)

    # Processes

    def kill(self, *names: str, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to services."""
        for name in names:
            self.services[name].kill(signal_number)
            if signal_number == signal.SIGKILL:
                self._killed.add(name)

    async def start_again(self, *names: str, **env: str) -> None:
        """Start services that are down, with other settings, and wait until they are ready. A failpoint is not kept."""
        for name in names:
            await self.launch(name, **env)
        await self._ready(*names)

    async def launch(self, name: str, **env: str) -> None:
        """The same, for one that may die before it is ready."""
        self._killed.discard(name)
        self.services[name] = self._process(name, {"FIRSTCOME_FAILPOINT": "", **env})
        await asyncio.to_thread(self.services[name].start)

    async def until_down(self, name: str) -> float:
        """It has ended, as at a failpoint."""

        async def down() -> bool:
            return not self.services[name].running

        self._killed.add(name)
        return await self.until(f"{name} has ended", down)

    async def until_frozen(self, name: str) -> float:
        """It stands still, as at a failpoint."""

        async def frozen() -> bool:
            return _state(self.services[name].pid) in ("T", "t")

        return await self.until(f"{name} stands still", frozen)

    async def health(self, name: str, part: str) -> str:
        """The status of a part of a service's health, or the error's code."""
        async with grpc.aio.insecure_channel(f"{HOST}:{self._ports[name][1]}") as channel:
            request = health_pb2.HealthCheckRequest(service=part)
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def logged(self, name: str, event: str) -> list[dict[str, Any]]:
        """The lines of that event in a service's log."""
        lines = self.services[name].log_path.read_text(errors="replace").splitlines()
        found = (json.loads(line) for line in lines if f'"{event}"' in line and line.startswith("{"))
        return [line for line in found if line.get("event") == event]

    async def mend(self) -> None:
        """End the fault: engines, links and services work again. What has ended by itself is a finding."""
        await self.engines.mend()
        self.look_for_the_dead()
        for process in self.services.values():
            process.kill(signal.SIGCONT)
        await self.start_again(*(name for name, process in self.services.items() if not process.running))
        self.healed_at_s = time.time()

    def look_for_the_dead(self) -> None:
        """A service that has ended though nobody killed it is a finding."""
        for name, process in self.services.items():
            if not process.running and name not in self._killed:
                self.findings.append(f"{name} ended by itself (status {process.returncode})")

    # Kafka and PostgreSQL, past the services and the links

    async def put(self, partition: int, records: Sequence[tuple[bytes | None, bytes | None, Sequence[Header]]]) -> None:
        """Put records into the line."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka_bootstrap, acks="all", max_request_size=4 << 20, max_batch_size=1 << 18
        )
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await producer.start()
            try:
                sent = [
                    await producer.send(self.line, key=key, value=value, partition=partition, headers=list(headers))
                    for key, value, headers in records
                ]
                await asyncio.gather(*sent)
            finally:
                await producer.stop()

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka_bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def ends(self, topic: str) -> Mapping[int, int]:
        """By partition, the offset behind its last record."""
        found = await extents(self.kafka_bootstrap, [topic])
        return {partition: extent.end for partition, extent in enumerate(found[topic])}

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        """Rows of this system's database."""
        connection = await asyncpg.connect(self.dsn, timeout=10, command_timeout=60)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close(timeout=5)

    def note(self, text: str) -> None:
        """Something seen, for the fault's line."""
        self.notes.append(text)

    def require(self, holds: bool, otherwise: str) -> None:
        """A finding if it does not hold."""
        if not holds:
            self.findings.append(otherwise)

    # Inside

    def _addresses(self, kind: str) -> list[str]:
        return [f"{HOST}:{self._ports[name][0]}" for name in self.setup.names if name.startswith(kind)]

    def settings(self, name: str) -> dict[str, str]:
        """What a service is started with."""
        kind, setup = name.partition("-")[0], self.setup
        kafka, dsn = self.kafka_bootstrap, self.dsn
        if {name, kind} & setup.kafka_by_link:
            kafka = self.kafka_link.address
        if {name, kind} & setup.postgres_by_link:
            dsn = self.postgres_link.dsn(dsn)
        main, health, metrics = self._ports[name]
        env = {
            "FIRSTCOME_KAFKA_BOOTSTRAP": kafka,
            "FIRSTCOME_POSTGRES_DSN": dsn,
            "FIRSTCOME_TOPIC_PREFIX": self.prefix,
            "FIRSTCOME_AUTH": "off",
            "FIRSTCOME_HEALTH_LISTEN": f"{HOST}:{health}",
            "FIRSTCOME_METRICS_LISTEN": f"{HOST}:{metrics}",
            "PYTHONPATH": str(_INSIDE),
        }
        if kind != "ledger":
            env["FIRSTCOME_LISTEN"] = f"{HOST}:{main}"
        return {**env, **setup.env.get(kind, {}), **setup.env.get(name, {})}

    def _process(self, name: str, env: Mapping[str, str]) -> ServiceProcess:
        kind = name.partition("-")[0]
        return ServiceProcess(
            name,
            {**self._env[name], **env},
            log_path=self.folder / f"{name}.log",
            health_port=self._ports[name][1],
            module=f"services.{kind}",
            background=kind in BACKGROUND,
        )

    async def _are_shared(self) -> bool:
        """Whether each ledger has taken the positions of all partitions that it was given last, and none is left."""
        taken: list[int] = []
        for name in self.setup.names:
            if name.startswith("ledger"):
                assigned = self.logged(name, "partitions_assigned")
                if not assigned:
                    return False
                since = assigned[-1]["timestamp"]
                positions = {p["partition"] for p in self.logged(name, "position_taken") if p["timestamp"] >= since}
                if positions != set(assigned[-1]["partitions"]):
                    return False
                taken += positions
        return sorted(taken) == list(range(PARTITIONS))

    async def _ready(self, *names: str) -> None:
        await asyncio.gather(*(asyncio.to_thread(self.services[name].wait_ready) for name in names))

    async def _stop(self) -> None:
        for process in self.services.values():
            if process.running:
                await asyncio.to_thread(process.kill)
        with contextlib.suppress(KafkaError, TimeoutError):
            # A broker that keeps the topics of all faults gets slow.
            async with asyncio.timeout(SEND_TIMEOUT_S), self.admin() as admin:
                await admin.delete_topics([self.line, self.dlq, self.outcomes])
        if self.dsn:
            connection = await asyncpg.connect(self.stack.postgres_dsn, timeout=10, command_timeout=60)
            try:
                await connection.execute(f'DROP DATABASE IF EXISTS "{self.dsn.rpartition("/")[2]}" WITH (FORCE)')
            finally:
                await connection.close(timeout=5)


def _state(pid: int) -> str:
    """The kernel's letter for what the process does; T: it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
