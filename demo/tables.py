"""The few numbers for people that only the tables have."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg


@dataclass(frozen=True, slots=True)
class Sale:
    """How a coupon sold. The times are those of the first and the last grant's row."""

    coupon_id: str
    display_name: str
    total: int
    issued: int
    remaining: int
    first_grant: datetime | None
    last_grant: datetime | None


class Tables:
    """One connection for reading."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, dsn: str) -> Tables:
        return cls(await asyncpg.connect(dsn.replace("postgresql+asyncpg://", "postgresql://", 1), timeout=10))

    async def close(self) -> None:
        await self._connection.close(timeout=5)

    async def settled(self, line_topic: str) -> int:
        """How many records of the line have a verdict."""
        total = await self._connection.fetchval(
            "SELECT coalesce(sum(next_offset), 0)::bigint FROM ledger_progress WHERE topic = $1", line_topic
        )
        return int(total)

    async def sales(self) -> list[Sale]:
        """All coupons with their first and last grant."""
        rows = await self._connection.fetch(
            "SELECT c.coupon_id, c.display_name, c.total, c.issued_count, c.remaining, min(u.issued_at), "
            "max(u.issued_at) FROM coupon c LEFT JOIN user_coupon u USING (coupon_id) "
            "GROUP BY c.coupon_id ORDER BY c.coupon_id"
        )
        return [Sale(*row) for row in rows]
