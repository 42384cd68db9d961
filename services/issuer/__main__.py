"""Wires the issuer together."""

from __future__ import annotations

import asyncio
import contextlib

from coupon.v1 import coupon_pb2, coupon_pb2_grpc, issuer_pb2, issuer_pb2_grpc

from services.issuer.admission import Admission
from services.issuer.changes import ChangePath
from services.issuer.issue import IssuePath
from services.issuer.line import Line
from services.issuer.lookout import Lookout
from services.issuer.outcomes import OutcomesTail
from services.issuer.reading import Reading
from services.issuer.servicers import CouponServicer, IssuerServicer
from services.issuer.store import IssuerStore
from services.runtime import lifecycle, metrics, postgres
from services.runtime.config import IssuerConfig, issuer_config
from services.runtime.grpc_server import GrpcServer
from services.runtime.health import Health
from services.runtime.kafka import KafkaAway, PartitionReader, RecordProducer, Topics
from services.runtime.postgres import create_engine

SERVICES = (
    coupon_pb2.DESCRIPTOR.services_by_name["CouponService"].full_name,
    issuer_pb2.DESCRIPTOR.services_by_name["IssuerService"].full_name,
)


async def serve(config: IssuerConfig, stopping: asyncio.Event) -> None:
    common = config.common
    topics = Topics(common.topic_prefix)
    health = Health()
    engine = create_engine(common.postgres_dsn, "firstcome-issuer", pool_size=common.pool_size)
    producer = RecordProducer(common.kafka_bootstrap, "issuer")
    await health.start(common.health_listen)
    tail_stopping = asyncio.Event()
    sampler = metrics.sampler()
    sampler.add(lambda: postgres.observe(engine))
    try:
        partition_count = await lifecycle.wait_for_dependencies(common, engine, stopping)
        with contextlib.suppress(KafkaAway):  # away again: the tail waits for it, and the first call connects
            await producer.start()

        def reader(topic: str, partition: int) -> PartitionReader:
            return PartitionReader(common.kafka_bootstrap, "issuer", topic, partition)

        store = IssuerStore(engine, topics.line)
        tail = OutcomesTail(
            lambda partition: reader(topics.outcomes, partition), partition_count, waiters_max=config.waiters_max
        )
        line = Line(producer, topics.line, partition_count, lambda partition: reader(topics.line, partition))
        admission = Admission(store, tail, partition_count)
        reading = Reading(admission, line, tail, store)
        server = GrpcServer(health, concurrent_calls_max=config.concurrent_calls_max, access=config.access)
        issue_path = IssuePath(admission, line, tail, store, unsettled_max=config.unsettled_max)
        server.add(issuer_pb2_grpc.add_IssuerServiceServicer_to_server, IssuerServicer(issue_path, reading, tail))
        change_path = ChangePath(admission, line, tail, store)
        server.add(coupon_pb2_grpc.add_CouponServiceServicer_to_server, CouponServicer(change_path, reading))

        lookout = Lookout(store, tail, line, admission.hot)
        for sample in (server.observe, tail.observe, lookout.observe):
            sampler.add(sample)
        sampler.start(lookout.run())
        following = asyncio.create_task(tail.run(tail_stopping))
        await lifecycle.first(following, stopping, tail.ready())
        if not stopping.is_set():
            await server.start(config.listen, SERVICES)
            for part in ("", *SERVICES):
                await health.set(part, serving=True)
            await lifecycle.first(following, stopping)
        await health.leave()
        await server.stop(common.drain_timeout_s)
        tail_stopping.set()
        await following
        await line.stop()
    finally:
        tail_stopping.set()
        await sampler.stop()
        await producer.stop()
        await engine.dispose()
        await health.stop()


if __name__ == "__main__":
    lifecycle.main("issuer", issuer_config, lambda config: config.common, serve)
