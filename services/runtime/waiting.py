"""For how long the oldest record of a partition that is not worked on yet has waited."""

from __future__ import annotations

from collections import deque

_ENDS_MAX = 10_000
"""So many looks at the log's end are kept: hours of standing still."""


class Waiting:
    """Knows it from the record's own time, once it has been read, and before that from when it was first seen."""

    def __init__(self) -> None:
        self._head: tuple[int, float] | None = None
        self._ends: deque[tuple[int, float]] = deque(maxlen=_ENDS_MAX)

    def begun(self, offset: int, timestamp_ms: int) -> None:
        """Work on the records from this one on begins."""
        self._head = offset, timestamp_ms / 1_000

    def seconds(self, settled_offset: int, end: int, now_s: float) -> float:
        """0 where nothing waits. `end` is the log's, as known now; call it regularly."""
        ends = self._ends
        while ends and ends[0][0] <= settled_offset:
            ends.popleft()
        if end <= settled_offset:
            return 0.0
        if not ends or ends[-1][0] < end:
            ends.append((end, now_s))
        since_s = ends[0][1]
        if self._head is not None and self._head[0] >= settled_offset:
            since_s = min(since_s, self._head[1])
        return max(0.0, now_s - since_s)
