"""Settings from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """Both parts' settings. `batch`: how many the scheduler takes and stores at once; 1 as the design is drawn."""

    redis: str
    postgres_dsn: str
    listen: str
    health_listen: str
    batch: int
    period_s: float

    @classmethod
    def read(cls) -> Config:
        """From BASELINE_*. Exits with a sentence if what has no default is missing."""
        missing = [name for name in ("BASELINE_REDIS", "BASELINE_POSTGRES_DSN") if not os.environ.get(name)]
        if missing:
            raise SystemExit(f"baseline: {' and '.join(missing)} must be set")
        return cls(
            redis=os.environ["BASELINE_REDIS"],
            postgres_dsn=os.environ["BASELINE_POSTGRES_DSN"],
            listen=os.environ.get("BASELINE_LISTEN", "127.0.0.1:50071"),
            health_listen=os.environ.get("BASELINE_HEALTH_LISTEN", "127.0.0.1:50072"),
            batch=int(os.environ.get("BASELINE_BATCH", "1000")),
            period_s=int(os.environ.get("BASELINE_PERIOD_MS", "100")) / 1000,
        )
