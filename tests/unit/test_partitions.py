"""A consumer group that changes while a service leaves it, and by what it knows a member again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition

from services.runtime import predecessor
from services.runtime.health import Health
from services.runtime.partitions import PartitionWorker, PartitionWorkers
from services.runtime.progress import Position


class Worker(PartitionWorker):
    def __init__(self, partition: int) -> None:
        super().__init__("line", partition)

    async def _take_position(self) -> Position:
        return Position(self._partition, 0, 0, 0, None)

    async def _work_from(self, position: Position) -> None:
        await self._stopping.wait()


class Group:
    """Stands in for aiokafka's consumer; the coordinator gives it partition 1 once more while it leaves."""

    def __init__(self) -> None:
        self.listener: Any = None

    async def start(self) -> None: ...

    def subscribe(self, topics: list[str], *, listener: Any) -> None:
        self.listener = listener

    def pause(self, tp: TopicPartition) -> None: ...

    def seek(self, tp: TopicPartition, offset: int) -> None: ...

    async def commit(self, offsets: dict[TopicPartition, int]) -> None: ...

    async def getmany(self, *, timeout_ms: int) -> None:
        await self.assign(0)

    async def stop(self) -> None:
        await self.assign(1)

    async def assign(self, partition: int) -> None:
        await self.listener.on_partitions_assigned({TopicPartition("line", partition)})


async def test_who_leaves_begins_no_work_that_nobody_would_end() -> None:
    made: list[int] = []
    begun = asyncio.Event()

    def make_worker(partition: int) -> Worker:
        made.append(partition)
        begun.set()
        return Worker(partition)

    workers = PartitionWorkers("nowhere:1", "test", "group", "line", make_worker, Health())
    workers._consumer = Group()
    stopping = asyncio.Event()
    running = asyncio.create_task(workers.run(stopping))
    await asyncio.wait_for(begun.wait(), timeout=10)
    stopping.set()
    await running
    assert made == [0]
    assert workers.workers == {}


def test_a_member_is_known_by_service_host_and_a_port_that_it_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "ledger-7d9")
    assert predecessor.place("ledger", "0.0.0.0:9465") == "ledger-ledger-7d9-9465"
    assert predecessor.place("dlq", "[::]:9466") == "dlq-ledger-7d9-9466"
    # Of any port, or none, there may be several.
    assert predecessor.place("ledger", "127.0.0.1:0") is None
    assert predecessor.place("ledger", None) is None
