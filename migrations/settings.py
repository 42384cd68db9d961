"""What the migration command is told by its environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

from migrations.roles import Roles
from services.runtime import kafka_security
from services.runtime.kafka_security import KafkaTls
from services.runtime.reload import BadFile

PARTITIONS_MAX = 10_000
REPLICATION_MAX = 100
STARTUP_TIMEOUT_MAX_S = 3600.0
# Kafka allows topic names of 249 characters; the longest name behind a prefix has 28.
TOPIC_PREFIX_LENGTH_MAX = 200

_T = TypeVar("_T")
_BOOTSTRAP = re.compile(r"[^\s,:]+:\d{1,5}(,[^\s,:]+:\d{1,5})*|(\[[0-9a-fA-F:]+\]:\d{1,5},?)+")
_ROLE_PREFIX = re.compile(r"[a-z][a-z0-9_]{0,49}")
_PREFIX = re.compile(rf"[A-Za-z0-9._-]{{0,{TOPIC_PREFIX_LENGTH_MAX}}}")


class SettingsError(Exception):
    """Variables of the environment are missing or wrong: a line for each."""


@dataclass(frozen=True, slots=True)
class Settings:
    postgres_dsn: str
    kafka_bootstrap: str
    partitions: int
    replication: int
    topic_prefix: str
    startup_timeout_s: float
    roles: Roles | None
    kafka_tls: KafkaTls | None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Reads the FIRSTCOME_ variables. Raises SettingsError that names every bad one, not only the first."""
    faults: list[str] = []

    def read(name: str, default: str | None, parse: Callable[[str], _T], expected: str, fallback: _T) -> _T:
        text = environ.get(name, default)
        if not text and default is None:
            faults.append(f"{name} is not set: it must be {expected}")
            return fallback
        try:
            return parse(text or "")
        except ValueError:
            # The value stays unsaid: a DSN holds a password.
            faults.append(f"{name} is wrong: it must be {expected}")
            return fallback

    settings = Settings(
        read("FIRSTCOME_POSTGRES_DSN", None, _dsn, "postgresql://user[:password]@host:port/database", ""),
        read("FIRSTCOME_KAFKA_BOOTSTRAP", None, _bootstrap, "host:port, or several with commas between them", ""),
        read(
            "FIRSTCOME_TOPIC_PARTITIONS", "12", _between(1, PARTITIONS_MAX), f"a number from 1 to {PARTITIONS_MAX}", 0
        ),
        read(
            "FIRSTCOME_TOPIC_REPLICATION", "3", _between(1, REPLICATION_MAX), f"a number from 1 to {REPLICATION_MAX}", 0
        ),
        read("FIRSTCOME_TOPIC_PREFIX", "", _prefix, f"at most {TOPIC_PREFIX_LENGTH_MAX} of A-Z a-z 0-9 . _ -", ""),
        read(
            "FIRSTCOME_STARTUP_TIMEOUT_S",
            "60",
            _seconds,
            f"seconds, above 0 and at most {STARTUP_TIMEOUT_MAX_S:g}",
            0.0,
        ),
        _roles(environ, faults),
        _kafka_tls(environ, faults),
    )
    if faults:
        raise SettingsError("\n".join(faults))
    return settings


def _roles(environ: Mapping[str, str], faults: list[str]) -> Roles | None:
    prefix = environ.get("FIRSTCOME_POSTGRES_ROLE_PREFIX") or None
    passwords_path = environ.get("FIRSTCOME_POSTGRES_ROLE_PASSWORDS") or None
    if prefix is None:
        if passwords_path is not None:
            faults.append("FIRSTCOME_POSTGRES_ROLE_PASSWORDS needs FIRSTCOME_POSTGRES_ROLE_PREFIX")
        return None
    if not _ROLE_PREFIX.fullmatch(prefix):
        faults.append("FIRSTCOME_POSTGRES_ROLE_PREFIX is wrong: it must be at most 50 of a-z 0-9 _, a letter first")
    return Roles(prefix, passwords_path)


def _kafka_tls(environ: Mapping[str, str], faults: list[str]) -> KafkaTls | None:
    try:
        return kafka_security.from_environment(environ)
    except BadFile as error:
        faults.append(f"FIRSTCOME_KAFKA_TLS_*: {error}")
        return None


def _dsn(text: str) -> str:
    parts = urlsplit(text)
    has_host = bool(parts.hostname) or "host" in parse_qs(parts.query)
    _ = parts.port  # raises ValueError where it is no port
    if parts.scheme not in ("postgresql", "postgres") or not has_host or not parts.path.strip("/"):
        raise ValueError
    return text


def _bootstrap(text: str) -> str:
    if not _BOOTSTRAP.fullmatch(text):
        raise ValueError
    return text


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise ValueError
    return text


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError
        return number

    return parse


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= STARTUP_TIMEOUT_MAX_S:  # refuses nan too
        raise ValueError
    return seconds
