"""How fast the ledger drains a backlog for one coupon, beside raw inserts of its rows and raw produce of its records.

The ledger is alone then, as the raw insert is: an issuer beside it would read all of its outcomes on the same two
cores, which `batches` measures. Raw insert: the same rows into a table with the same keys, a transaction a batch of the
same size. Raw produce: the same records, as fast as one producer appends them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer
from coupon.v1 import coupon_pb2, events_pb2

from bench.session import Session, Usage, Watch, rates
from bench.systems import Firstcome

COUPON = "hot"
BATCH_ROWS = 32_000
PRODUCER_BATCH_BYTES = 512 * 1024
User = tuple[str, str]
"""user_id and request_id."""
_HEADERS = [("ce_specversion", b"1.0"), ("ce_source", b"/bench"), ("content-type", b"application/protobuf")]
_RAW_INSERT = """
INSERT INTO raw_insert
    (ticket_partition, user_id, coupon_id, request_id, sequence, ticket_offset, redrive_of, accepted_at)
SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[],
    $8::timestamptz[])"""


async def scenario(session: Session) -> None:
    """Fill the line while no ledger runs, then start one."""
    results, requests = session.results, session.lengths.backlog_requests
    users = [(f"user-{number:07d}", str(uuid.uuid4())) for number in range(requests)]
    async with session.firstcome(names=("ledger",)) as ours:
        ledger = ours.processes["ledger"]
        await asyncio.to_thread(ledger.stop)
        session.say(f"  putting {requests:,} requests into the line …")
        produced_per_s = await _fill(ours, users, session.lengths.produce_requests)
        raw = [await _raw_insert(ours, users) for _ in range(min(session.lengths.raw_runs, 1))]
        session.say(f"  raw insert: {raw[0]:,.0f} rows/s; draining …")
        ledger.start()
        async with Watch(ours) as watch:
            await ours.until_settled(1)
            first_s, already = time.time(), await ours.settled()
            usage = Usage(ours)
            await watch.until_settled(requests + 1)
            usage.stop()
        drained = requests + 1 - already
        seconds = max(watch.last_settled_s - first_s, 1e-9)
        raw += [await _raw_insert(ours, users) for _ in range(session.lengths.raw_runs - 1)]
        ((issued,),) = await ours.query("SELECT count(*) FROM user_coupon")
        if issued != requests:
            results.fail(f"ledger: {issued} of {requests} issued")
        limit = statistics.median(raw)
        results.put(
            ledger_per_s=drained / seconds,
            ledger_requests=requests,
            raw_insert_per_s=limit,
            raw_insert_runs="/".join(f"{rate:.0f}" for rate in raw),
            ledger_ratio=drained / seconds / limit,
            ledger_cpu_us=usage.by_name_us(drained)["ledger"],
            ledger_postgres_cpu_us=usage.by_name_us(drained)["postgres"],
            raw_produce_per_s=produced_per_s,
        )
        if "batch_accepted_per_s" in results.figures:
            results.put(produce_ratio=float(results.figures["batch_accepted_per_s"]) / produced_per_s)
        results.line("backlog", "settled", rates(watch.settled))
        results.line("lag", "backlog", watch.lag)
        await session.check("ledger", ours)


async def _fill(ours: Firstcome, users: Sequence[User], produce_requests: int) -> float:
    """Put the requests into the line, encoded before the clock runs; returns records/s of the first of them."""
    producer = AIOKafkaProducer(
        bootstrap_servers=ours.stack.kafka_bootstrap, acks="all", max_batch_size=PRODUCER_BATCH_BYTES
    )
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
            ours.line, created.SerializeToString(), key=COUPON.encode(), headers=_headers(created, "create")
        )
        measured = _batches(producer, users[:produce_requests])
        began_s = time.perf_counter()
        for batch in measured:
            await (await producer.send_batch(batch, ours.line, partition=where.partition))
        per_s = min(produce_requests, len(users)) / (time.perf_counter() - began_s)
        for start in range(produce_requests, len(users), BATCH_ROWS):
            for batch in _batches(producer, users[start : start + BATCH_ROWS]):
                await (await producer.send_batch(batch, ours.line, partition=where.partition))
        return per_s
    finally:
        await producer.stop()


def _batches(producer: AIOKafkaProducer, users: Sequence[User]) -> list[Any]:
    batches = [producer.create_batch()]
    for user_id, request_id in users:
        event = events_pb2.CouponIssueRequestedEvent(coupon_id=COUPON, user_id=user_id, request_id=request_id)
        record = {"key": COUPON.encode(), "value": event.SerializeToString(), "headers": _headers(event, request_id)}
        while batches[-1].append(timestamp=None, **record) is None:
            batches[-1].close()
            batches.append(producer.create_batch())
    return batches


def _headers(
    event: events_pb2.CouponIssueRequestedEvent | events_pb2.CouponChangeRequestedEvent, ce_id: str
) -> list[tuple[str, bytes]]:
    now = datetime.now(UTC).isoformat().encode()
    own = [("ce_type", event.DESCRIPTOR.full_name.encode()), ("ce_id", ce_id.encode()), ("ce_time", now)]
    return [*_HEADERS, *own]


async def _raw_insert(ours: Firstcome, users: Sequence[User]) -> float:
    """Rows/s of the same rows into a table with the same keys, a transaction a batch."""
    database = await asyncpg.connect(ours.dsn)
    try:
        # Microseconds since 2000, as PostgreSQL has them: of datetimes the driver would make a tenth more work.
        await database.set_type_codec(
            "timestamptz", schema="pg_catalog", format="tuple", encoder=lambda us: (us,), decoder=lambda told: told[0]
        )
        await database.execute("CREATE TABLE raw_insert (LIKE user_coupon INCLUDING ALL)")
        statement = await database.prepare(_RAW_INSERT)
        now = (datetime.now(UTC) - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        batches: list[tuple[Any, ...]] = []
        for start in range(0, len(users), BATCH_ROWS):
            part = users[start : start + BATCH_ROWS]
            numbers = list(range(start + 1, start + 1 + len(part)))
            ids, requests = [user for user, _ in part], [request for _, request in part]
            nothing = [None] * len(part)
            batches.append((0, ids, [COUPON] * len(part), requests, numbers, numbers, nothing, [now] * len(part)))
        began_s = time.perf_counter()
        for arguments in batches:
            async with database.transaction():
                await statement.fetch(*arguments)
        per_s = len(users) / (time.perf_counter() - began_s)
        await database.execute("DROP TABLE raw_insert")
        return per_s
    finally:
        await database.close()
