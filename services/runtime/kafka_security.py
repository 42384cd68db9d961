"""How this process's clients of Kafka connect: in plain text, or by TLS with a certificate of their own (mTLS).

Set once when the process starts, since every client takes part. Renewed files are used by the next connections.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.runtime.reload import BadFile, Reloaded

LOOK_INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True)
class KafkaTls:
    """PEM files: the authority of the brokers' certificates, and the client's certificate and key, if it needs one."""

    ca: str
    cert: str | None = None
    key: str | None = None

    @property
    def paths(self) -> list[str]:
        return [path for path in (self.ca, self.cert, self.key) if path is not None]


def from_environment(environ: Mapping[str, str]) -> KafkaTls | None:
    """What the variables FIRSTCOME_KAFKA_TLS_CA, _CERT and _KEY name; None: plain text. Raises BadFile."""
    ca, cert, key = (environ.get(f"FIRSTCOME_KAFKA_TLS_{what}") or None for what in ("CA", "CERT", "KEY"))
    if (cert is None) != (key is None) or (ca is None and cert is not None):
        raise BadFile("CERT and KEY go together, and with CA")
    if ca is None:
        return None
    tls = KafkaTls(ca, cert, key)
    load(tls)
    return tls


_context: Reloaded[ssl.SSLContext] | None = None


def configure(tls: KafkaTls | None) -> None:
    """TLS for every client that is made from now on; None: plain text. Raises BadFile."""
    global _context
    if tls is None:
        _context = None
        return
    context = ssl.create_default_context()
    _context = Reloaded("kafka_tls", tls.paths, lambda: load(tls, context))


def arguments() -> Mapping[str, Any]:
    """What aiokafka's clients are given besides the address."""
    if _context is None:
        return {}
    return {"security_protocol": "SSL", "ssl_context": _context.current}


async def watch() -> None:
    """Look for renewed files, for ever."""
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        if _context is not None:
            await _context.poll()


def load(tls: KafkaTls, context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """Into `context`, so that clients that have it connect with the new files from then on. Raises BadFile."""
    context = context or ssl.create_default_context()
    try:
        context.load_verify_locations(tls.ca)
        if tls.cert is not None:
            # The password: an encrypted key must fail, not ask on the terminal.
            context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise BadFile(f"{', '.join(tls.paths)}: no authority, or no certificate with its key ({error})") from error
    return context
