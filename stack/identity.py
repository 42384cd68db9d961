"""Which process is which: a pid alone is not enough, since the kernel hands pids out again."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A pid together with the moment its process started (clock ticks since boot)."""

    pid: int
    started_ticks: int

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return _started_ticks(self.pid) == self.started_ticks


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process, or None if there is none with this pid."""
    ticks = _started_ticks(pid)
    return None if ticks is None else ProcessIdentity(pid, ticks)


def machine() -> str:
    """What pids are relative to: this boot of the machine, and this pid namespace (container)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def descendants(pid: int) -> list[int]:
    """The pids of all children, grandchildren, … of a process, at this moment."""
    found: list[int] = []
    pending = [pid]
    while pending:
        parent = pending.pop()
        try:
            threads = list(Path(f"/proc/{parent}/task").iterdir())
        except OSError:
            continue
        for thread in threads:
            try:
                children = [int(word) for word in (thread / "children").read_text().split()]
            except OSError:
                continue
            found += children
            pending += children
    return found


def _started_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in brackets and may hold spaces: count from its end.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
