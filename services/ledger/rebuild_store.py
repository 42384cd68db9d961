"""A rebuild's own SQL: that it has begun, and that it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncEngine

from services.runtime import schema
from services.runtime.postgres import connection
from services.runtime.progress import Position, ProgressRows

PARKED_TIMEOUT_S = 600.0


class NotEmpty(Exception):
    """The database has rows that no rebuild has written."""


class RebuildStore:
    """A database that is being rebuilt has a row more in `ledger_progress`, which names no topic that there is."""

    def __init__(self, engine: AsyncEngine, line_topic: str) -> None:
        self._engine = engine
        self._mark = f"{line_topic}/rebuild"
        self._progress = ProgressRows(line_topic)

    async def begin(self) -> bool:
        """Note that a rebuild begins; whether one had begun before. Raises NotEmpty, DatabaseAway."""
        async with connection(self._engine) as db, db.transaction():
            if await db.fetchval(_IS_MARKED, self._mark):
                return True
            tables = [table.name for table in schema.metadata.sorted_tables]
            full = [name for name in tables if await db.fetchval(f"SELECT EXISTS (SELECT FROM {name})")]
            if full:
                raise NotEmpty(
                    f"the database is not empty: there are rows in {', '.join(full)}; a rebuild needs a new database "
                    "with nothing but python -m migrations done to it"
                )
            await db.execute(_MARK, self._mark)
        return False

    async def position(self, partition: int) -> Position:
        async with connection(self._engine) as db:
            return await self._progress.take(db, partition)

    async def parked(self, partition: int) -> list[int]:
        """Offsets of the partition's parked records, ascending."""
        async with connection(self._engine) as db, db.transaction():
            await db.execute("SET LOCAL statement_timeout = 0")
            rows = await db.fetch(_PARKED, partition, timeout=PARKED_TIMEOUT_S)
        return [row["ticket_offset"] for row in rows]

    async def finish(self, published: Sequence[tuple[Position, int]]) -> None:
        """Note for each partition from where on a ledger has to publish, and that the rebuild is over.

        `dlq_offset` stays 0: the ledger reads its DLQ partition once as it takes its position. Raises PositionLost.
        """
        async with connection(self._engine) as db, db.transaction():
            for before, published_offset in published:
                await self._progress.move(db, before, replace(before, published_offset=published_offset))
            await db.execute(_UNMARK, self._mark)


_IS_MARKED = "SELECT EXISTS (SELECT FROM ledger_progress WHERE topic = $1)"
_MARK = """
INSERT INTO ledger_progress (topic, partition, next_offset, published_offset, dlq_offset) VALUES ($1, 0, 0, 0, 0)"""
_UNMARK = "DELETE FROM ledger_progress WHERE topic = $1"
_PARKED = """
SELECT ticket_offset FROM rejected_issue WHERE ticket_partition = $1 AND reason = 'PARKED' ORDER BY ticket_offset"""
