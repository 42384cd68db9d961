"""A system under test, and a client of it that knows only the protos and google.rpc."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import asyncpg
import grpc
import pytest
from coupon.v1 import (
    coupon_pb2,
    coupon_pb2_grpc,
    dead_letter_pb2,
    dead_letter_pb2_grpc,
    events_pb2,
    issuer_pb2,
    issuer_pb2_grpc,
)
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from services.dlq import consumer as dlq_consumer
from services.dlq import scheduler
from services.dlq.__main__ import serve as serve_dlq
from services.dlq.replay import runner, servicer
from services.domain.model import ParkReason, Ticket
from services.issuer import __main__ as issuer_main
from services.issuer import issue, outcomes
from services.issuer.outcomes import OutcomesTail
from services.ledger import consumer
from services.ledger.__main__ import serve as serve_ledger
from services.runtime import kafka, partitions, wire
from services.runtime.config import dlq_config, issuer_config, ledger_config
from services.runtime.kafka import Message, PartitionReader, Record, RecordProducer, Topics
from stack import Stack, free_port
from tests.conftest import TEST_PARTITIONS

PATIENCE_S = 30.0
DEADLINE_S = 20.0
ANSWER_MARGIN_S = 2.0
"""Ten times that of the services: a busy machine must not make an answer late."""
NEAR_DEADLINE_S = 1.0 + ANSWER_MARGIN_S
"""Of calls that are to be answered before there is a verdict."""
SERVING = health_pb2.HealthCheckResponse.SERVING
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
Issuance = issuer_pb2.Issuance
Coupon = coupon_pb2.Coupon
_DETAILS: Sequence[type[ProtoMessage]] = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
)


@dataclass(frozen=True)
class Failure:
    """An error as a client sees it."""

    code: grpc.StatusCode
    reason: str
    metadata: Mapping[str, str]
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> list[str]:
        """The fields that BadRequest names."""
        found = self.details.get("BadRequest")
        return [] if found is None else [violation.field for violation in found.field_violations]

    @property
    def resource(self) -> str:
        """The resource that ResourceInfo or PreconditionFailure names."""
        if "ResourceInfo" in self.details:
            return str(self.details["ResourceInfo"].resource_name)
        (violation,) = self.details["PreconditionFailure"].violations
        assert violation.type == self.reason
        return str(violation.subject)


def failure_of(status: Status) -> Failure:
    """Decodes google.rpc.Status; the domain and the presence of ErrorInfo are checked for every error."""
    details: dict[str, Any] = {}
    for packed in status.details:
        for kind in _DETAILS:
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                assert kind.DESCRIPTOR.name not in details, "a detail comes once"
                details[kind.DESCRIPTOR.name] = message
    info = details["ErrorInfo"]
    assert info.domain == "firstcome"
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    if "RetryInfo" in details:
        assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    return Failure(code, info.reason, dict(info.metadata), status.message, details)


async def refused(call: Awaitable[Any]) -> Failure:
    """The error with which the call ends; that it is no error is one."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    error = raised.value
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()} {error.details()}"
    assert status.message == error.details()
    return failure_of(status)


def shape(failure: Failure) -> tuple[str, str, set[str]]:
    """Code, reason and the names of the details beside ErrorInfo."""
    return failure.code.name, failure.reason, set(failure.details) - {"ErrorInfo"}


