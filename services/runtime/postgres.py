"""PostgreSQL as the services use it: one engine, asyncpg connections through it, and what an error means."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TypeAlias, cast

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.runtime import metrics, schema

COMMAND_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 5.0
_SERVER_SETTINGS = {
    "lock_timeout": "5000",
    "statement_timeout": "15000",
    # Frees the row lock of a ledger that is frozen inside its transaction.
    "idle_in_transaction_session_timeout": "3000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    # The hot statements look keys up, and must not scan for them. A plan that is kept is one for the table as it
    # was with few rows, and reads a whole index for each key for ever. To plan anew takes less than 0.1 ms.
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

END_FROZEN = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = current_setting('application_name')
    AND state = 'active' AND wait_event = 'ClientRead' AND state_change < clock_timestamp() - interval '3 s'"""
"""Ends those of the same service that froze within a statement, while it was prepared or rows were sent: PostgreSQL
waits for the rest without any of these time limits, and their locks would stay for ever. To end a living one by mistake
does no harm: it begins anew."""

_POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01T00:00:00Z."""

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""An asyncpg connection; the type under which the services know it. Its timestamptz are microseconds since the Unix
epoch."""
UniqueViolation = asyncpg.UniqueViolationError
"""A key is taken: what a statement raises, and for whoever is outside of `connection` BooksWrong."""


_FOREIGN = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    AsyncAdapt_asyncpg_dbapi.Error,  # of a connection that can't be made
    DBAPIError,
    InterfaceError,
    sa.exc.TimeoutError,
    OSError,
    TimeoutError,
)


class DatabaseAway(Exception):
    """PostgreSQL does not answer, or asks to try again. After a COMMIT it leaves open whether that took effect."""


class DatabaseRefused(Exception):
    """PostgreSQL can't store what it was given (SQLSTATE 22xxx): one of the values will never fit."""


class BooksWrong(Exception):
    """An integrity rule of the tables was broken (SQLSTATE 23xxx, or a count that does not agree)."""


class WrongRevision(Exception):
    """The tables are not those of this release; the message says what to run."""


def create_engine(dsn: str, application_name: str, *, pool_size: int) -> AsyncEngine:
    """An engine for `postgresql://user[:password]@host:port/database`; connects on first use."""

    # The driver reads the DSN itself, so that all of its options work (sslmode and the like), and the PG… variables.
    async def connect() -> Connection:
        made = await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings={"application_name": application_name, **_SERVER_SETTINGS},
        )
        await made.set_type_codec(
            "timestamptz", schema="pg_catalog", format="tuple", encoder=_to_postgres, decoder=_from_postgres
        )
        return made

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=pool_size,
        max_overflow=0,
        pool_use_lifo=True,  # the same server process again and again: what it needs is in the nearest memory
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_recycle=1800,
    )


# Times are microseconds since the Unix epoch here as well. Beside being what everybody has, they are as PostgreSQL has
# them: of a datetime the driver looks at each so thoroughly that it took half of the time of sending a row.
def _to_postgres(time_us: int) -> tuple[int]:
    return (time_us - _POSTGRES_EPOCH_US,)


def _from_postgres(told: tuple[int]) -> int:
    return told[0] + _POSTGRES_EPOCH_US


@contextlib.asynccontextmanager
async def connection(engine: AsyncEngine) -> AsyncIterator[Connection]:
    """An asyncpg connection from the engine's pool; any error inside ends it, for its state is in doubt then.

    Raises DatabaseAway, DatabaseRefused, BooksWrong.
    """
    with translated():
        # Past SQLAlchemy's own connections: to make and end one each time takes three times as long as the rest.
        held = await engine.raw_connection()
        driver = cast(Connection, held.driver_connection)
        try:
            yield driver
        except BaseException:
            lost = driver.is_closed()
            driver.terminate()
            held.invalidate()
            if lost:  # the others of the pool will have gone the same way: each would cost another failure
                await _forget(engine)
            raise
        finally:
            held.close()


async def _forget(engine: AsyncEngine) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(engine.dispose(), timeout=CONNECT_TIMEOUT_S)


def observe(engine: AsyncEngine) -> None:
    """Note how much of the pool is in use."""
    pool = cast(sa.QueuePool, engine.pool)
    metrics.POOL_CONNECTIONS.set(pool.checkedout(), "used")
    metrics.POOL_CONNECTIONS.set(pool.checkedin(), "idle")
    metrics.POOL_CONNECTIONS_MAX.set(pool.size())


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise what drivers raise as the errors above, by SQLSTATE; anything unknown passes unchanged."""
    try:
        yield
    except _FOREIGN as error:
        translation = _translate(error)
        if isinstance(translation, DatabaseAway):
            metrics.DEPENDENCY_ERRORS.add(1, metrics.POSTGRES)
        raise translation from error


def _translate(error: Exception) -> Exception:
    sqlstate = _sqlstate(error)
    text = f"{type(error).__name__}: {error}"
    # A migration has just changed what a prepared statement returns: the next connection prepares it anew.
    if sqlstate is None or isinstance(_origin(error), asyncpg.InvalidCachedStatementError):
        return DatabaseAway(text)
    if sqlstate.startswith("22"):
        return DatabaseRefused(text)
    if sqlstate.startswith("23"):
        return BooksWrong(text)
    if sqlstate[:2] in ("08", "25", "28", "3D", "40", "53", "55", "57", "58"):
        return DatabaseAway(text)
    return error


def _sqlstate(error: Exception) -> str | None:
    return getattr(_origin(error), "sqlstate", None)


def _origin(error: BaseException | None) -> BaseException | None:
    """What the driver raised: the one with an SQLSTATE."""
    while error is not None and not isinstance(getattr(error, "sqlstate", None), str):
        error = getattr(error, "orig", None) or error.__cause__
    return error


async def check_revision(engine: AsyncEngine) -> None:
    """Raises WrongRevision unless the migrations have run as far as this release needs, DatabaseAway."""
    with translated():
        async with engine.connect() as held:
            known = await held.scalar(sa.text("SELECT to_regclass('alembic_version') IS NOT NULL"))
            found = await held.scalar(sa.text("SELECT max(version_num) FROM alembic_version")) if known else None
    if found is None or found < schema.REVISION:
        raise WrongRevision(
            f"the database is at revision {found or 'none'}, this release needs {schema.REVISION}: "
            "run the migration command (python -m migrations)"
        )
