"""The tables: Alembic's upgrade to the newest revision in one transaction."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from migrations.roles import Roles, grant
from migrations.waiting import MigrationError, NotYet, until

# Any number will do, as long as nobody else locks it in this database ("firstcome", shortened).
ADVISORY_LOCK = 0x6669727374636F6D
CONNECT_TIMEOUT_S = 10
# A migration that waits for a table's lock makes everybody behind it wait: give up soon and try again.
LOCK_TIMEOUT_S = 3
STATEMENT_TIMEOUT_S = 60
# The client's own limit, for a socket that died without a word; behind the server's, which tells more.
COMMAND_TIMEOUT_S = STATEMENT_TIMEOUT_S + 10

# Connection lost or refused, shutting down or starting, out of connections, lock not got, deadlock.
_TRANSIENT_SQLSTATES = ("08", "53", "57P", "55P03", "40P01")


async def upgrade(dsn: str, deadline: float, roles: Roles | None = None) -> str:
    """Brings the database to the newest revision and returns it, and the services' roles to their rights.

    Waits for PostgreSQL, and for another migration command to finish, up to `deadline` (of time.monotonic()).
    Raises MigrationError.
    """
    return await until(deadline, lambda: _upgrade_once(dsn, roles))


def newest_revision() -> str:
    """The revision that the scripts end in."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    if head is None:
        raise MigrationError("migrations/versions is empty: the installation is not whole.")
    return head


async def _upgrade_once(dsn: str, roles: Roles | None) -> str:
    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S)

    # The driver reads the DSN itself, so that all of its options work (sslmode and the like).
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade_locked, roles)
    except (MigrationError, NotYet):
        raise
    except CommandError as error:
        raise MigrationError(
            f"The database is at a revision that this version does not know ({error}). "
            "It was migrated by a newer version: run that one."
        ) from error
    except Exception as error:
        raise _translated(error) from error
    finally:
        await engine.dispose()
    return newest_revision()


def _upgrade_locked(connection: sa.Connection, roles: Roles | None) -> None:
    connection.execute(
        sa.text("SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :statement, true)"),
        {"lock": f"{LOCK_TIMEOUT_S}s", "statement": f"{STATEMENT_TIMEOUT_S}s"},
    )
    # Held until the end of the transaction. Alembic reads its version table after this, so who comes second sees it.
    locked = connection.scalar(sa.text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    if not locked:
        raise NotYet("Another migration command is at work on this database.")
    command.upgrade(_config(connection), "head")
    if roles is not None:
        grant(connection, roles)


def _config(connection: sa.Connection | None) -> Config:
    config = Config(attributes={"connection": connection})
    # A percent sign would be read as an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _translated(error: Exception) -> Exception:
    cause = getattr(error, "orig", None) or error
    sqlstate = str(getattr(cause, "sqlstate", None) or "")
    if isinstance(cause, OSError | TimeoutError) or sqlstate.startswith(_TRANSIENT_SQLSTATES):
        return NotYet(f"PostgreSQL cannot be reached or is busy: {_line(cause)}.")
    if sqlstate.startswith("28"):
        return MigrationError(f"PostgreSQL refused the login: {_line(cause)}. Check FIRSTCOME_POSTGRES_DSN.")
    if sqlstate == "3D000":
        return MigrationError(f"{_line(cause)}. Create it, or name another in FIRSTCOME_POSTGRES_DSN.")
    if sqlstate:
        return MigrationError(f"PostgreSQL refused a step, and nothing was changed: {_line(cause)} ({sqlstate}).")
    if isinstance(cause, asyncpg.InterfaceError):
        return NotYet(f"The connection to PostgreSQL was lost: {_line(cause)}.")
    return error


def _line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