async def eventually(holds: Callable[[], Awaitable[Any]]) -> Any:
    """What `holds` gives once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := await holds()):
        assert time.monotonic() < deadline, "not within the time"
        await asyncio.sleep(0.02)
    return value


def new_id(what: str = "c") -> str:
    return f"{what}-{uuid.uuid4().hex[:12]}"


def request_id() -> str:
    return str(uuid.uuid4())


def home(coupon_id: str) -> int:
    return kafka.home_partition(coupon_id.encode(), TEST_PARTITIONS)


def id_of_partition(partition: int) -> str:
    """A coupon id whose line is in that partition."""
    while home(coupon_id := new_id()) != partition:
        pass
    return coupon_id


class Client:
    """The stubs of one issuer, and its calls in short."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.issuer: Any = issuer_pb2_grpc.IssuerServiceStub(self.channel)
        self.coupons: Any = coupon_pb2_grpc.CouponServiceStub(self.channel)

    def issue(
        self,
        coupon_id: str,
        user_id: str,
        request: str = "",
        *,
        wait: bool = False,
        timeout: float | None = DEADLINE_S,
        metadata: Sequence[tuple[str, str]] | None = None,
    ) -> Any:
        asked = issuer_pb2.IssueCouponRequest(
            coupon=f"coupons/{coupon_id}", user_id=user_id, request_id=request, wait=wait
        )
        return self.issuer.IssueCoupon(asked, timeout=timeout, metadata=metadata)

    def get(self, coupon_id: str, user_id: str, ticket: str = "") -> Any:
        name = f"coupons/{coupon_id}/issuances/{user_id}"
        return self.issuer.GetIssuance(issuer_pb2.GetIssuanceRequest(name=name, ticket=ticket), timeout=DEADLINE_S)

    def batch(self, requests: Sequence[issuer_pb2.IssueCouponRequest], timeout: float = DEADLINE_S) -> Any:
        return self.issuer.BatchIssueCoupons(issuer_pb2.BatchIssueCouponsRequest(requests=requests), timeout=timeout)

    def create(self, coupon_id: str, total: int = 10, request: str = "", **values: Any) -> Any:
        coupon = Coupon(total_quantity=total, **values)
        asked = coupon_pb2.CreateCouponRequest(coupon_id=coupon_id, coupon=coupon, request_id=request)
        return self.coupons.CreateCoupon(asked, timeout=DEADLINE_S)

    def coupon(self, coupon_id: str) -> Any:
        return self.coupons.GetCoupon(coupon_pb2.GetCouponRequest(name=f"coupons/{coupon_id}"), timeout=DEADLINE_S)

    def update(self, coupon_id: str, paths: Sequence[str] | None, request: str = "", **values: Any) -> Any:
        asked = coupon_pb2.UpdateCouponRequest(coupon=Coupon(name=f"coupons/{coupon_id}", **values), request_id=request)
        if paths is not None:
            asked.update_mask.paths.extend(paths)
        return self.coupons.UpdateCoupon(asked, timeout=DEADLINE_S)

    def adjust(self, coupon_id: str, delta: int, request: str = "") -> Any:
        asked = coupon_pb2.AdjustStockRequest(name=f"coupons/{coupon_id}", delta=delta, request_id=request)
        return self.coupons.AdjustStock(asked, timeout=DEADLINE_S)

    def pause(self, coupon_id: str, request: str = "", timeout: float = DEADLINE_S) -> Any:
        asked = coupon_pb2.PauseCouponRequest(name=f"coupons/{coupon_id}", request_id=request)
        return self.coupons.PauseCoupon(asked, timeout=timeout)

    def resume(self, coupon_id: str, request: str = "") -> Any:
        asked = coupon_pb2.ResumeCouponRequest(name=f"coupons/{coupon_id}", request_id=request)
        return self.coupons.ResumeCoupon(asked, timeout=DEADLINE_S)

    def close_coupon(self, coupon_id: str, request: str = "") -> Any:
        asked = coupon_pb2.CloseCouponRequest(name=f"coupons/{coupon_id}", request_id=request)
        return self.coupons.CloseCoupon(asked, timeout=DEADLINE_S)


