"""What there is to do of each kind of job."""

from __future__ import annotations

from collections.abc import Mapping

from coupon.v1 import replay_pb2
from sqlalchemy.ext.asyncio import AsyncEngine

from services.dlq.replay.audit import Audit
from services.dlq.replay.audit_rows import AuditRows
from services.dlq.replay.redrive import Redrive
from services.dlq.replay.republish import Republish
from services.dlq.replay.runner import Work
from services.dlq.replay.span import Ranges
from services.runtime.kafka import PartitionReader, RecordProducer, Topics


def works(
    bootstrap: str, topics: Topics, partition_count: int, engine: AsyncEngine, producer: RecordProducer
) -> Mapping[int, Work]:
    """By kind. `producer` publishes outcomes again."""

    def reader(topic: str, partition: int) -> PartitionReader:
        return PartitionReader(bootstrap, "dlq-replay", topic, partition)

    ranges = Ranges(engine, topics.line, partition_count, reader)
    rows = AuditRows(engine, topics.line, topics.dlq, partition_count)
    return {
        replay_pb2.ReplayJob.REDRIVE: Redrive(engine),
        replay_pb2.ReplayJob.AUDIT: Audit(topics.line, topics.dlq, partition_count, ranges, rows, reader),
        replay_pb2.ReplayJob.REPUBLISH: Republish(
            bootstrap, topics.line, partition_count, ranges, engine, producer, reader
        ),
    }
