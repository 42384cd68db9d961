"""What is done within a connection of the pool, and what that does to the connection and its place."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.runtime.postgres import BooksWrong, DatabaseAway, connection, create_engine

PID = "SELECT pg_backend_pid()"


async def pid(engine: AsyncEngine) -> int:
    async with asyncio.timeout(5), connection(engine) as db:
        found: int = await db.fetchval(PID)
        return found


async def test_it_is_used_again(engine: AsyncEngine) -> None:
    assert await pid(engine) == await pid(engine)


async def test_a_database_that_is_not_there_is_away(database: str) -> None:
    engine = create_engine(f"{database}_not", "test", pool_size=1)
    for _ in range(3):  # nor does one that could not be made keep its place
        with pytest.raises(DatabaseAway, match="does not exist"):
            await pid(engine)
    await engine.dispose()


async def test_after_an_error_it_is_not_used_again(engine: AsyncEngine) -> None:
    before = await pid(engine)
    with pytest.raises(BooksWrong):
        async with connection(engine) as db:
            await db.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '23505'; END $$")
    after = await pid(engine)
    assert after != before
    with pytest.raises(RuntimeError, match="of the caller"):
        async with connection(engine):
            raise RuntimeError("of the caller")
    assert await pid(engine) != after


async def test_who_is_cancelled_within_gives_its_place_back(engine: AsyncEngine) -> None:
    before = await pid(engine)
    within = asyncio.Event()

    async def stay() -> None:
        async with connection(engine) as db:
            within.set()
            await db.fetchval("SELECT pg_sleep(60)")

    staying = asyncio.create_task(stay())
    await within.wait()
    with pytest.raises(TimeoutError):  # there is but one place
        async with asyncio.timeout(0.2):
            await pid(engine)
    staying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await staying
    assert await pid(engine) != before
