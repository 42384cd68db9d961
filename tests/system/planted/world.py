"""A system of its own for each planted bug: a database, topics of one partition, and the services as processes."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType

import asyncpg
import grpc
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from coupon.v1 import issuer_pb2

from checker import HistoryWriter, Limits, Report, verify
from demo.answers import Answer, Failure, answer_of, answer_of_error
from migrations.topics import ensure_topics, settings
from services.dlq.__main__ import serve as serve_dlq
from services.runtime.config import dlq_config
from services.runtime.kafka import Appended, Message, Topics
from stack import ServiceProcess, Stack, free_port
from tests.contract.issuing import Client
from tests.integration.ledger_world import World as Line
from tests.integration.ledger_world import issue, request_id
from tests.integration.test_migrations import topic_settings
from tests.system.planted.launch import GROUP_VARIABLE

PATIENCE_S = 60.0
POLL_S = 0.03
HOME = 0
"""The one partition."""
FROM_TEMPLATE = 'CREATE DATABASE "{}" TEMPLATE "{}"'


class PlantedWorld:
    """Services of which some have a bug (by name: the module that runs instead), and what a scenario does to them."""

    def __init__(self, stack: Stack, dsn: str, topics: Topics, folder: Path, modules: Mapping[str, str]) -> None:
        self.stack, self.dsn, self.topics, self.folder = stack, dsn, topics, folder
        self._modules = {name: f"tests.system.planted.{modules.get(name, f'healthy_{name}')}" for name in SERVICES}
        self.line = Line(stack, dsn, topics)
        folder.mkdir()
        self.history = HistoryWriter(folder / "history.jsonl")
        self.processes: dict[str, ServiceProcess] = {}
        self._client: Client | None = None
        self._ending = AsyncExitStack()
        self._dlq_stopping = asyncio.Event()
        self._dlq: asyncio.Task[None] | None = None

    async def __aenter__(self) -> PlantedWorld:
        self._ending.push_async_callback(self.line.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            if process.running:
                process.kill()
        self._dlq_stopping.set()
        if self._dlq is not None:
            await asyncio.wait_for(self._dlq, PATIENCE_S)
        await self._ending.aclose()
        self.history.close()

    # Services

    async def start(self, name: str, *, group: str | None = None) -> ServiceProcess:
        """The service, planted or not; with a group of its own, another ledger beside the first."""
        port = free_port()
        env = self._environ(port) if name != "issuer" else {**self._environ(port), "FIRSTCOME_LISTEN": _address()}
        if group is not None:
            env[GROUP_VARIABLE] = group
        known_as = group or name
        process = ServiceProcess(
            known_as, env, log_path=self.folder / f"{known_as}.log", health_port=port, module=self._modules[name]
        )
        self.processes[known_as] = process
        process.start()
        await asyncio.to_thread(process.wait_ready, PATIENCE_S)
        if name == "issuer":
            self._client = Client(env["FIRSTCOME_LISTEN"])
            self._ending.push_async_callback(self._client.channel.close)
        return process

    async def start_dlq(self) -> None:
        """In this process: no bug is planted into it."""
        if self._dlq is None:
            env = {**self._environ(free_port()), "FIRSTCOME_LISTEN": _address()}
            self._dlq = asyncio.create_task(serve_dlq(dlq_config(env), self._dlq_stopping))

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def _environ(self, health_port: int) -> dict[str, str]:
        return {
            "FIRSTCOME_KAFKA_BOOTSTRAP": self.stack.kafka_bootstrap,
            "FIRSTCOME_POSTGRES_DSN": self.dsn,
            "FIRSTCOME_TOPIC_PREFIX": self.topics.prefix,
            "FIRSTCOME_AUTH": "off",
            "FIRSTCOME_HEALTH_LISTEN": f"127.0.0.1:{health_port}",
            "FIRSTCOME_METRICS_LISTEN": "off",
        }

    # What callers do

    async def put(self, *messages: Message) -> list[Appended]:
        return await self.line.put(*messages, partition=HOME)

    async def take_place(self, coupon_id: str, user_id: str) -> None:
        """What a caller of the issuer does, without the issuer."""
        call = self.history.invoke(coupon_id, user_id, request_id(user_id))
        (where,) = await self.put(issue(user_id, coupon_id))
        self.history.ok(call, f"{HOME}-{where.offset}", "ACCEPTED")

    async def call(self, coupon_id: str, user_id: str, *, wait: bool = False) -> Answer | Failure:
        """A call of the issuer, with its answer in the history."""
        request = request_id(f"{user_id} {coupon_id}")
        call = self.history.invoke(coupon_id, user_id, request)
        try:
            answer: Answer | Failure = answer_of(await self.client.issue(coupon_id, user_id, request, wait=wait))
        except grpc.aio.AioRpcError as error:
            answer = answer_of_error(error)
        if isinstance(answer, Failure):
            self.history.unknown(call, answer.reason)
        elif answer.state == "REJECTED":
            self.history.fail(call, answer.reason, answer.ticket or None)
        else:
            self.history.ok(call, answer.ticket or None, answer.state, answer.sequence or None)
        return answer

    async def call_together(self, coupon_id: str, user_ids: list[str]) -> None:
        """All in one batch, which takes its places in the line together."""
        asked = [(user_id, request_id(f"{user_id} {coupon_id}")) for user_id in user_ids]
        calls = [self.history.invoke(coupon_id, user_id, request) for user_id, request in asked]
        answer = await self.client.batch(
            [
                issuer_pb2.IssueCouponRequest(coupon=f"coupons/{coupon_id}", user_id=user_id, request_id=request)
                for user_id, request in asked
            ]
        )
        for call, result in zip(calls, answer.results, strict=True):
            told = answer_of(result.issuance)
            self.history.ok(call, told.ticket or None, told.state, told.sequence or None)

    # What happens to them

    async def limit_record_bytes(self, topic: str, count: int | None) -> None:
        """Let the broker take only small records of the topic; None: as it was."""
        configs = dict(settings(self.topics, 1)[topic])
        if count is not None:
            configs["max.message.bytes"] = str(count)
        admin = AIOKafkaAdminClient(bootstrap_servers=self.stack.kafka_bootstrap)
        await admin.start()
        try:
            (answer,) = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])
        finally:
            await admin.close()
        assert answer.resources[0][0] == 0, answer

        async def taken() -> bool:
            return configs.items() <= (await topic_settings(self.stack, [topic]))[topic].items()

        await self.until(taken)  # the broker takes it over a little later

    @asynccontextmanager
    async def frozen(self, name: str) -> AsyncIterator[None]:
        process = self.processes[name]
        process.kill(signal.SIGSTOP)
        try:
            yield
        finally:
            process.kill(signal.SIGCONT)

    @asynccontextmanager
    async def table_locked(self, table: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Whoever inserts into the table waits; gives the connection that holds the lock."""
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {table} IN SHARE MODE")
                yield connection
        finally:
            await connection.close()

    # Waiting

    async def settled(self) -> None:
        """Returns once the line is settled and published, or its ledger has halted."""
        end = await self.line.end(HOME)

        async def over() -> bool:
            return await self.line.is_at_rest(HOME, end) or self.logged("ledger", "partition_halted") > 0

        await self.until(over)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not await holds():
            assert time.monotonic() < deadline, "not within the time"
            await asyncio.sleep(POLL_S)

    def logged(self, name: str, event: str) -> int:
        """How often a process of that name, by its log, has said so."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace").count(f'"{event}"') if path.exists() else 0

    async def verdict(self, drain_timeout_s: float, limits: Limits | None) -> Report:
        self.history.close()
        return await verify(
            self.stack.kafka_bootstrap,
            self.dsn,
            topic_prefix=self.topics.prefix,
            history=self.folder / "history.jsonl",
            drain_timeout_s=drain_timeout_s,
            limits=limits,
        )


SERVICES = ("issuer", "ledger")


def _address() -> str:
    return f"127.0.0.1:{free_port()}"


@asynccontextmanager
async def fresh_world(
    stack: Stack, template: str, folder: Path, modules: Mapping[str, str]
) -> AsyncIterator[PlantedWorld]:
    """Topics and a copy of the database `template`, both gone afterwards."""
    name = f"planted_{uuid.uuid4().hex[:12]}"
    topics = Topics(f"{name}.")
    await _execute(stack, FROM_TEMPLATE.format(name, template))
    try:
        deadline = time.monotonic() + PATIENCE_S
        await ensure_topics(stack.kafka_bootstrap, topics, partitions=1, replication=1, deadline=deadline)
        dsn = stack.postgres_dsn.rpartition("/")[0] + f"/{name}"
        async with PlantedWorld(stack, dsn, topics, folder, modules) as world:
            yield world
    finally:
        await _delete_topics(stack, topics)
        await _execute(stack, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _delete_topics(stack: Stack, topics: Topics) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topics.line, topics.dlq, topics.outcomes])
    finally:
        await admin.close()


async def _execute(stack: Stack, statement: str) -> None:
    connection = await asyncpg.connect(stack.postgres_dsn, timeout=10, command_timeout=60)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
