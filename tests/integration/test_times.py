"""Times go to PostgreSQL and come back as microseconds since the Unix epoch."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.model import TIME_US_MAX, TIME_US_MIN
from services.runtime.postgres import DatabaseRefused, connection

TIMES_US = (0, -1, 1, 946_684_799_999_999, 946_684_800_000_000, 1_790_000_000_123_456, TIME_US_MIN, TIME_US_MAX)
_MICROSECONDS = "SELECT (extract(epoch FROM $1::timestamptz) * 1000000)::bigint"


async def test_each_means_to_postgresql_what_it_means_here(engine: AsyncEngine) -> None:
    async with connection(engine) as db:
        for time_us in TIMES_US:
            assert await db.fetchval(_MICROSECONDS, time_us) == time_us
            assert await db.fetchval("SELECT $1::timestamptz", time_us) == time_us
        assert await db.fetchval("SELECT '2026-01-02T03:04:05.678901+00'::timestamptz") == 1_767_323_045_678_901
        listed = [None, *TIMES_US]
        assert await db.fetchval("SELECT $1::timestamptz[]", listed) == listed
        await db.execute("CREATE TEMPORARY TABLE time (at timestamptz)")
        await db.copy_records_to_table("time", records=[(time,) for time in listed], columns=("at",))
        rows = await db.fetch("SELECT at FROM time ORDER BY at NULLS FIRST")
        assert [row["at"] for row in rows] == [None, *sorted(TIMES_US)]
    for impossible in (-(2**62), 2**70):
        with pytest.raises(DatabaseRefused):
            async with connection(engine) as db:
                await db.fetchval("SELECT $1::timestamptz", impossible)
