"""A service's membership in its consumer group, on a real broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import KafkaError

from services.runtime.health import Health
from services.runtime.kafka import PartitionReader, Topics
from services.runtime.partitions import PartitionWorker, PartitionWorkers
from services.runtime.progress import Position
from stack import Link, Stack
from tests.contract.issuing import eventually


class Idle(PartitionWorker):
    async def _take_position(self) -> Position:
        return Position(self._partition, 0, 0, 0, None)

    async def _work_from(self, position: Position) -> None:
        await self._stopping.wait()


def members(bootstrap: str, topics: Topics) -> PartitionWorkers:
    def idle(partition: int) -> Idle:
        return Idle(topics.line, partition, PartitionReader(bootstrap, "test", topics.line, partition))

    return PartitionWorkers(bootstrap, "test", f"{topics.prefix}test", topics.line, idle, Health())


async def test_who_starts_while_the_log_is_away_joins_once_it_is_back(link: Link, topics: Topics) -> None:
    workers, stopping = members(link.address, topics), asyncio.Event()
    link.go_down()
    running = asyncio.create_task(workers.run(stopping))
    try:
        await asyncio.sleep(1.0)
        assert not running.done()
        link.heal()
        await eventually(lambda: _assigned(workers))
    finally:
        stopping.set()
        await asyncio.wait_for(running, timeout=30)


async def test_who_is_stopped_while_the_log_is_away_ends(link: Link, topics: Topics) -> None:
    workers, stopping = members(link.address, topics), asyncio.Event()
    link.go_down()
    running = asyncio.create_task(workers.run(stopping))
    await asyncio.sleep(0.5)
    stopping.set()
    await asyncio.wait_for(running, timeout=30)


async def test_a_membership_that_ended_by_itself_ends_the_service(
    stack: Stack, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka's coordination dies of what it does not foresee, and nobody would get the partitions ever again."""
    workers, stopping = members(stack.kafka_bootstrap, topics), asyncio.Event()
    running = asyncio.create_task(workers.run(stopping))
    try:
        await eventually(lambda: _assigned(workers))

        async def unforeseen(*_: Any) -> int:
            raise AssertionError("planted")

        monkeypatch.setattr(workers._consumer._client, "coordinator_lookup", unforeseen)
        workers._consumer._coordinator.coordinator_dead()
        with pytest.raises(RuntimeError, match=r"membership in group .*test ended by itself") as told:
            await asyncio.wait_for(asyncio.shield(running), timeout=30)
        assert isinstance(told.value.__cause__, KafkaError)
        assert workers.workers == {}
    finally:
        stopping.set()
        await asyncio.wait([running], timeout=30)


async def test_what_the_group_refuses_for_now_does_not_end_the_service(stack: Stack, topics: Topics) -> None:
    workers, stopping = members(stack.kafka_bootstrap, topics), asyncio.Event()
    running = asyncio.create_task(workers.run(stopping))
    try:
        await eventually(lambda: _assigned(workers))
        coordinator = workers._consumer._coordinator
        await asyncio.wait_for(coordinator._push_error_to_user(KafkaError("planted")), timeout=10)
        await asyncio.sleep(0.1)
        assert not running.done()
        assert await _assigned(workers)
    finally:
        stopping.set()
        await asyncio.wait_for(running, timeout=30)


async def _assigned(workers: PartitionWorkers) -> bool:
    return len(workers.workers) > 0
