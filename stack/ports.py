"""Ports on 127.0.0.1."""

import fcntl
import os
import random
import socket
import tempfile
import threading
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Final

from stack.errors import StackError

HOST: Final = "127.0.0.1"
# Below Linux' range for outgoing connections (32768 and up): nothing else grabs such a port between our look and the
# moment when the server binds it.
_FREE_PORT_MIN: Final = 15_000
_FREE_PORT_MAX: Final = 32_000
_FREE_PORT_TRIES_MAX: Final = 500

_handed_out: set[int] = set()
_handed_out_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the three services; the defaults are the documented ones."""

    issuer: int = 50051
    issuer_health: int = 50061
    ledger_health: int = 50052
    dlq: int = 50053
    dlq_health: int = 50063
    issuer_metrics: int = 9464
    ledger_metrics: int = 9465
    dlq_metrics: int = 9466

    @classmethod
    def free(cls) -> "Ports":
        """Free ports."""
        return cls(*(free_port() for _ in fields(cls)))


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier server that linger in TIME_WAIT do not count, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A free port on 127.0.0.1 that nobody else gets here while this process lives. Raises StackError if none is found.

    Not only until a server has it: the port of one that is killed and started again is free meanwhile.
    """
    with _handed_out_lock:
        for _ in range(_FREE_PORT_TRIES_MAX):
            port = random.randrange(_FREE_PORT_MIN, _FREE_PORT_MAX)
            if port not in _handed_out and _reserve(port) and is_free(port):
                _handed_out.add(port)
                return port
    raise StackError(f"No free port found between {_FREE_PORT_MIN} and {_FREE_PORT_MAX} on {HOST}.")


def _reserve(port: int) -> bool:
    """Whether no other process of this user has it; each port is a byte of a file that all of them lock."""
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except (BlockingIOError, PermissionError):
        return False
    return True


@cache
def _reservations() -> int:
    path = Path(tempfile.gettempdir(), f"firstcome-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def require_free(port: int, purpose: str) -> None:
    """Raises StackError that names `purpose` if somebody listens on the port."""
    if not is_free(port):
        raise StackError(
            f"Port {port} on {HOST}, wanted for {purpose}, is taken. Stop what listens there "
            f"(`ss -ltnp 'sport = :{port}'` names it; `make down` stops an earlier `make up`), "
            "or choose other ports: `make up ARGS=--free-ports`."
        )
