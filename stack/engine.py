"""What Kafka and PostgreSQL have in common: a child process with port, data and log to be ended and begun again."""

import signal
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

from stack import ports
from stack.errors import StackError
from stack.process import Child, tail

_POLL_S: Final = 0.05


class Engine(ABC):
    """A server of this stack. `start()` after `kill()` or `stop()` uses the same port and data again."""

    name: str
    stop_signal: int
    stop_timeout_s: float
    ready_timeout_s: float

    def __init__(self, port: int, log_path: Path) -> None:
        self.port = port
        self.log_path = log_path
        self.cancelled = threading.Event()
        self._child: Child | None = None

    @property
    def address(self) -> str:
        """host:port."""
        return f"{ports.HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Raises StackError if it was never started."""
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    @property
    def returncode(self) -> int | None:
        """How its process ended (negative: by that signal), or None while it runs."""
        return self._started().returncode

    def start(self) -> None:
        """Starts the process and returns at once. Raises StackError if it runs or its port is taken."""
        if self.running:
            raise StackError(f"{self.name} is running already (pid {self.pid}).")
        ports.require_free(self.port, self.name)
        self._child = self.spawn()

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Sends a signal and, if it is SIGKILL, waits until the process is gone.

        SIGSTOP and SIGCONT go to all its processes, so that the whole engine freezes or thaws.
        """
        child = self._started()
        child.kill(signal_number)
        if signal_number == signal.SIGKILL and not child.wait(self.stop_timeout_s):
            raise StackError(f"{self.name} (pid {child.pid}) does not end.")

    def stop(self) -> None:
        """Ends it in an orderly way, or by SIGKILL after `stop_timeout_s`. Does nothing if it is down."""
        if self._child is not None:
            self._child.stop(self.stop_signal, self.stop_timeout_s)

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Waits until it answers clients. Raises StackError with the tail of its log if it ends or time is over."""
        seconds = self.ready_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + seconds
        while not self.answers():
            if self.cancelled.is_set():
                raise StackError(f"The start of {self.name} was cancelled.")
            if not self.running and not self.start_again_after_failure():
                raise StackError(
                    f"{self.name} ended while starting (status {self.returncode}). "
                    f"The end of its log {self.log_path}:\n{tail(self.log_path)}"
                )
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} was not ready within {seconds:.0f} s; is the machine overloaded? "
                    f"The end of its log {self.log_path}:\n{tail(self.log_path)}"
                )
            time.sleep(_POLL_S)

    @abstractmethod
    def spawn(self) -> Child:
        """Starts the process on the prepared data."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves a client now; never raises because it is away."""

    def start_again_after_failure(self) -> bool:
        """Whether the process ended for a reason that passes, and was therefore started once more."""
        return False

    def _started(self) -> Child:
        if self._child is None:
            raise StackError(f"{self.name} was never started by this stack.")
        return self._child
