"""Settings from the environment: one frozen object a service, read once in its __main__; every fault named at once."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from services.runtime import auth, kafka_security, tls
from services.runtime.kafka_security import KafkaTls
from services.runtime.reload import BadFile
from services.runtime.tls import TlsFiles

T = TypeVar("T")

RATE_BURST_MIN = 1_000
"""What may come at once by default, if a second's worth is less: a batch of the largest size."""


class ConfigError(Exception):
    """Settings that can't be used; the message names each and says what it may be."""


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self._faults: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        value = self.environ.get(name) or default
        if value is None:
            self._faults.append(f"{name} is not set")
            return ""
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.environ.get(name) or str(default)
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            self._faults.append(f"{name} is {text!r}: it must be a whole number from {low} to {high}")
        return value

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.environ.get(name) or default
        if value not in allowed:
            self._faults.append(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")
        return value

    def address(self, name: str, default: str) -> str:
        value = self.environ.get(name) or default
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65_535:
            self._faults.append(f"{name} is {value!r}: it must be <host>:<port>")
        return value

    def address_or_off(self, name: str, default: str) -> str | None:
        return None if self.environ.get(name) == "off" else self.address(name, default)

    def dsn(self, name: str) -> str:
        value = self.text(name)
        if value and not value.startswith(("postgresql://", "postgres://")):
            self._faults.append(f"{name} must be postgresql://user[:password]@host:port/database")
        return value.replace("postgres://", "postgresql://", 1) if value.startswith("postgres://") else value

    def optional(self, name: str) -> str | None:
        return self.environ.get(name) or None

    def check(self, name: str, load: Callable[[], T]) -> T | None:
        """What `load` makes of files, if they can be used."""
        try:
            return load()
        except BadFile as error:
            self._faults.append(f"{name}: {error}")
            return None

    def fault(self, text: str) -> None:
        self._faults.append(text)

    def finish(self) -> None:
        if self._faults:
            raise ConfigError("; ".join(self._faults))


@dataclass(frozen=True, slots=True)
class Common:
    """What every service has. `startup_timeout_s`: how long to wait for Kafka, PostgreSQL, topics and tables.

    `metrics_listen`: where Prometheus is answered; None: nowhere.
    """

    kafka_bootstrap: str
    postgres_dsn: str
    topic_prefix: str
    health_listen: str
    log_level: str
    pool_size: int
    startup_timeout_s: int
    drain_timeout_s: int
    metrics_listen: str | None = None
    kafka_tls: KafkaTls | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call, over what, and how often. As it is without settings it serves on loopback only.

    `callers_path`: the file of tokens and certificates; None: authentication is off. `rate_per_s` of 0: no limit.
    """

    callers_path: str | None = None
    tls: TlsFiles | None = None
    rate_per_s: int = 0
    rate_burst: int = RATE_BURST_MIN


@dataclass(frozen=True, slots=True)
class IssuerConfig:
    common: Common
    listen: str
    concurrent_calls_max: int
    waiters_max: int
    unsettled_max: int
    access: Access = field(default_factory=Access)


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
    access: Access = field(default_factory=Access)


def issuer_config(environ: Mapping[str, str]) -> IssuerConfig:
    """Raises ConfigError."""
    reader = _Reader(environ)
    config = IssuerConfig(
        common=_common(reader, "127.0.0.1:50061", "127.0.0.1:9464", pool_size=4),
        listen=(listen := reader.address("FIRSTCOME_LISTEN", "127.0.0.1:50051")),
        access=_access(reader, listen),
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
        common=_common(reader, "127.0.0.1:50052", "127.0.0.1:9465", pool_size=8),
        dead_letter_run_max=reader.integer("FIRSTCOME_DEAD_LETTER_RUN_MAX", 1_000, 0, 1_000_000_000),
    )
    reader.finish()
    return config


def dlq_config(environ: Mapping[str, str]) -> DlqConfig:
    """Raises ConfigError."""
    reader = _Reader(environ)
    config = DlqConfig(
        common=_common(reader, "127.0.0.1:50063", "127.0.0.1:9466", pool_size=4),
        listen=(listen := reader.address("FIRSTCOME_LISTEN", "127.0.0.1:50053")),
        access=_access(reader, listen),
        attempts_max=reader.integer("FIRSTCOME_RETRY_ATTEMPTS_MAX", 5, 1, 1_000),
        backoff_base_ms=reader.integer("FIRSTCOME_RETRY_BACKOFF_BASE_MS", 1_000, 1, 3_600_000),
        backoff_cap_ms=reader.integer("FIRSTCOME_RETRY_BACKOFF_CAP_MS", 60_000, 1, 86_400_000),
    )
    reader.finish()
    return config


def _common(reader: _Reader, health_listen: str, metrics_listen: str, *, pool_size: int) -> Common:
    return Common(
        kafka_bootstrap=reader.text("FIRSTCOME_KAFKA_BOOTSTRAP"),
        postgres_dsn=reader.dsn("FIRSTCOME_POSTGRES_DSN"),
        topic_prefix=reader.text("FIRSTCOME_TOPIC_PREFIX", ""),
        health_listen=reader.address("FIRSTCOME_HEALTH_LISTEN", health_listen),
        log_level=reader.choice("FIRSTCOME_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
        pool_size=reader.integer("FIRSTCOME_POSTGRES_POOL_SIZE", pool_size, 1, 100),
        startup_timeout_s=reader.integer("FIRSTCOME_STARTUP_TIMEOUT_S", 60, 0, 3_600),
        drain_timeout_s=reader.integer("FIRSTCOME_DRAIN_TIMEOUT_S", 15, 1, 3_600),
        metrics_listen=reader.address_or_off("FIRSTCOME_METRICS_LISTEN", metrics_listen),
        kafka_tls=_kafka_tls(reader),
    )


def _kafka_tls(reader: _Reader) -> KafkaTls | None:
    return reader.check("FIRSTCOME_KAFKA_TLS_*", lambda: kafka_security.from_environment(reader.environ))


def _access(reader: _Reader, listen: str) -> Access:
    beyond = not is_loopback(listen)
    authenticated = reader.choice("FIRSTCOME_AUTH", "required", ("required", "off")) != "off"
    callers_path = reader.optional("FIRSTCOME_TOKENS") if authenticated else None
    if callers_path is not None:
        reader.check("FIRSTCOME_TOKENS", lambda: auth.load_callers(callers_path))
    elif authenticated:
        reader.fault(
            "FIRSTCOME_TOKENS is not set: it names the file of callers, their roles and tokens or certificates "
            "(or FIRSTCOME_AUTH=off, on loopback)"
        )
    elif beyond:
        reader.fault(f"FIRSTCOME_LISTEN is {listen}: with FIRSTCOME_AUTH=off only a loopback address may be served")
    files = _tls(reader)
    plain = reader.choice("FIRSTCOME_TLS", "required", ("required", "off")) == "off"
    if plain and files is not None:
        reader.fault("FIRSTCOME_TLS is off and FIRSTCOME_TLS_CERT is set: unset one of them")
    if beyond and files is None and not plain:
        reader.fault(
            f"FIRSTCOME_LISTEN is {listen}: beyond loopback FIRSTCOME_TLS_CERT and FIRSTCOME_TLS_KEY must be set "
            "(or FIRSTCOME_TLS=off, where a mesh encrypts)"
        )
    per_s = reader.integer("FIRSTCOME_RATE_PER_S", 0, 0, 1_000_000)
    burst = reader.integer("FIRSTCOME_RATE_BURST", max(per_s, RATE_BURST_MIN), 1, 1_000_000)
    return Access(callers_path, files, per_s, burst)


def _tls(reader: _Reader) -> TlsFiles | None:
    cert, key = reader.optional("FIRSTCOME_TLS_CERT"), reader.optional("FIRSTCOME_TLS_KEY")
    client_ca = reader.optional("FIRSTCOME_TLS_CLIENT_CA")
    if cert is None and key is None:
        if client_ca is not None:
            reader.fault("FIRSTCOME_TLS_CLIENT_CA needs FIRSTCOME_TLS_CERT and FIRSTCOME_TLS_KEY")
        return None
    if cert is None or key is None:
        reader.fault("FIRSTCOME_TLS_CERT and FIRSTCOME_TLS_KEY must be set together")
        return None
    files = TlsFiles(cert, key, client_ca)
    reader.check("FIRSTCOME_TLS_*", lambda: tls.load(files))
    return files


def is_loopback(listen: str) -> bool:
    """Whether <host>:<port> is reached from this machine alone."""
    host = listen.rpartition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
