"""The batch path while the table grows: rows of other coupons are loaded beside, and the same load runs again."""

from __future__ import annotations

import itertools
import statistics
import time
import uuid
from collections.abc import AsyncIterator

from bench.batches import BATCH, CALLERS, PROCESSES
from bench.load import Load
from bench.session import Session, settle, settled_per_s
from bench.systems import Firstcome

PRELOADED_PARTITION = -1
"""No partition of the line: the checker passes over what has it."""
ROWS_A_COUPON = 1_000_000
HASHES = 1 << 32
CHUNK_ROWS = 20_000
STOCK = 5_000_000
COPY_TIMEOUT_S = 900
_COLUMNS = (
    "user_id", "coupon_id", "request_id", "sequence", "ticket_partition", "ticket_offset", "accepted_at", "issued_at",
)  # fmt: skip
_COUPONS = """
INSERT INTO coupon (coupon_id, topic_partition, display_name, total, remaining, issued_count, state, etag, create_time,
    update_time)
SELECT 'preloaded-' || n, $1, '', $2::bigint, 0, $2::bigint, 'ACTIVE', '-1-' || n, now(), now()
FROM generate_series(0, $3::bigint) n ON CONFLICT DO NOTHING"""
_TIME = "2020-01-01 00:00:00+00"


async def scenario(session: Session) -> None:
    """The same number of requests at each size, several times; the median counts."""
    results, lengths = session.results, session.lengths
    async with session.firstcome() as ours:
        rounds = lengths.growth_rounds * len(lengths.growth_rows)
        await ours.create([f"round-{number}" for number in range(rounds)], STOCK)
        coupons = itertools.count()
        loaded, medians = 0, []
        warm = Load(ours.address, "coupons/round-0", "warm", batch=BATCH // 10, callers=CALLERS, calls=20)
        await settle(ours, warm)
        for rows in lengths.growth_rows:
            began_s = time.monotonic()
            await _preload(ours, loaded, rows)
            loaded = rows
            session.say(f"  {rows:,} rows, loaded in {time.monotonic() - began_s:.0f} s; running …")
            speeds = []
            for _ in range(lengths.growth_rounds):
                number = next(coupons)
                size = min(BATCH, lengths.growth_requests // (2 * PROCESSES))
                load = Load(
                    ours.address,
                    f"coupons/round-{number}",
                    f"user-{number}",
                    batch=size,
                    callers=CALLERS,
                    calls=lengths.growth_requests // size,
                    scattered=True,
                    timeout_s=60,
                )
                speeds.append(settled_per_s(*await settle(ours, load)))
            medians.append(statistics.median(speeds))
            results.put(**{f"settled_per_s_at_{rows}_rows": medians[-1]})
        results.put(growth_ratio=medians[-1] / medians[0], growth_rows=loaded)
        results.line("growth", "settled", list(zip(map(float, lengths.growth_rows), medians, strict=True)))
        await session.check("growth", ours)


async def _preload(ours: Firstcome, start: int, end: int) -> None:
    """Rows `start` to `end` of other coupons, by COPY; then statistics, and no checkpoint left to be made."""
    async with ours.database.acquire() as database:
        await database.execute(
            _COUPONS,
            PRELOADED_PARTITION,
            ROWS_A_COUPON,
            (end - 1) // ROWS_A_COUPON,
        )
        await database.copy_to_table(
            "user_coupon", source=_rows(start, end), columns=_COLUMNS, format="text", timeout=COPY_TIMEOUT_S
        )
        await database.execute("VACUUM (ANALYZE, INDEX_CLEANUP OFF) user_coupon", timeout=COPY_TIMEOUT_S)
        await database.execute("CHECKPOINT", timeout=COPY_TIMEOUT_S)


async def _rows(start: int, end: int) -> AsyncIterator[bytes]:
    """In the order of the key, which loads fast; the users of the load fall between them."""
    request_id = uuid.uuid4()
    for first in range(start, end, CHUNK_ROWS):
        numbers = range(first, min(first + CHUNK_ROWS, end))
        yield "".join(
            f"{(n - start) * HASHES // (end - start):08x}-{n}\tpreloaded-{n // ROWS_A_COUPON}\t{request_id}\t"
            f"{n % ROWS_A_COUPON + 1}\t{PRELOADED_PARTITION}\t{n}\t{_TIME}\t{_TIME}\n"
            for n in numbers
        ).encode()
