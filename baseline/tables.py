"""The Redis system's tables, in schema `baseline`. No unique key over coupon and user: that came with its successor."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from baseline.stock import Granted

POOL_SIZE = 4
TIMEOUT_S = 15.0
_CREATE = """
CREATE SCHEMA IF NOT EXISTS baseline;
CREATE TABLE IF NOT EXISTS baseline.coupon (
    coupon_id text PRIMARY KEY, display_name text NOT NULL, total bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS baseline.issued_coupon (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, coupon_id text NOT NULL, user_id text NOT NULL,
    request_id text NOT NULL, sequence bigint NOT NULL, issued_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE INDEX IF NOT EXISTS issued_coupon_user ON baseline.issued_coupon (user_id, coupon_id);
"""
_INSERT = """
INSERT INTO baseline.issued_coupon (coupon_id, user_id, request_id, sequence)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])"""
_CREATE_LOCK = 7_106_001
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class DatabaseAway(Exception):
    """PostgreSQL does not answer."""


class Tables:
    """Statements of the Redis system; connects when first used."""

    def __init__(self, dsn: str) -> None:
        self._pool = asyncpg.create_pool(
            dsn, min_size=0, max_size=POOL_SIZE, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S
        )

    async def start(self) -> None:
        """Create what is missing."""
        await self._pool
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_CREATE_LOCK})")
            await connection.execute(_CREATE)

    async def stop(self) -> None:
        self._pool.terminate()

    async def add_coupon(self, coupon_id: str, display_name: str, total: int) -> bool:
        """Whether it was new. Raises DatabaseAway."""
        statement = (
            "INSERT INTO baseline.coupon (coupon_id, display_name, total) VALUES ($1, $2, $3) "
            "ON CONFLICT DO NOTHING RETURNING coupon_id"
        )
        return bool(await self._fetch(statement, coupon_id, display_name, total))

    async def coupon_exists(self, coupon_id: str) -> bool:
        """Raises DatabaseAway."""
        return bool(await self._fetch("SELECT 1 FROM baseline.coupon WHERE coupon_id = $1", coupon_id))

    async def issued(self, coupon_id: str, user_id: str) -> tuple[str, int, datetime] | None:
        """The request_id, sequence and time of a stored grant. Raises DatabaseAway."""
        rows = await self._fetch(
            "SELECT request_id, sequence, issued_at FROM baseline.issued_coupon "
            "WHERE user_id = $1 AND coupon_id = $2 ORDER BY id LIMIT 1",
            user_id,
            coupon_id,
        )
        return (rows[0]["request_id"], rows[0]["sequence"], rows[0]["issued_at"]) if rows else None

    async def insert(self, grants: Sequence[Granted]) -> None:
        """Store them, in one transaction. Raises DatabaseAway: then nobody knows of them any more."""
        await self._fetch(
            _INSERT,
            [grant.coupon_id for grant in grants],
            [grant.user_id for grant in grants],
            [grant.request_id for grant in grants],
            [grant.sequence for grant in grants],
        )

    async def _fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(statement, *arguments)
        except _AWAY as error:
            raise DatabaseAway(f"{type(error).__name__}: {error}") from error
