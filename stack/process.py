"""Child processes that never outlive this one."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stack import leftovers
from stack.errors import StackError
from stack.identity import descendants

_CHILD_PROGRAM: Final = str(Path(__file__).with_name("child.py"))
_TAIL_LINES_MAX: Final = 25
_TAIL_BYTES_MAX: Final = 8_192
_KILL_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user whom a child runs as."""

    uid: int
    gid: int


class Child:
    """A running child process, in a session of its own, so that Ctrl-C at the terminal reaches only its owner."""

    def __init__(self, popen: subprocess.Popen[bytes], name: str, log_path: Path) -> None:
        self._popen = popen
        self._name = name
        self.log_path = log_path

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def kill(self, signal_number: int) -> None:
        """Sends a signal; SIGSTOP and SIGCONT go to its descendants too, so that the whole program freezes or thaws."""
        if self.returncode is not None:
            return
        targets = [self.pid]
        if signal_number in (signal.SIGSTOP, signal.SIGCONT):
            targets += descendants(self.pid)
        for pid in targets:
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                continue

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within the time."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        leftovers.forget_child(self.pid)
        return True

    def stop(self, signal_number: int, timeout_s: float) -> bool:
        """Asks it to end, then kills it. Whether it ended by itself. Raises StackError if SIGKILL does not help."""
        if self.returncode is not None:
            return self.wait(0)
        self.kill(signal_number)
        self.kill(signal.SIGCONT)  # a frozen process cannot end
        if self.wait(timeout_s):
            return True
        # All of them: what a killed parent leaves may hold its port and its files.
        family = descendants(self.pid)
        self.kill(signal.SIGKILL)
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not self.wait(_KILL_TIMEOUT_S):
            raise StackError(f"{self._name} (pid {self.pid}) does not end, not even by SIGKILL: look for a hung disk.")
        return False


def spawn(
    command: Sequence[str],
    *,
    name: str,
    log_path: Path,
    env: Mapping[str, str],
    cwd: Path,
    run_as: RunAs | None = None,
    death_signal: int = signal.SIGKILL,
    background: bool = False,
) -> Child:
    """Starts a program whose output is appended to `log_path`.

    It gets `death_signal` from the kernel when this process ends, in whatever way. In the `background` it interrupts
    nobody when it wakes on a busy machine (docs/decisions/0019). Raises StackError if it cannot be started at all; a
    program that starts and fails shows in `Child.returncode` and in the log.
    """

    def start() -> subprocess.Popen[bytes]:
        with log_path.open("ab") as log:
            return subprocess.Popen(
                # Isolated and without site-packages: the wrapper needs neither, and starts in half the time.
                [
                    sys.executable, "-I", "-S", _CHILD_PROGRAM, str(os.getpid()),
                    str(run_as.uid if run_as else -1), str(run_as.gid if run_as else -1), str(int(death_signal)),
                    str(int(background)), *command,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(env), cwd=cwd, start_new_session=True,
            )  # fmt: skip

    try:
        popen = _in_lasting_thread(start)
    except OSError as error:
        raise StackError(f"{name} cannot be started: {error}.") from error
    leftovers.remember_child(popen.pid)
    return Child(popen, name, log_path)


def tail(log_path: Path) -> str:
    """The last lines of a log, indented, ready to stand in an error message."""
    try:
        with log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _TAIL_BYTES_MAX))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"  (no log at {log_path}: {error.strerror})"
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES_MAX:]) or f"  ({log_path} is empty)"


# The kernel sends a child its death signal when the *thread* that created it ends, not the process: so one thread that
# lasts as long as the process creates all children, and callers may come from any thread.
_Job = tuple[Callable[[], subprocess.Popen[bytes]], "Future[subprocess.Popen[bytes]]"]
_jobs: "queue.SimpleQueue[_Job]" = queue.SimpleQueue()
_lasting_thread: tuple[int, threading.Thread] | None = None
_lasting_thread_lock = threading.Lock()


def _in_lasting_thread(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    global _lasting_thread
    with _lasting_thread_lock:
        if _lasting_thread is None or _lasting_thread[0] != os.getpid():  # threads do not survive a fork
            thread = threading.Thread(target=_run_jobs, name="stack-spawner", daemon=True)
            thread.start()
            _lasting_thread = (os.getpid(), thread)
    future: Future[subprocess.Popen[bytes]] = Future()
    _jobs.put((start, future))
    return future.result()


def _run_jobs() -> None:
    while True:
        start, future = _jobs.get()
        try:
            future.set_result(start())
        except BaseException as error:
            future.set_exception(error)
