"""How fast the ledger drains a backlog for one coupon, beside raw inserts of the same rows, keys and batch size.

`make bench-ledger` prints `BENCH ledger_ratio=<r> ledger_per_s=<n> raw_insert_per_s=<n> …`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from coupon.v1 import coupon_pb2, events_pb2
from rich.console import Console

from stack import Services, Stack, migrate

LINE = "coupon.issue-requests.v1"
OUTCOMES = "coupon.issue-outcomes.v1"
COUPON = "hot"
BATCH_ROWS = 4_000
RAW_RUNS = 3
DRAIN_TIMEOUT_S = 600
POLL_S = 0.02
_HEADERS = [("ce_specversion", b"1.0"), ("ce_source", b"/bench"), ("content-type", b"application/protobuf")]
_RAW_INSERT = """
INSERT INTO raw_insert
    (ticket_partition, user_id, coupon_id, request_id, sequence, ticket_offset, redrive_of, accepted_at)
SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[],
    $8::timestamptz[])"""

console = Console(stderr=True)


async def main(requests: int, least_ratio: float) -> int:
    """Run the measurement; 1 if the ratio is below `least_ratio` or the rows are not all there."""
    with (
        tempfile.TemporaryDirectory() as logs,
        Stack.start(shared_buffers="1GB", postgres_settings={"max_wal_size": "8GB"}) as stack,
    ):
        migrate(stack.kafka_bootstrap, stack.postgres_dsn)
        users = [(f"user-{i:07d}", str(uuid.uuid4())) for i in range(requests)]
        console.print(f"putting {requests} requests into the line …")
        await _fill(stack.kafka_bootstrap, users)
        database = await asyncpg.connect(stack.postgres_dsn, command_timeout=DRAIN_TIMEOUT_S)
        try:
            raw = [await _raw_insert(database, users)]
            console.print(f"raw insert: {raw[0]:.0f} rows/s; draining …")
            with Services(stack.kafka_bootstrap, stack.postgres_dsn, names=("ledger",), log_dir=Path(logs)) as services:
                drained = await _drain(database, stack.kafka_bootstrap, requests)
                cpu_us = _cpu_s(services.processes["ledger"].pid) * 1e6 / requests
            raw += [await _raw_insert(database, users) for _ in range(RAW_RUNS - 1)]
            issued = await database.fetchval("SELECT count(*) FROM user_coupon")
        finally:
            await database.close()
    limit = statistics.median(raw)
    ratio = drained / limit
    runs = "/".join(f"{rate:.0f}" for rate in raw)
    print(
        f"BENCH ledger_ratio={ratio:.2f} ledger_per_s={drained:.0f} raw_insert_per_s={limit:.0f} raw_runs={runs} "
        f"ledger_cpu_us={cpu_us:.1f} requests={requests} issued={issued} batch={BATCH_ROWS}"
    )
    if ratio < least_ratio:
        console.print(f"below the limit of {least_ratio}")
    return 0 if ratio >= least_ratio and issued == requests else 1


def _cpu_s(pid: int | None) -> float:
    """CPU seconds of the ledger's process, start included: what other work on the machine does not change."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def _fill(bootstrap: str, users: list[tuple[str, str]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", max_batch_size=512 * 1024)
    await producer.start()
    try:
        created = events_pb2.CouponChangeRequestedEvent(
            coupon_id=COUPON,
            request_id=str(uuid.uuid4()),
            action=events_pb2.CouponChangeRequestedEvent.CREATE,
            coupon=coupon_pb2.Coupon(display_name="hot", total_quantity=len(users)),
        )
        # The default partitioner's choice is where the coupon belongs.
        where = await producer.send_and_wait(
            LINE, created.SerializeToString(), key=COUPON.encode(), headers=_headers(created, "create")
        )
        for start in range(0, len(users), BATCH_ROWS):
            await _send(producer, where.partition, users[start : start + BATCH_ROWS])
    finally:
        await producer.stop()


async def _send(producer: AIOKafkaProducer, partition: int, users: list[tuple[str, str]]) -> None:
    batch = producer.create_batch()
    for user_id, request_id in users:
        event = events_pb2.CouponIssueRequestedEvent(coupon_id=COUPON, user_id=user_id, request_id=request_id)
        record = {"key": COUPON.encode(), "value": event.SerializeToString(), "headers": _headers(event, request_id)}
        while batch.append(timestamp=None, **record) is None:
            await (await producer.send_batch(batch, LINE, partition=partition))
            batch = producer.create_batch()
    await (await producer.send_batch(batch, LINE, partition=partition))


def _headers(
    event: events_pb2.CouponIssueRequestedEvent | events_pb2.CouponChangeRequestedEvent, ce_id: str
) -> list[tuple[str, bytes]]:
    now = datetime.now(UTC).isoformat().encode()
    own = [("ce_type", event.DESCRIPTOR.full_name.encode()), ("ce_id", ce_id.encode()), ("ce_time", now)]
    return [*_HEADERS, *own]


async def _raw_insert(database: asyncpg.Connection[asyncpg.Record], users: list[tuple[str, str]]) -> float:
    """Rows/s of the same rows into a table with the same keys, a transaction a batch."""
    await database.execute("DROP TABLE IF EXISTS raw_insert; CREATE TABLE raw_insert (LIKE user_coupon INCLUDING ALL)")
    statement = await database.prepare(_RAW_INSERT)
    now = datetime.now(UTC)
    batches = []
    for start in range(0, len(users), BATCH_ROWS):
        part = users[start : start + BATCH_ROWS]
        numbers = list(range(start + 1, start + 1 + len(part)))
        ids, requests = [user for user, _ in part], [request for _, request in part]
        nothing = [None] * len(part)
        batches.append((0, ids, [COUPON] * len(part), requests, numbers, numbers, nothing, [now] * len(part)))
    started = time.perf_counter()
    for arguments in batches:
        async with database.transaction():
            await statement.fetch(*arguments)
    return len(users) / (time.perf_counter() - started)


async def _drain(database: asyncpg.Connection[asyncpg.Record], bootstrap: str, requests: int) -> float:
    """Requests/s from the first batch seen to be committed until all are, and the last outcome is on its topic."""
    deadline = time.perf_counter() + DRAIN_TIMEOUT_S
    started, already = await _settled(database, at_least=1, deadline=deadline)
    await _settled(database, at_least=requests + 1, deadline=deadline)
    outcomes = AIOKafkaConsumer(OUTCOMES, bootstrap_servers=bootstrap)
    await outcomes.start()
    try:
        partitions = [TopicPartition(OUTCOMES, number) for number in outcomes.partitions_for_topic(OUTCOMES) or ()]
        while sum((await outcomes.end_offsets(partitions)).values()) <= requests:
            if time.perf_counter() > deadline:
                raise SystemExit("the outcomes did not appear in time")
            await asyncio.sleep(POLL_S)
        return (requests - already) / (time.perf_counter() - started)
    finally:
        await outcomes.stop()


async def _settled(
    database: asyncpg.Connection[asyncpg.Record], *, at_least: int, deadline: float
) -> tuple[float, int]:
    """When so many records were settled, and how many they were then."""
    while time.perf_counter() < deadline:
        settled = await database.fetchval("SELECT max(next_offset) FROM ledger_progress WHERE topic = $1", LINE)
        if settled is not None and settled >= at_least:
            return time.perf_counter(), settled
        await asyncio.sleep(POLL_S)
    raise SystemExit("the ledger did not drain the backlog in time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--least-ratio", type=float, default=0.0, help="fail below it (0: never; machines are noisy)")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.requests, arguments.least_ratio)))
