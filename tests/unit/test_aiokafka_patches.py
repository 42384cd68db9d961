"""What is asked of a broker by a connection that has broken a moment before, or that knows no broker yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.metadata import MetadataResponse_v1 as MetadataResponse

from services.runtime import kafka


class Defective(DescribeGroupsRequest):  # type: ignore[misc]
    def prepare(self, versions: Any) -> Any:
        raise RuntimeError("planted")


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[AIOKafkaConnection]:
    """To somebody who never answers."""
    server = await asyncio.start_server(lambda _, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = AIOKafkaConnection("127.0.0.1", port, request_timeout_ms=kafka.REQUEST_TIMEOUT_MS)
    connection._versions = {DescribeGroupsRequest.API_KEY: (0, 0)}
    connection._reader, connection._writer = await asyncio.open_connection("127.0.0.1", port)
    connection._read_task = connection._create_reader_task()
    await asyncio.sleep(0)
    try:
        yield connection
    finally:
        connection.close()
        server.close()


async def asked_while_broken() -> AIOKafkaConnection:
    """Of a connection whose socket has failed, and whose reader has not seen it yet."""
    async with connected() as connection:
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # now the transport is closed, and in the next turn the reader would hear of it
        with pytest.raises(KafkaConnectionError, match=f"127.0.0.1:{connection.port} broken") as told:
            connection.send(DescribeGroupsRequest(["any"]))
        assert isinstance(told.value.__cause__, RuntimeError)
        assert told.value.retriable
        assert not connection.connected()
    return connection


async def asked_what_cannot_be_asked() -> None:
    async with connected() as connection:
        with pytest.raises(RuntimeError, match="planted"):
            connection.send(Defective(["any"]))
        assert connection.connected()
    with pytest.raises(KafkaConnectionError, match=r"^KafkaConnectionError: No connection"):
        connection.send(DescribeGroupsRequest(["any"]))


def test_a_request_by_a_connection_that_has_just_broken_may_be_tried_again() -> None:
    connection = uvloop.run(asked_while_broken())
    assert not connection.connected()


def test_a_defect_of_ours_is_not_taken_for_a_broken_connection() -> None:
    uvloop.run(asked_what_cannot_be_asked())


class Broker:
    """Stands in for the connections of a client to one that names no broker at first, and itself later."""

    def __init__(self) -> None:
        self.open = 0
        self.named: list[tuple[int, str, int, str | None]] = []

    async def connect(self, *_: Any, **__: Any) -> Broker:
        self.open += 1
        return self

    async def send(self, _: Any) -> Any:
        return MetadataResponse(self.named, 0, [])

    def close(self, **_: Any) -> None:
        self.open -= 1


async def test_a_cluster_that_names_no_broker_is_one_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker()
    monkeypatch.setattr("aiokafka.client.create_conn", broker.connect)
    client = AIOKafkaClient(bootstrap_servers="nowhere:9092")
    try:
        with pytest.raises(KafkaConnectionError, match=r"nowhere.*name no broker") as told:
            await client.bootstrap()
        assert told.value.retriable
        assert broker.open == 0
        broker.named = [(1, "nowhere", 9092, None)]
        await client.bootstrap()
        assert client.get_random_node() == 1
        assert broker.open == 0
    finally:
        await client.close()