class DeadLetters:
    """The stub of one dlq, and its calls in short."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub: Any = dead_letter_pb2_grpc.DeadLetterServiceStub(self.channel)

    def get(self, ticket: Ticket) -> Any:
        asked = dead_letter_pb2.GetDeadLetterRequest(name=f"deadLetters/{ticket}")
        return self.stub.GetDeadLetter(asked, timeout=DEADLINE_S)

    def list(self, page_size: int = 0, page_token: str = "", **wanted: Any) -> Any:
        asked = dead_letter_pb2.ListDeadLettersRequest(
            filter=dead_letter_pb2.DeadLetterFilter(**wanted), page_size=page_size, page_token=page_token
        )
        return self.stub.ListDeadLetters(asked, timeout=DEADLINE_S)

    def retry(self, ticket: Ticket, request: str = "", **values: Any) -> Any:
        asked = dead_letter_pb2.RetryDeadLetterRequest(name=f"deadLetters/{ticket}", request_id=request, **values)
        return self.stub.RetryDeadLetter(asked, timeout=DEADLINE_S)

    def discard(self, ticket: Ticket, request: str = "", comment: str = "of no use", **values: Any) -> Any:
        asked = dead_letter_pb2.DiscardDeadLetterRequest(
            name=f"deadLetters/{ticket}", request_id=request, comment=comment, **values
        )
        return self.stub.DiscardDeadLetter(asked, timeout=DEADLINE_S)

    async def becomes(self, ticket: Ticket, state: Any) -> Any:
        """The dead letter, once it is in that state."""

        async def there() -> Any:
            try:
                letter = await self.get(ticket)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return None
            return letter if letter.state == state else None

        return await eventually(there)


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Idle moments of a few milliseconds, so that services start and end quickly, and answers well before the caller's
    deadline; what they do is the same."""
    with (
        mock.patch.object(issue, "ANSWER_MARGIN_S", ANSWER_MARGIN_S),
        mock.patch.object(outcomes, "POLL_MS", 50),
        mock.patch.object(consumer, "IDLE_MS", 50),
        mock.patch.object(dlq_consumer, "IDLE_MS", 50),
        mock.patch.object(scheduler, "RESOLVE_TICK_S", 0.05),
        mock.patch.object(runner, "CLAIM_TICK_S", 0.05),
        mock.patch.object(servicer, "WATCH_POLL_S", 0.05),
        mock.patch.object(partitions, "TICK_S", 0.05),
    ):
        yield


@dataclass
class Issuer(Client):
    """A running issuer inside this process."""

    address: str
    health_address: str
    stopping: asyncio.Event
    task: asyncio.Task[None] = field(repr=False)
    parts: SimpleNamespace = field(repr=False, default_factory=SimpleNamespace)

    def __post_init__(self) -> None:
        Client.__init__(self, self.address)

    @property
    def tail(self) -> Any:
        return self.parts.tail


