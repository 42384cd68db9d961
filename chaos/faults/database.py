"""Another database in the place of the one that everything was written to: an older copy, or one made from Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import TypeAlias
from urllib.parse import urlsplit

import asyncpg

from chaos.fault import Fault, Setup
from chaos.plan import PARTITIONS
from chaos.world import NotAsExpected, World
from demo.garbage import make_garbage, put_garbage
from stack import migrate
from stack.locations import REPOSITORY
from stack.postgres import binary
from stack.services import environment

REBUILD_TIMEOUT_S = 60.0
Server: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_STORING = ("ledger-0", "ledger-1", "dlq-0")


async def _restored(world: World, rng: random.Random) -> None:
    """A copy is made in mid-rush; seconds later PostgreSQL is put back to it, under the services' feet."""
    async with _garbage(world), _other_database(world, "copy") as (server, name, dsn):
        await world.at(rng.uniform(2.0, 3.0))
        copy = world.folder / "copy.dump"
        await _run(str(binary("pg_dump")), "--format=custom", f"--file={copy}", world.dsn)
        await world.at(rng.uniform(5.0, 6.0))
        await _run(str(binary("pg_restore")), f"--dbname={dsn}", str(copy))
        lost = await _settled(world.dsn) - await _settled(dsn)
        await _put_in_place(world, server, name)
        world.note(f"{lost} settled records lost and settled again")
        world.require(lost > 0, "the copy is not older")


async def _rebuilt(world: World, rng: random.Random) -> None:
    """The books are made again from Kafka while the rush goes on, and take the place of those that were there."""
    async with _garbage(world), _other_database(world, "rebuilt") as (server, name, dsn):
        await world.at(rng.uniform(3.0, 4.0))
        await asyncio.to_thread(migrate, world.kafka_bootstrap, dsn, partitions=PARTITIONS, topic_prefix=world.prefix)
        settings = {**world.settings("ledger-0"), "FIRSTCOME_POSTGRES_DSN": dsn, "FIRSTCOME_METRICS_LISTEN": "off"}
        await _run(sys.executable, "-m", "services.ledger", "rebuild", env=environment(settings))
        for process in _STORING:
            world.kill(process)
        rebuilt, before = await _settled(dsn), await _settled(world.dsn)
        await _put_in_place(world, server, name)
        await world.start_again(*_STORING)
        world.note(f"{rebuilt} of {before} settled records made again from Kafka")
        world.require(rebuilt > 0, "nothing was made again")


@contextlib.asynccontextmanager
async def _garbage(world: World) -> AsyncIterator[None]:
    """Dead letters come before, while and after."""
    garbage = make_garbage("hot-0", 1, PARTITIONS) * 3
    putting = asyncio.create_task(put_garbage(world.kafka_bootstrap, world.line, garbage, 7.0))
    try:
        yield
        await putting
    finally:
        putting.cancel()


@contextlib.asynccontextmanager
async def _other_database(world: World, what: str) -> AsyncIterator[tuple[Server, str, str]]:
    """A connection to the server, and the name and DSN of a new, empty database."""
    name = f"{world.dsn.rpartition('/')[2]}_{what}"
    server = await asyncpg.connect(world.stack.postgres_dsn, timeout=10)
    try:
        await server.execute(f'CREATE DATABASE "{name}"')
        yield server, name, urlsplit(world.dsn)._replace(path=f"/{name}").geturl()
    finally:
        await server.close(timeout=5)


async def _put_in_place(world: World, server: Server, other: str) -> None:
    """Whoever is connected is cut off, and finds the other database at the next try."""
    name = world.dsn.rpartition("/")[2]
    await server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    await _rename(server, name, f"{name}_lost")
    await _rename(server, other, name)
    await server.execute(f'DROP DATABASE "{name}_lost" WITH (FORCE)')


async def _rename(server: Server, name: str, to: str) -> None:
    for _ in range(100):
        try:
            await server.execute(f'ALTER DATABASE "{name}" RENAME TO "{to}"')
            return
        except asyncpg.ObjectInUseError:
            await asyncio.sleep(0.05)
    raise NotAsExpected(f"database {name} is always in use")


async def _settled(dsn: str) -> int:
    """How many records of the line are settled in the database."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return int(await connection.fetchval(_SETTLED, "%.v1"))
    finally:
        await connection.close(timeout=5)


async def _run(*command: str, env: dict[str, str] | None = None) -> None:
    def call() -> None:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=REBUILD_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise NotAsExpected(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr[-1000:]}")

    await asyncio.to_thread(call)


_SETTLED = "SELECT coalesce(sum(next_offset), 0)::int AS n FROM ledger_progress WHERE topic LIKE $1"
FAULTS = (
    Fault("postgres-restored", "PostgreSQL is put back to a copy that is seconds older, in mid-rush", _restored),
    Fault(
        "books-rebuilt",
        "the books are made again from Kafka under load and take the place of those there were",
        _rebuilt,
        Setup(rush_s=10.0),
    ),
)
