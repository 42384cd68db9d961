"""Python runs this first in each service that chaos starts. Without settings of chaos it does nothing.

`CHAOS_CLOCK_SHIFT_S`: the process's clock is wrong by so many seconds. `CHAOS_CURSED`: the ledger fails on users whose
id begins so, the first time that it sees their request, as by a bug that passes.
"""

import importlib
import os
import time
from typing import Any


def _shift_clock(shift_s: float) -> None:
    now_s, now_ns = time.time, time.time_ns
    shift_ns = round(shift_s * 1e9)
    time.time = lambda: now_s() + shift_s
    time.time_ns = lambda: now_ns() + shift_ns


def _curse(prefix: str) -> None:
    line: Any = importlib.import_module("services.domain.decide")._Line
    issue = line._issue

    def failing(self: Any, request: Any) -> Any:
        if request.user_id.startswith(prefix) and request.redrive is None:
            raise ZeroDivisionError("cursed")
        return issue(self, request)

    line._issue = failing


if _shift := os.environ.get("CHAOS_CLOCK_SHIFT_S"):
    _shift_clock(float(_shift))
if _prefix := os.environ.get("CHAOS_CURSED"):
    _curse(_prefix)
