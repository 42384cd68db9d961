"""How long each scenario is: fixed, so that the whole takes the same time everywhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lengths:
    """Seconds, or counts of requests, as the names say."""

    slices: int = 5
    slice_s: float = 1.25
    """Two of each target a round."""
    warm_up_s: float = 0.5
    """Of each server that has just been started."""
    callers: int = 200
    """As many as keep the machine at work."""
    few_callers: int = 100
    saturation_s: float = 6.0
    paced_s: float = 8.0
    """Each of the runs at a share of saturation."""
    storm_s: float = 5.0
    batch_requests: int = 300_000
    telemetry_rounds: int = 3
    telemetry_requests: int = 60_000
    many_coupons: int = 1_000
    many_requests: int = 150_000
    redis_requests: int = 100_000
    redis_single_requests: int = 6_000
    """With a scheduler that stores one row at a time."""
    rush_s: float = 5.0
    rush_batches_per_s: float = 100.0
    rush_batch: int = 100
    rush_unary_per_s: float = 500.0
    rush_stock: int = 20_000
    backlog_requests: int = 1_000_000
    raw_runs: int = 3
    produce_requests: int = 300_000
    growth_rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    growth_requests: int = 60_000
    growth_warm_rounds: int = 2
    growth_rounds: int = 5
    fault_people: int = 4_000
    fault_stock: int = 2_500
    fault_s: float = 10.0


FULL = Lengths()
TINY = Lengths(
    slices=1,
    slice_s=0.3,
    warm_up_s=0.1,
    callers=10,
    few_callers=5,
    saturation_s=0.4,
    paced_s=0.4,
    storm_s=0.3,
    batch_requests=4_000,
    telemetry_rounds=1,
    telemetry_requests=2_000,
    many_coupons=8,
    many_requests=4_000,
    redis_requests=4_000,
    redis_single_requests=200,
    rush_s=0.5,
    rush_batches_per_s=20.0,
    rush_batch=20,
    rush_unary_per_s=50.0,
    rush_stock=100,
    backlog_requests=5_000,
    raw_runs=1,
    produce_requests=4_000,
    growth_rows=(1_000, 5_000),
    growth_requests=2_000,
    growth_warm_rounds=1,
    growth_rounds=1,
    fault_people=120,
    fault_stock=80,
    fault_s=1.0,
)
"""Only to see that everything works: its figures mean nothing."""
