"""Named places between two steps, where `make chaos` lets a process die or freeze. Nothing happens at them otherwise.

`FIRSTCOME_FAILPOINT=<name>=<kill|stop>@<n>`: SIGKILL or SIGSTOP to the own process when it is there for the n-th time.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from typing import Final

NAMES: Final = frozenset(
    {
        "issuer.sending",
        "issuer.acknowledged",
        "ledger.read",
        "ledger.fenced",
        "ledger.decided",
        "ledger.verdicts_written",
        "ledger.coupons_written",
        "ledger.committed",
        "ledger.dead_letters_published",
        "ledger.outcomes_published",
        "ledger.acknowledged",
        "ledger.published_again",
        "dlq.fenced",
        "dlq.filed",
        "dlq.committed",
        "dlq.redrives_claimed",
        "dlq.redrives_published",
        "dlq.redrives_marked",
    }
)
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class BadFailpoint(Exception):
    """The setting can't be used; the message says what it may be."""


@dataclass(slots=True)
class _Armed:
    name: str
    signal_number: signal.Signals
    times_left: int


_armed: _Armed | None = None


def arm(setting: str | None) -> None:
    """Take the setting; None or "" disarms. Raises BadFailpoint."""
    global _armed
    if not setting:
        _armed = None
        return
    found = re.fullmatch(r"([a-z_.]+)=(kill|stop)@([1-9][0-9]{0,8})", setting)
    if found is None or found[1] not in NAMES:
        names = ", ".join(sorted(NAMES))
        raise BadFailpoint(f"FIRSTCOME_FAILPOINT is {setting!r}: it must be <name>=<kill|stop>@<n>, a name of {names}")
    _armed = _Armed(found[1], _SIGNALS[found[2]], int(found[3]))


def armed() -> str | None:
    """The name of the place, if there is one."""
    return None if _armed is None else _armed.name


def reach(name: str) -> None:
    """The process is at this place."""
    if _armed is not None and _armed.name == name:
        _armed.times_left -= 1
        if _armed.times_left == 0:
            os.kill(os.getpid(), _armed.signal_number)
