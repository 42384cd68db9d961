"""Wires the dlq together."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from coupon.v1 import dead_letter_pb2, dead_letter_pb2_grpc, replay_pb2, replay_pb2_grpc

from services.dlq.consumer import PartitionFiler
from services.dlq.operator_store import OperatorStore
from services.dlq.replay.runner import JobRunner
from services.dlq.replay.servicer import ReplayServicer
from services.dlq.replay.store import JobStore
from services.dlq.replay.works import works
from services.dlq.scheduler import PUBLISH_TIMEOUT_S, RedriveScheduler
from services.dlq.servicers import DeadLetterServicer
from services.dlq.stock_taking import StockTaking
from services.dlq.store import DeadLetterStore
from services.domain.dead_letter import RetryPolicy
from services.domain.retry import Backoff
from services.runtime import lifecycle, metrics, postgres, predecessor
from services.runtime.config import DlqConfig, dlq_config
from services.runtime.grpc_server import GrpcServer
from services.runtime.health import Health
from services.runtime.kafka import PartitionReader, RecordProducer, Topics, target_faults
from services.runtime.partitions import PartitionWorkers
from services.runtime.postgres import create_engine

GROUP = "dlq"
SERVICES = (
    dead_letter_pb2.DESCRIPTOR.services_by_name["DeadLetterService"].full_name,
    replay_pb2.DESCRIPTOR.services_by_name["ReplayService"].full_name,
)
CONCURRENT_CALLS_MAX = 1_000
RETRY_AGE_US_MAX = 10 * 60 * 1_000_000
"""A dead letter that is older when it is stored is an operator's to decide."""


async def serve(config: DlqConfig, stopping: asyncio.Event) -> None:
    common = config.common
    topics = Topics(common.topic_prefix)
    health = Health()
    server = GrpcServer(health, concurrent_calls_max=CONCURRENT_CALLS_MAX, access=config.access)
    engine = create_engine(common.postgres_dsn, "firstcome-dlq", pool_size=common.pool_size)
    producer = RecordProducer(common.kafka_bootstrap, "dlq", delivery_timeout_s=PUBLISH_TIMEOUT_S)
    republisher = RecordProducer(common.kafka_bootstrap, "dlq-replay")
    backoff = Backoff(base_s=config.backoff_base_ms / 1_000, cap_s=config.backoff_cap_ms / 1_000)
    policy = RetryPolicy(config.attempts_max, backoff, RETRY_AGE_US_MAX)
    sampler = metrics.sampler()
    for sample in (server.observe, lambda: postgres.observe(engine)):
        sampler.add(sample)
    await health.start(common.health_listen)
    try:
        partition_count = await lifecycle.wait_for_dependencies(common, engine, stopping)
        store = DeadLetterStore(engine, topics.dlq)
        scheduler = RedriveScheduler(store, producer, topics.line, partition_count, policy, _now_us)

        def filer(partition: int) -> PartitionFiler:
            reader = PartitionReader(common.kafka_bootstrap, "dlq", topics.dlq, partition)
            return PartitionFiler(partition, topics, partition_count, reader, store, policy, _now_us)

        group = f"{common.topic_prefix}{GROUP}"
        place = predecessor.place("dlq", common.metrics_listen)
        workers = PartitionWorkers(common.kafka_bootstrap, "dlq", group, topics.dlq, filer, health, place)
        sampler.add(workers.observe)
        sampler.start(StockTaking(engine).run())
        servicer = DeadLetterServicer(OperatorStore(engine), _now_us)
        server.add(dead_letter_pb2_grpc.add_DeadLetterServiceServicer_to_server, servicer)
        jobs = JobStore(engine)
        runner = JobRunner(
            jobs,
            works(common.kafka_bootstrap, topics, partition_count, engine, republisher),
            f"{socket.gethostname()}:{os.getpid()}",
        )
        faults = functools.partial(target_faults, common.kafka_bootstrap, partition_count)
        replay_servicer = ReplayServicer(jobs, partition_count, faults, stopping)
        server.add(replay_pb2_grpc.add_ReplayServiceServicer_to_server, replay_servicer)
        await server.start(config.listen, SERVICES)
        for part in ("", *SERVICES):
            await health.set(part, serving=True)
        await _work([workers, scheduler, runner], health, stopping, common.drain_timeout_s)
    finally:
        await health.leave()
        await sampler.stop()
        await server.stop(common.drain_timeout_s)
        await asyncio.gather(producer.stop(), republisher.stop())
        await engine.dispose()
        await health.stop()


class Worker(Protocol):
    async def run(self, stopping: asyncio.Event) -> None: ...


async def _work(workers: Sequence[Worker], health: Health, stopping: asyncio.Event, drain_timeout_s: float) -> None:
    """Work until `stopping`, or until one of them dies; then let all finish what is under way."""
    ending = asyncio.Event()
    at_work = [asyncio.create_task(worker.run(ending)) for worker in workers]
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait([*at_work, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    await health.leave()
    ending.set()
    _, late = await asyncio.wait(at_work, timeout=drain_timeout_s)
    for task in late:
        task.cancel()
    await asyncio.wait(at_work)
    for task in at_work:
        if not task.cancelled():
            task.result()


def _now_us() -> int:
    return time.time_ns() // 1_000


if __name__ == "__main__":
    lifecycle.main("dlq", dlq_config, lambda config: config.common, serve)
