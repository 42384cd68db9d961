"""The rights of the services' PostgreSQL roles: each may do what it does, and no more.

`python -m migrations` logs in as the tables' owner. With FIRSTCOME_POSTGRES_ROLE_PREFIX it gives the roles
<prefix>issuer, <prefix>ledger and <prefix>dlq exactly the rights below, in the transaction that migrates. The roles
exist already, or it makes them where FIRSTCOME_POSTGRES_ROLE_PASSWORDS names a folder with a password for each.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from migrations.waiting import MigrationError

PASSWORD_LENGTH_MAX = 200
_SCRAM_ITERATIONS = 4096

_READ = frozenset({"SELECT"})
_APPEND = frozenset({"SELECT", "INSERT"})
_CHANGE = frozenset({"SELECT", "INSERT", "UPDATE"})

# A release leaves the rights that the one before it uses: both run during an upgrade.
RIGHTS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "issuer": {
        "coupon": _READ,
        "user_coupon": _READ,
        "rejected_issue": _READ,
        "coupon_change": _READ,
        "ledger_progress": _READ,
    },
    "ledger": {
        "coupon": _CHANGE,
        "user_coupon": _APPEND,
        "rejected_issue": _APPEND,
        "coupon_change": _APPEND,
        "ledger_progress": _CHANGE,
    },
    "dlq": {
        "coupon": _READ,
        "user_coupon": _READ,
        "rejected_issue": _READ,
        "coupon_change": _READ,
        "ledger_progress": _CHANGE,
        "dead_letter": _CHANGE,
        "dead_letter_action": _APPEND,
        "replay_job": _CHANGE,
    },
}
"""Service → table → rights. All of them read `alembic_version` besides."""
_EVERY = {"alembic_version": _READ}


@dataclass(frozen=True, slots=True)
class Roles:
    """`passwords_path` of None: the roles are there already."""

    prefix: str
    passwords_path: str | None


def grant(connection: sa.Connection, roles: Roles) -> None:
    """Gives each role its rights and takes all others, on the tables of this schema. Raises MigrationError."""
    for service, rights in RIGHTS.items():
        role = roles.prefix + service
        if roles.passwords_path is not None:
            _set_password(connection, role, _password(Path(roles.passwords_path) / service))
        elif not _exists(connection, role):
            raise MigrationError(
                f"There is no role {role}: create it, let FIRSTCOME_POSTGRES_ROLE_PASSWORDS name a folder with its "
                "password, or unset FIRSTCOME_POSTGRES_ROLE_PREFIX."
            )
        quoted = _quoted(role)
        connection.exec_driver_sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {quoted}")
        for table, kinds in {**_EVERY, **rights}.items():
            connection.exec_driver_sql(f"GRANT {', '.join(sorted(kinds))} ON {table} TO {quoted}")


def _exists(connection: sa.Connection, role: str) -> bool:
    return connection.scalar(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}) is not None


def _set_password(connection: sa.Connection, role: str, password: str) -> None:
    verb = "ALTER" if _exists(connection, role) else "CREATE"
    # What PostgreSQL keeps of a password, made here: else its log, which may have statements in it, would have it too.
    connection.exec_driver_sql(f"{verb} ROLE {_quoted(role)} LOGIN PASSWORD '{scram_verifier(password)}'")


def _password(path: Path) -> str:
    try:
        password = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MigrationError(f"{path} can't be read: it must hold a role's password.") from error
    if not 0 < len(password) <= PASSWORD_LENGTH_MAX or not password.isascii() or not password.isprintable():
        raise MigrationError(f"{path} holds no password: it must be 1 to {PASSWORD_LENGTH_MAX} printable of ASCII.")
    return password


def scram_verifier(password: str) -> str:
    """SCRAM-SHA-256 as PostgreSQL stores it (RFC 5803), for a password of ASCII."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    said = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(_SCRAM_ITERATIONS, *said)


def _quoted(role: str) -> str:
    escaped = role.replace('"', '""')
    return f'"{escaped}"'
