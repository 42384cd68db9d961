"""How long to wait before trying again: exponential backoff with full jitter. Randomness is an argument."""

from __future__ import annotations

from dataclasses import dataclass

# 2.0 ** 1024 is no float; a wait that doubled this often is at any cap already.
_DOUBLINGS_MAX = 1023


def backoff_s(attempt: int, random01: float, *, base_s: float, cap_s: float) -> float:
    """Seconds to wait after the failed attempt of that number (from 1): `random01` of min(cap, base * 2^(attempt-1)).

    Full jitter, so that all who failed together do not come back together. `random01` is uniform in [0, 1).
    Raises ValueError for numbers outside these ranges or a negative base or cap.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, not {attempt}")
    if not 0 <= random01 <= 1:
        raise ValueError(f"random01 lies in [0, 1], not {random01}")
    # Written so that not-a-number is refused too.
    if not (base_s >= 0 and cap_s >= 0):
        raise ValueError(f"base_s and cap_s are not negative, unlike {base_s} and {cap_s}")
    return random01 * min(cap_s, base_s * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX))


@dataclass(frozen=True, slots=True)
class Backoff:
    """A policy: the first wait is up to `base_s` seconds, later ones up to twice the last, never above `cap_s`."""

    base_s: float
    cap_s: float

    def wait_s(self, attempt: int, random01: float) -> float:
        """As `backoff_s`."""
        return backoff_s(attempt, random01, base_s=self.base_s, cap_s=self.cap_s)