class System:
    """One system's topics and tables, and the services that a test runs on them, in this process."""

    def __init__(self, stack: Stack, dsn: str, topics: Topics) -> None:
        self.stack, self.dsn, self.topics = stack, dsn, topics
        self.producer = RecordProducer(stack.kafka_bootstrap, "test")
        self._readers: dict[tuple[str, int, str], PartitionReader] = {}

    def environ(self, **settings: str) -> dict[str, str]:
        """The settings of a service of this system."""
        return {
            "FIRSTCOME_KAFKA_BOOTSTRAP": self.stack.kafka_bootstrap,
            "FIRSTCOME_POSTGRES_DSN": self.dsn,
            "FIRSTCOME_TOPIC_PREFIX": self.topics.prefix,
            "FIRSTCOME_AUTH": "off",
            **settings,
        }

    @contextlib.asynccontextmanager
    async def issuer(
        self, *, delivery_timeout_s: float = kafka.DELIVERY_TIMEOUT_S, **settings: str
    ) -> AsyncIterator[Issuer]:
        """An issuer that is ready; ended by SIGTERM's way."""
        address, health = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        config = issuer_config(self.environ(FIRSTCOME_LISTEN=address, FIRSTCOME_HEALTH_LISTEN=health, **settings))
        stopping = asyncio.Event()
        parts = SimpleNamespace()

        class Tail(OutcomesTail):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                parts.tail = self

        def producer(bootstrap: str, client_id: str) -> RecordProducer:
            return RecordProducer(bootstrap, client_id, delivery_timeout_s=delivery_timeout_s)

        with impatient():
            with (
                mock.patch.object(issuer_main, "OutcomesTail", Tail),
                mock.patch.object(issuer_main, "RecordProducer", producer),
            ):
                task = asyncio.ensure_future(issuer_main.serve(config, stopping))
                await self._serving(task, health)
            issuer = Issuer(address, health, stopping, task, parts)
            try:
                yield issuer
            finally:
                await issuer.channel.close()
                stopping.set()
                await asyncio.wait_for(task, PATIENCE_S)

    @contextlib.asynccontextmanager
    async def ledger(self) -> AsyncIterator[None]:
        health = f"127.0.0.1:{free_port()}"
        config = ledger_config(self.environ(FIRSTCOME_HEALTH_LISTEN=health, FIRSTCOME_DEAD_LETTER_RUN_MAX="0"))
        stopping = asyncio.Event()
        with impatient():
            task = asyncio.ensure_future(serve_ledger(config, stopping))
            try:
                await self._serving(task, health)
                yield
            finally:
                stopping.set()
                await asyncio.wait_for(task, PATIENCE_S)

    @contextlib.asynccontextmanager
    async def dlq(self, **settings: str) -> AsyncIterator[DeadLetters]:
        """A dlq that answers; by itself it retries so seldom that no test sees it, unless `settings` say otherwise."""
        address, health = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        hour = {"FIRSTCOME_RETRY_BACKOFF_BASE_MS": "3600000", "FIRSTCOME_RETRY_BACKOFF_CAP_MS": "3600000"}
        config = dlq_config(
            self.environ(FIRSTCOME_LISTEN=address, FIRSTCOME_HEALTH_LISTEN=health, **{**hour, **settings})
        )
        stopping = asyncio.Event()
        with impatient():
            task = asyncio.ensure_future(serve_dlq(config, stopping))
            await self._serving(task, health)
            client = DeadLetters(address)
            try:
                yield client
            finally:
                await client.channel.close()
                stopping.set()
                await asyncio.wait_for(task, PATIENCE_S)

    async def _serving(self, task: asyncio.Future[None], health: str) -> None:
        async def answers() -> bool:
            if task.done():
                task.result()
            return bool(await health_of(health) == SERVING)

        try:
            await eventually(answers)
        except BaseException:
            task.cancel()
            raise

    async def put(self, topic: str, partition: int, *messages: Message) -> list[Ticket]:
        listed = [Message(one.key, one.value, list(one.headers)) for one in messages]
        appended = await self.producer.append(topic, partition, listed)
        return [Ticket(partition, one.offset) for one in appended]

    async def dead_letter(self, ticket: Ticket) -> None:
        """Say on the DLQ that the record at that place failed, so that the next ledger settles it as PARKED."""
        record = (await self.records(self.topics.line, ticket.partition))[ticket.offset]
        told = wire.dead_letter_message(self.topics.line, ticket.partition, record, ParkReason.INTERNAL, "boom")
        await self.put(self.topics.dlq, ticket.partition, told)

    def _reader(self, topic: str, partition: int, use: str = "records") -> PartitionReader:
        key = topic, partition, use
        if key not in self._readers:
            self._readers[key] = PartitionReader(self.stack.kafka_bootstrap, "test", topic, partition)
        return self._readers[key]

    async def records(self, topic: str, partition: int) -> dict[int, Record]:
        """What a partition holds, by offset."""
        reader = self._reader(topic, partition)
        begin, end = await reader.bounds()
        return {record.offset: record async for records in reader.read(begin, end) for record in records}

    async def ends(self) -> list[int]:
        """The end of the line in each partition."""
        # Readers that read nothing: one that waits for records at the end answers half a second later.
        readers = [self._reader(self.topics.line, partition, "ends") for partition in range(TEST_PARTITIONS)]
        return [end for _, end in await asyncio.gather(*(reader.bounds() for reader in readers))]

    async def settled(self) -> None:
        """Returns once the ledger has settled the whole line as it is now."""
        ends = await self.ends()

        async def done() -> bool:
            rows = await self.fetch(
                "SELECT partition, next_offset FROM ledger_progress WHERE topic = $1", self.topics.line
            )
            found = {row["partition"]: row["next_offset"] for row in rows}
            return all(found.get(partition, 0) >= end for partition, end in enumerate(ends))

        await eventually(done)

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def close(self) -> None:
        await asyncio.gather(self.producer.stop(), *(reader.stop() for reader in self._readers.values()))


async def health_of(address: str, service: str = "") -> Any:
    """The status, or the code of the error with which the check ends."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)).status
        except grpc.aio.AioRpcError as error:
            return error.code()


def issue_message(coupon_id: str, user_id: str, request: str) -> Message:
    """A request as the issuer puts it on the line."""
    event = events_pb2.CouponIssueRequestedEvent(coupon_id=coupon_id, user_id=user_id, request_id=request)
    headers = wire.request_headers(wire.ISSUE_REQUESTED, "test", b"2026-01-01T00:00:00Z", None)
    return Message(coupon_id.encode(), event.SerializeToString(), headers)
