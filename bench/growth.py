"""The batch path on a growing table: in a database for each size, rows of other coupons stand beside.

The sizes take turns, as everything does whose ratio counts: loading takes minutes, in which the machine may change.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from itertools import pairwise

from bench.batches import BATCH, CALLERS, PROCESSES
from bench.load import Load
from bench.results import median_ratio, ratios_text
from bench.session import Session, settle, settled_per_s
from bench.systems import Firstcome

PRELOADED_PARTITION = -1
"""No partition of the line: the checker passes over what has it."""
ROWS_A_COUPON = 1_000_000
HASHES = 1 << 32
CHUNK_ROWS = 20_000
STOCK = 5_000_000
LOAD_TIMEOUT_S = 900
LOADERS = 2
"""As many as there are cores."""
_COLUMNS = (
    "user_id", "coupon_id", "request_id", "sequence", "ticket_partition", "ticket_offset", "accepted_at", "issued_at",
)  # fmt: skip
_COUPONS = """
INSERT INTO coupon (coupon_id, topic_partition, display_name, total, remaining, issued_count, state, etag, create_time,
    update_time)
SELECT 'preloaded-' || n, $1, '', $2::bigint, 0, $2::bigint, 'ACTIVE', '-1-' || n, now(), now()
FROM generate_series(0, $3::bigint) n ON CONFLICT DO NOTHING"""
_KEYS = """
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = 'user_coupon'::regclass AND contype IN ('p', 'u') ORDER BY conname"""
_INDEX_MEMORY = "1GB"
_TIME = "2020-01-01 00:00:00+00"


async def scenario(session: Session) -> None:
    """The same load on a table of each size in turn, several times; medians count, of ratios and of speeds.

    The first rounds warm up and are told apart: behind the loader's checkpoint PostgreSQL reads each page of the key
    anew, and writes it into its log once as a whole when it changes it. Of the largest table that is 0.7 pages a
    request in the first round, 0.2 in the second and 0.05 in the third; of the smallest 0.01 in the first.
    """
    results, sizes, warm = session.results, session.lengths.growth_rows, session.lengths.growth_warm_rounds
    rounds = warm + session.lengths.growth_rounds
    async with AsyncExitStack() as open_:
        systems = {rows: await open_.enter_async_context(session.firstcome()) for rows in sizes}
        for rows, ours in systems.items():
            began_s = time.monotonic()
            await ours.create(["warm", *(f"round-{number}" for number in range(rounds))], STOCK)
            await settle(ours, _load(ours, "warm", session.lengths.growth_requests // 10))
            await _preload(ours, rows)
            session.say(f"  {rows:,} rows, loaded in {time.monotonic() - began_s:.0f} s")
        speeds: dict[int, list[float]] = {rows: [] for rows in sizes}
        for number in range(rounds):
            for rows, ours in systems.items():
                load = _load(ours, f"round-{number}", session.lengths.growth_requests)
                speeds[rows].append(settled_per_s(*await settle(ours, load)))
        await session.check_all({f"growth_{rows}": ours for rows, ours in systems.items()})
    largest, smallest = speeds[max(sizes)], speeds[min(sizes)]
    medians = {rows: statistics.median(speeds[rows][warm:]) for rows in sizes}
    results.put(**{f"settled_per_s_at_{rows}_rows": per_s for rows, per_s in medians.items()})
    results.put(
        growth_ratio=median_ratio(largest[warm:], smallest[warm:]),
        growth_rounds=ratios_text(largest[warm:], smallest[warm:]),
        growth_warm_rounds=ratios_text(largest[:warm], smallest[:warm]),
        growth_rows=max(sizes),
    )
    results.line("growth", "settled", [(float(rows), per_s) for rows, per_s in medians.items()])


def _load(ours: Firstcome, coupon_id: str, requests: int) -> Load:
    size = min(BATCH, requests // (2 * PROCESSES))
    return Load(
        ours.address,
        f"coupons/{coupon_id}",
        coupon_id,
        batch=size,
        callers=CALLERS,
        calls=requests // size,
        scattered=True,
        timeout_s=60,
    )


async def _preload(ours: Firstcome, count: int) -> None:
    """So many rows of other coupons, by COPY; then their keys, statistics, and no checkpoint left to be made."""
    database = ours.database
    await database.execute(_COUPONS, PRELOADED_PARTITION, ROWS_A_COUPON, (count - 1) // ROWS_A_COUPON)
    keys = await database.fetch(_KEYS)
    await database.execute(_alter(f"DROP CONSTRAINT {name}" for name, _ in keys))
    bounds = [count * part // LOADERS for part in range(LOADERS + 1)]
    async with asyncio.TaskGroup() as copies:
        for part in pairwise(bounds):
            copies.create_task(
                database.copy_to_table(
                    "user_coupon", source=_rows(count, *part), columns=_COLUMNS, format="text", timeout=LOAD_TIMEOUT_S
                )
            )
    await database.execute(
        f"SET maintenance_work_mem = '{_INDEX_MEMORY}';" + _alter(f"ADD CONSTRAINT {name} {key}" for name, key in keys),
        timeout=LOAD_TIMEOUT_S,
    )
    await database.execute("VACUUM (ANALYZE, INDEX_CLEANUP OFF) user_coupon", timeout=LOAD_TIMEOUT_S)
    await database.execute("CHECKPOINT", timeout=LOAD_TIMEOUT_S)


def _alter(actions: Iterable[str]) -> str:
    return "ALTER TABLE user_coupon " + ", ".join(actions)


async def _rows(count: int, first: int, end: int) -> AsyncIterator[bytes]:
    """Part of so many, in the order of the key; the users of the load fall between them."""
    request_id = uuid.uuid4()
    for start in range(first, end, CHUNK_ROWS):
        numbers = range(start, min(start + CHUNK_ROWS, end))
        yield "".join(
            f"{n * HASHES // count:08x}-{n}\tpreloaded-{n // ROWS_A_COUPON}\t{request_id}\t"
            f"{n % ROWS_A_COUPON + 1}\t{PRELOADED_PARTITION}\t{n}\t{_TIME}\t{_TIME}\n"
            for n in numbers
        ).encode()
