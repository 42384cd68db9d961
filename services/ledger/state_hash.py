"""What the books say, as one hash that a rebuilt database must share. `python -m services.ledger state-hash`."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services.runtime import lifecycle, schema
from services.runtime.config import LedgerConfig
from services.runtime.kafka import Topics
from services.runtime.postgres import Connection, DatabaseAway, WrongRevision, check_revision, connection, create_engine

TABLES = (schema.coupon, schema.user_coupon, schema.rejected_issue, schema.coupon_change)
TABLE_TIMEOUT_S = 3_600.0


@dataclass(frozen=True, slots=True)
class TableHash:
    table: str
    row_count: int
    digest: str


async def state_hash(config: LedgerConfig, stopping: asyncio.Event) -> None:
    """Print a line a table and one for all. Raises lifecycle.Unfinished."""
    engine = create_engine(config.common.postgres_dsn, "firstcome-state-hash", pool_size=1)
    try:
        await check_revision(engine)
        hashing = asyncio.create_task(hash_tables(engine, Topics(config.common.topic_prefix).line))
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait([hashing, asked], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not hashing.done():
            hashing.cancel()  # it only reads, and its connection ends with it
            await asyncio.gather(hashing, return_exceptions=True)
            raise lifecycle.Unfinished("stopped")
        hashes = hashing.result()
    except (DatabaseAway, WrongRevision) as error:
        raise lifecycle.Unfinished(str(error)) from error
    finally:
        await engine.dispose()
    for one in hashes:
        print(f"{one.table:<16} {one.row_count:>12} rows  {one.digest}")
    print(f"{'state':<16} {sum(one.row_count for one in hashes):>12} rows  {digest_of(hashes)}", flush=True)


async def hash_tables(engine: AsyncEngine, line_topic: str) -> list[TableHash]:
    """Each table's hash in one snapshot: over the set of its rows, settle times apart, and the line's positions.

    Raises DatabaseAway.
    """
    async with connection(engine) as db, db.transaction(isolation="repeatable_read", readonly=True):
        # How a value is written must not depend on who asks, and a whole table is what is wanted here.
        for setting in ("TimeZone = 'UTC'", "DateStyle = 'ISO'", "bytea_output = 'hex'", "enable_seqscan = on"):
            await db.execute(f"SET LOCAL {setting}")
        await db.execute("SET LOCAL statement_timeout = 0")
        found = [await _hash(db, table.name, _columns(table)) for table in TABLES]
        position = ["topic", "partition", "next_offset", "last_offset", "last_timestamp", "last_checksum"]
        begun = "WHERE topic = $1 AND next_offset > 0"  # a row at 0 says no more than none
        found.append(await _hash(db, schema.ledger_progress.name, position, begun, line_topic))
    return found


def digest_of(hashes: list[TableHash]) -> str:
    """One hash over all."""
    return hashlib.sha256("\n".join(f"{h.table} {h.row_count} {h.digest}" for h in hashes).encode()).hexdigest()[:32]


def _columns(table: sa.Table) -> list[str]:
    """All but those that say when a row was stored."""
    return [column.name for column in table.columns if not _is_stored_at(column)]


def _is_stored_at(column: sa.Column[Any]) -> bool:
    default = column.server_default
    return isinstance(default, sa.DefaultClause) and str(default.arg) == "now()"


async def _hash(db: Connection, table: str, columns: list[str], where: str = "", *arguments: object) -> TableHash:
    statement = _HASH.format(table=table, columns=", ".join(columns), where=where)
    (row,) = await db.fetch(statement, *arguments, timeout=TABLE_TIMEOUT_S)
    high, low = (int(row[name]) % 2**64 for name in ("high", "low"))
    return TableHash(table, row["row_count"], f"{high:016x}{low:016x}")


# Sums do not depend on the order of the rows, and PostgreSQL makes them of many rows at once.
_HASH = """
SELECT count(*) AS row_count,
    coalesce(sum(('x' || encode(substr(hash, 1, 8), 'hex'))::bit(64)::bigint), 0) AS high,
    coalesce(sum(('x' || encode(substr(hash, 9, 8), 'hex'))::bit(64)::bigint), 0) AS low
FROM (SELECT sha256(convert_to(ROW({columns})::text, 'UTF8')) AS hash FROM {table} {where}) AS hashed"""
