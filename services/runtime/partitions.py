"""One worker for each partition that the consumer group gives us, and what it does when something is away, lost or
wrong; used by ledger and dlq."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from services.runtime import kafka_security, metrics, predecessor
from services.runtime.health import Health
from services.runtime.instruments import Gauge
from services.runtime.kafka import REQUEST_TIMEOUT_MS, KafkaAway, OutOfLog, PartitionReader
from services.runtime.log import get_logger
from services.runtime.pace import Pace
from services.runtime.postgres import BooksWrong, DatabaseAway
from services.runtime.progress import Halted, Overtaken, Position, PositionLost
from services.runtime.waiting import Waiting

log = get_logger(__name__)

SESSION_TIMEOUT_MS = 6_000
"""The partitions of a member that was killed for good move within 10 s."""
HEARTBEAT_MS = 1_000
"""By its heartbeat a member learns that the group shares anew, and all wait for the last to learn it."""
REBALANCE_TIMEOUT_MS = 30_000
HAND_OVER_TIMEOUT_S = 10.0
"""How long a worker may take to finish its batch when its partition goes elsewhere."""
TICK_S = 1.0


def health_part(service: str) -> str:
    """The part of a service's health that is NOT_SERVING while one of its partitions is halted."""
    return f"firstcome.{service}.line"


class PartitionWorker(ABC):
    """Works on one partition until told to stop; whatever it can't do safely alone its own store must refuse."""

    def __init__(self, topic: str, partition: int, *readers: PartitionReader) -> None:
        """`readers`, of which the first reads the topic, are stopped at the end."""
        self._partition = partition
        self._readers = readers
        self._labels = _topic_label(topic), str(partition)
        metrics.FENCED.add(0, *self._labels)
        metrics.RETRIES.add(0, *self._labels)
        self._stopping = asyncio.Event()
        self._pace = Pace(self._stopping)
        self.settled_offset: int | None = None
        """The offset to commit to Kafka, for lag tools only."""
        self.halted: str | None = None
        """Why it stands still until a person has looked and restarts it."""
        self.waiting = Waiting()
        """For how long what is not worked on yet has waited."""
        self.log: Any = log.bind(topic=topic, partition=partition)

    @abstractmethod
    async def _take_position(self) -> Position:
        """The table's position, once the log is known to be the log."""

    @abstractmethod
    async def _work_from(self, position: Position) -> None:
        """Work until stopped."""

    def stop(self) -> None:
        """Finish what is under way, then let `run` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until stopped. Away is not broken: whatever may pass is tried again from the table's position."""
        try:
            while not self._stopping.is_set():
                try:
                    await self._work_from(await self._take_position())
                except (KafkaAway, DatabaseAway, Overtaken, OutOfLog) as error:
                    self.log.warning("partition_interrupted", error=f"{type(error).__name__}: {error}")
                    (metrics.FENCED if isinstance(error, PositionLost) else metrics.RETRIES).add(1, *self._labels)
                    await self._pace.failed()
                except (Halted, BooksWrong) as error:
                    await self._halt(error)
                except Exception as error:
                    # Not foreseen, so not known to be harmless: stand still and call for help rather than guess.
                    self.log.exception("partition_failed")
                    await self._halt(error)
        finally:
            await asyncio.gather(*(reader.stop() for reader in self._readers))

    def figures(self) -> Mapping[Gauge, float]:
        """What holds now, for gauges with the labels topic and partition."""
        figures: dict[Gauge, float] = {metrics.HALTED: self.halted is not None}
        if self.settled_offset is not None:
            end = self._readers[0].known_end()
            figures[metrics.LAG_RECORDS] = max(0, end - self.settled_offset)
            figures[metrics.LAG_SECONDS] = self.waiting.seconds(self.settled_offset, end, time.time())
        return figures

    async def _halt(self, error: Exception) -> None:
        self.halted = f"{type(error).__name__}: {error}"
        self.log.critical("partition_halted", reason=self.halted)
        await self._before_standing_still(error)
        await self._stopping.wait()

    async def _before_standing_still(self, error: Exception) -> None:  # noqa: B027 - most have nothing to do
        """What may still be done though the partition has halted. Must not raise."""


