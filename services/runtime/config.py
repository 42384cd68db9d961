"""Settings from the environment: one frozen object a service, read once in its __main__; every fault named at once."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass


class ConfigError(Exception):
    """Settings that can't be used; the message names each and says what it may be."""


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._faults: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        value = self._environ.get(name) or default
        if value is None:
            self._faults.append(f"{name} is not set")
            return ""
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self._environ.get(name) or str(default)
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            self._faults.append(f"{name} is {text!r}: it must be a whole number from {low} to {high}")
        return value

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self._environ.get(name) or default
        if value not in allowed:
            self._faults.append(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")
        return value

    def address(self, name: str, default: str) -> str:
        value = self._environ.get(name) or default
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65_535:
            self._faults.append(f"{name} is {value!r}: it must be <host>:<port>")
        return value

    def dsn(self, name: str) -> str:
        value = self.text(name)
        if value and not value.startswith(("postgresql://", "postgres://")):
            self._faults.append(f"{name} must be postgresql://user[:password]@host:port/database")
        return value.replace("postgres://", "postgresql://", 1) if value.startswith("postgres://") else value

    def fault(self, text: str) -> None:
        self._faults.append(text)

    def finish(self) -> None:
        if self._faults:
            raise ConfigError("; ".join(self._faults))


@dataclass(frozen=True, slots=True)
class Common:
    """What every service has. `startup_timeout_s`: how long to wait for Kafka, PostgreSQL, topics and tables."""

    kafka_bootstrap: str
    postgres_dsn: str
    topic_prefix: str
    health_listen: str
    log_level: str
    pool_size: int
    startup_timeout_s: int
    drain_timeout_s: int


@dataclass(frozen=True, slots=True)
class IssuerConfig:
    common: Common
    listen: str
    concurrent_calls_max: int
    waiters_max: int
    unsettled_max: int


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    common: Common
    dead_letter_run_max: int


@dataclass(frozen=True, slots=True)
class DlqConfig:
    common: Common
    listen: str
    attempts_max: int
    backoff_base_ms: int
    backoff_cap_ms: int


def issuer_config(environ: Mapping[str, str]) -> IssuerConfig:
    """Raises ConfigError."""
    reader = _Reader(environ)
    config = IssuerConfig(
        common=_common(reader, "127.0.0.1:50061", pool_size=4),
        listen=_listen(reader, "127.0.0.1:50051"),
        concurrent_calls_max=reader.integer("FIRSTCOME_CONCURRENT_CALLS_MAX", 12_000, 1, 1_000_000),
        waiters_max=reader.integer("FIRSTCOME_WAITERS_MAX", 100_000, 1, 10_000_000),
        unsettled_max=reader.integer("FIRSTCOME_UNSETTLED_MAX", 200_000, 1, 1_000_000_000),
    )
    reader.finish()
    return config


def ledger_config(environ: Mapping[str, str]) -> LedgerConfig:
    """Raises ConfigError."""
    reader = _Reader(environ)
    config = LedgerConfig(
        common=_common(reader, "127.0.0.1:50052", pool_size=8),
        dead_letter_run_max=reader.integer("FIRSTCOME_DEAD_LETTER_RUN_MAX", 1_000, 0, 1_000_000_000),
    )
    reader.finish()
    return config


def dlq_config(environ: Mapping[str, str]) -> DlqConfig:
    """Raises ConfigError."""
    reader = _Reader(environ)
    config = DlqConfig(
        common=_common(reader, "127.0.0.1:50063", pool_size=4),
        listen=_listen(reader, "127.0.0.1:50053"),
        attempts_max=reader.integer("FIRSTCOME_RETRY_ATTEMPTS_MAX", 5, 1, 1_000),
        backoff_base_ms=reader.integer("FIRSTCOME_RETRY_BACKOFF_BASE_MS", 1_000, 1, 3_600_000),
        backoff_cap_ms=reader.integer("FIRSTCOME_RETRY_BACKOFF_CAP_MS", 60_000, 1, 86_400_000),
    )
    reader.finish()
    return config


def _common(reader: _Reader, health_listen: str, *, pool_size: int) -> Common:
    return Common(
        kafka_bootstrap=reader.text("FIRSTCOME_KAFKA_BOOTSTRAP"),
        postgres_dsn=reader.dsn("FIRSTCOME_POSTGRES_DSN"),
        topic_prefix=reader.text("FIRSTCOME_TOPIC_PREFIX", ""),
        health_listen=reader.address("FIRSTCOME_HEALTH_LISTEN", health_listen),
        log_level=reader.choice("FIRSTCOME_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
        pool_size=reader.integer("FIRSTCOME_POSTGRES_POOL_SIZE", pool_size, 1, 100),
        startup_timeout_s=reader.integer("FIRSTCOME_STARTUP_TIMEOUT_S", 60, 0, 3_600),
        drain_timeout_s=reader.integer("FIRSTCOME_DRAIN_TIMEOUT_S", 15, 1, 3_600),
    )


def _listen(reader: _Reader, default: str) -> str:
    listen = reader.address("FIRSTCOME_LISTEN", default)
    reader.choice("FIRSTCOME_AUTH", "required", ("off",))
    if not _is_loopback(listen.rpartition(":")[0]):
        reader.fault(f"FIRSTCOME_LISTEN is {listen}: without authentication only a loopback address may be served")
    return listen


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
