"""How much each caller may ask for: a token bucket a caller."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

BUCKETS_MAX = 10_000
"""The one that was used least recently makes room; it is full again by then, or its caller gains one burst."""
CHARGE_MAX = 1_000
"""The largest batch. A larger one is refused for its size, and must not lock its caller out for long."""


class CallerRates:
    """`per_s` calls a second for each caller, `burst` of them at once. A batch counts as its requests."""

    def __init__(self, per_s: int, burst: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._clock_s = clock_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def charge(self, caller: str, calls: int) -> float:
        """0 if they may pass; else, with nothing charged, after how many seconds they would.

        What is larger than the burst passes when the bucket is full, and leaves a debt: every batch passes some time.
        """
        cost = min(max(calls, 1), CHARGE_MAX)
        now_s = self._clock_s()
        left, at_s = self._buckets.get(caller, (self._burst, now_s))
        left = min(self._burst, left + (now_s - at_s) * self._per_s)
        needed = min(float(cost), self._burst)
        passes = left >= needed
        self._buckets[caller] = (left - cost if passes else left), now_s
        self._buckets.move_to_end(caller)
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return 0.0 if passes else (needed - left) / self._per_s

    def __len__(self) -> int:
        return len(self._buckets)