class PartitionWorkers:
    """Joins a consumer group for its assignment alone: it reads nothing, the workers have readers of their own.

    A partition that two members work on for a moment, as after a freeze, does no harm: the workers' compare-and-set
    in PostgreSQL lets only one of them through.
    """

    def __init__(
        self,
        bootstrap: str,
        service: str,
        group: str,
        topic: str,
        make_worker: Callable[[int], PartitionWorker],
        health: Health,
        place: str | None = None,
    ) -> None:
        """`place`: see `predecessor.place`."""
        self._bootstrap = bootstrap
        self._group = group
        self._place = place
        self._topic = topic
        self._health = health
        self._health_part = health_part(service)
        self._make_worker = make_worker
        self._workers: dict[int, tuple[PartitionWorker, asyncio.Task[None]]] = {}
        self._committed: dict[int, int] = {}
        self._gauges: set[Gauge] = set()
        self._over = False
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            **kafka_security.arguments(),
            client_id=place or service,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )

    def observe(self) -> None:
        """Note how far behind the workers are, and which have halted."""
        topic = _topic_label(self._topic)
        found: dict[Gauge, dict[tuple[str, ...], float]] = {gauge: {} for gauge in self._gauges}
        for partition, worker in self.workers.items():
            for gauge, value in worker.figures().items():
                found.setdefault(gauge, {})[topic, str(partition)] = value
        self._gauges = set(found)
        for gauge, values in found.items():
            gauge.replace(values, topic)  # those of partitions that went elsewhere go with them

    @property
    def workers(self) -> dict[int, PartitionWorker]:
        """The present workers by partition."""
        return {partition: worker for partition, (worker, _) in self._workers.items()}

    async def run(self, stopping: asyncio.Event) -> None:
        """Work on what is assigned until `stopping` is set. Raises whatever a worker or the membership dies of."""
        if self._place is not None:
            await predecessor.dismiss(self._bootstrap, self._group, self._place, stopping)
        try:
            await self._connect(stopping)
            self._consumer.subscribe([self._topic], listener=_Listener(self))
            while not stopping.is_set():
                for partition, (_, task) in list(self._workers.items()):
                    if task.done() and partition in self._workers:
                        task.result()
                        raise RuntimeError(f"the worker of partition {partition} ended by itself")
                # All partitions are paused, so this reads nothing; it tells aiokafka that its user is alive.
                try:
                    await self._consumer.getmany(timeout_ms=0)
                except KafkaError as error:
                    log.warning("group_error", group=self._group, error=f"{type(error).__name__}: {error}")
                    if self._consumer._coordinator._coordination_task.done():
                        raise RuntimeError(f"the membership in group {self._group} ended by itself") from error
                await self._commit(self.workers)
                await self._tell_halts()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), timeout=TICK_S)
        finally:
            self._over = True
            await self._end(list(self._workers))
            with contextlib.suppress(KafkaError, TimeoutError, OSError):
                await asyncio.wait_for(self._consumer.stop(), timeout=HAND_OVER_TIMEOUT_S)

    async def _connect(self, stopping: asyncio.Event) -> None:
        pace = Pace(stopping, cap_s=1.0)
        while not stopping.is_set():
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
                    await self._consumer.start()
                    return
            except (KafkaError, TimeoutError, OSError) as error:
                log.warning("group_unreachable", group=self._group, error=f"{type(error).__name__}: {error}")
                await pace.failed()

    def _begin(self, partitions: list[int]) -> None:
        if self._over:  # the group gave them before it heard that we are leaving: nobody would end their workers
            return
        for partition in partitions:
            tp = TopicPartition(self._topic, partition)
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)  # any position will do: without one aiokafka asks for a committed offset
            worker = self._make_worker(partition)
            self._workers[partition] = worker, asyncio.create_task(worker.run(), name=f"{self._topic}/{partition}")
        log.info("partitions_assigned", topic=self._topic, partitions=partitions)

    async def _end(self, partitions: list[int]) -> None:
        ending = {p: self._workers.pop(p) for p in partitions if p in self._workers}
        for worker, _ in ending.values():
            worker.stop()
        tasks = [task for _, task in ending.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=HAND_OVER_TIMEOUT_S)
            for task in late:
                log.warning("hand_over_late", worker=task.get_name())
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=HAND_OVER_TIMEOUT_S)
        await self._commit({partition: worker for partition, (worker, _) in ending.items()})
        if partitions:
            log.info("partitions_revoked", topic=self._topic, partitions=partitions)

    async def _tell_halts(self) -> None:
        """Apart from the service's own health: a restart by itself would not help a partition that needs a person."""
        halted = any(worker.halted is not None for worker in self.workers.values())
        await self._health.set(self._health_part, serving=not halted)

    async def _commit(self, workers: Mapping[int, PartitionWorker]) -> None:
        offsets = {
            partition: worker.settled_offset
            for partition, worker in workers.items()
            if worker.settled_offset is not None and worker.settled_offset != self._committed.get(partition)
        }
        if not offsets:
            return
        with contextlib.suppress(KafkaError, TimeoutError, OSError):
            async with asyncio.timeout(TICK_S):
                await self._consumer.commit(
                    {TopicPartition(self._topic, partition): offset for partition, offset in offsets.items()}
                )
            self._committed.update({p: offset for p, offset in offsets.items() if offset is not None})


def _topic_label(topic: str) -> str:
    return metrics.DLQ if topic.endswith(".dlq") else metrics.LINE


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, owner: PartitionWorkers) -> None:
        self._owner = owner

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        await self._owner._end(sorted(tp.partition for tp in revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._owner._begin(sorted(tp.partition for tp in assigned))
