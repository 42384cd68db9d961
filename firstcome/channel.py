"""How to reach a server: address, TLS, token, and what gRPC itself does about retries, balance and dead connections."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

ADDRESS_DEFAULT = "127.0.0.1:50051"
DLQ_ADDRESS_DEFAULT = "127.0.0.1:50053"
CALL_TIMEOUT_S = 15.0
ATTEMPTS_MAX = 5
"""Calls in all, the first included; gRPC allows no more."""
KEEPALIVE_TIME_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 10_000
RECONNECT_BACKOFF_MS_MAX = 5_000
TOKEN_CHECK_S = 1.0
TOKEN_LENGTH_MAX = 4_096

SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [
                    {"service": f"coupon.v1.{name}Service"} for name in ("Coupon", "Issuer", "DeadLetter", "Replay")
                ],
                "retryPolicy": {
                    "maxAttempts": ATTEMPTS_MAX,
                    "initialBackoff": "0.2s",
                    "backoffMultiplier": 2.5,
                    "maxBackoff": "3s",
                    # Calls that change something carry a request_id (cancelling needs none): each may be repeated.
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        # When most calls fail, retries would only add to the load: half of the tokens gone, no more retries.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }
)


class SettingsError(ValueError):
    """Settings that can't be used; the message says what they may be."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes. `ca` of None: the roots that gRPC brings. Certificate and key together: this client's own (mTLS)."""

    ca: bytes | None = None
    certificate: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the servers are, and who calls.

    `address`: the issuer's <host>:<port>, or any gRPC target, as dns:///issuer:50051; `dlq_address`: the dlq's, which
    answers for dead letters and replay jobs. `tls` of None: plain text.
    `token`: gives the bearer token for each call; `token_file` makes one. `timeout_s`: the deadline of a call that
    names none, retries included.
    """

    address: str = ADDRESS_DEFAULT
    tls: Tls | None = None
    token: Callable[[], str] | None = field(default=None, repr=False)
    timeout_s: float = CALL_TIMEOUT_S
    dlq_address: str = DLQ_ADDRESS_DEFAULT


def open_channel(connection: Connection) -> grpc.aio.Channel:
    """A channel that connects with its first call. Raises SettingsError."""
    tls = connection.tls
    if not connection.address.strip():
        raise SettingsError("the address is empty; it must be <host>:<port>")
    if not connection.timeout_s > 0:
        raise SettingsError(f"the timeout is {connection.timeout_s} s; it must be more than 0")
    if tls is None:
        if connection.token is not None and not is_loopback(connection.address):
            raise SettingsError(
                f"a token over plain text may go to this machine only, not to {connection.address}; use TLS"
            )
        return grpc.aio.insecure_channel(connection.address, options=_options())
    if (tls.certificate is None) != (tls.private_key is None):
        raise SettingsError("a certificate and its private key are given together or not at all")
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.private_key, tls.certificate)
    return grpc.aio.secure_channel(connection.address, credentials, options=_options())


def _options() -> list[tuple[str, str | int]]:
    return [
        ("grpc.service_config", SERVICE_CONFIG),
        # The server's name for it must not come from DNS records.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_MAX),
        ("grpc.enable_http_proxy", 0),
    ]


def token_file(path: Path) -> Callable[[], str]:
    """The token in the file, read again when the file has changed. Raises SettingsError at once if it is no token."""
    return _TokenFile(path)


class _TokenFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._token, self._seen = _read_token(path)
        self._look_again_s = time.monotonic() + TOKEN_CHECK_S

    def __call__(self) -> str:
        now_s = time.monotonic()
        if now_s >= self._look_again_s:
            self._look_again_s = now_s + TOKEN_CHECK_S
            try:
                if _mark(self._path) != self._seen:
                    self._token, self._seen = _read_token(self._path)
            except (OSError, SettingsError):
                # Just being replaced, perhaps: the old token stays until there is a new one.
                pass
        return self._token


def _mark(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read_token(path: Path) -> tuple[str, tuple[int, int, int]]:
    try:
        seen = _mark(path)
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the token file {path} cannot be read: {error}") from error
    if not token or len(token) > TOKEN_LENGTH_MAX or not all("!" <= character <= "~" for character in token):
        raise SettingsError(
            f"the token file {path} must hold one token: 1 to {TOKEN_LENGTH_MAX} printable ASCII characters, no spaces"
        )
    return token, seen


def is_loopback(address: str) -> bool:
    """Whether all that a gRPC target names is this machine."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme == "unix":
        return True
    if colon and scheme in ("dns", "ipv4", "ipv6", "passthrough"):
        address = rest.removeprefix("//").partition("/")[2] if rest.startswith("//") else rest
    return all(_is_loopback_host(one) for one in address.split(","))


def _is_loopback_host(host_port: str) -> bool:
    host = host_port
    if host_port.startswith("["):
        host = host_port[1:].partition("]")[0]
    elif host_port.count(":") == 1:
        host = host_port.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
