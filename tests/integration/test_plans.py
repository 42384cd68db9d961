"""Look-ups go by key, whatever the table was like when the connection asked for the first time."""

from __future__ import annotations

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.model import CouponId, UserId
from services.issuer.store import IssuerStore
from services.ledger import store as ledger_store
from services.runtime.postgres import connection
from services.runtime.rows import listed

ROWS = 20_000
HOT = CouponId("hot")
_FILL = """
INSERT INTO user_coupon (user_id, coupon_id, request_id, sequence, ticket_partition, ticket_offset, accepted_at)
SELECT 'user-' || n, $1, 'x', n, 0, n, now() FROM generate_series($2::int, $3::int) n"""
_READ = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'user_coupon'"


async def test_a_table_that_was_nearly_empty_is_not_scanned_when_it_has_grown(
    engine: AsyncEngine, database: str
) -> None:
    issuer = IssuerStore(engine, "line")
    keys = [(HOT, UserId(f"user-{number}")) for number in range(ROWS - 250, ROWS + 250)]

    async def ask() -> int:
        """All hot statements; returns how many index entries PostgreSQL has read for them."""
        before = await read()
        granted, _ = await issuer.look_up(keys, [])
        of_user = await issuer.grants(None, keys[0][1], "", 10)
        async with connection(engine) as db:
            pairs = listed(user for _, user in keys), listed(coupon for coupon, _ in keys)
            assert len(await db.fetch(ledger_store._GRANTS, *pairs)) == len(granted)
        assert len(of_user) == (1 if granted else 0)
        return await read() - before

    async def read() -> int:
        async with connection(engine) as db:
            await db.execute("SELECT pg_stat_force_next_flush()")
        return int(await other.fetchval(_READ))

    other = await asyncpg.connect(database)
    try:
        await other.execute(_FILL, HOT, 1, 1)
        await other.execute("ANALYZE user_coupon")
        await ask()
        await other.execute(_FILL, HOT, 2, ROWS)
        # 251 of the 500 have it: each is found twice, and once more by its user.
        assert 2 * 251 <= await ask() < 2 * len(keys)
    finally:
        await other.close()
