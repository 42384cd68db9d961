"""Saturation by callers, then calls by schedule at a share of it: how long until accepted, and until settled.

Calls that wait for their verdict need more of the machine and saturate earlier: half is half of what they can make.
"""

from __future__ import annotations

from math import ceil

from hdrh.histogram import HdrHistogram

from bench.callers import Told, run
from bench.load import LATENCY_US_MAX, SIGNIFICANT_DIGITS, Load
from bench.session import Session
from bench.systems import RedisSystem, System

STOCK = 5_000_000
HOT = "coupons/hot"
HALF = 0.5
NEAR = 0.8
PROCESS_CALLS_PER_S = 1_500
"""What one process of callers makes by schedule with half a core; two take more of the machine for the same calls."""
_STORED_LATE = """
SELECT (extract(epoch FROM issued_at) * 1e6)::bigint - split_part(user_id, '-', 3)::bigint AS late_us
FROM baseline.issued_coupon WHERE user_id LIKE 'half%'"""


async def scenario(session: Session) -> None:
    """Both systems, each at its own saturation."""
    results = session.results
    async with session.firstcome() as ours:
        await ours.create(["hot"], STOCK)
        full = await _saturate(session, ours)
        results.put(saturation_per_s=full.per_s)
        accepted = await _paced(session, ours, "half", full.per_s * HALF)
        results.put_latency("accepted", accepted.latencies)
        results.put(half_per_s=full.per_s * HALF, half_answered_per_s=accepted.per_s)
        near = await _paced(session, ours, "near", full.per_s * NEAR)
        results.put_latency("accepted_at_80", near.latencies)
        waiting = await _saturate(session, ours, wait=True)
        results.put(waiting_saturation_per_s=waiting.per_s)
        await _settled(session, ours, "settled", waiting.per_s * HALF)
        await _settled(session, ours, "settled_of_accepted", full.per_s * HALF)
        await session.check("paced", ours)
    async with session.redis(batch=1_000) as redis:
        await redis.create(["hot"], STOCK)
        full = await _saturate(session, redis)
        results.put(baseline_saturation_per_s=full.per_s)
        accepted = await _paced(session, redis, "half", full.per_s * HALF)
        results.put_latency("baseline_accepted", accepted.latencies)
        results.put_latency("baseline_settled", await _stored(redis))


async def _settled(session: Session, ours: System, name: str, rate_per_s: float) -> None:
    """Calls that wait for their verdict, by schedule."""
    told = await _paced(session, ours, name, rate_per_s, wait=True)
    session.results.put_latency(name, told.latencies)


async def _saturate(session: Session, system: System, *, wait: bool = False) -> Told:
    lengths = session.lengths
    prefix = "fullwaiting" if wait else "full"
    load = Load(system.address, HOT, prefix, callers=lengths.callers, seconds=lengths.saturation_s, wait=wait)
    return await _run(session, system, load)


async def _paced(session: Session, system: System, prefix: str, rate_per_s: float, *, wait: bool = False) -> Told:
    seconds = session.lengths.paced_s
    load = Load(system.address, HOT, prefix, rate_per_s=rate_per_s, seconds=seconds, wait=wait, stamped=True)
    return await _run(session, system, load, processes=ceil(rate_per_s / PROCESS_CALLS_PER_S))


async def _run(session: Session, system: System, load: Load, *, processes: int = 2) -> Told:
    """And wait until all is settled. Nothing looks on meanwhile: fifty looks a second are work, too."""
    told = await run(load, processes=processes)
    await system.until_settled()
    session.expect("paced", told)
    if load.wait and set(told.states) - {"ISSUED"}:
        session.results.fail(f"paced: calls that wait were answered {dict(told.states)}")
    return told


async def _stored(redis: RedisSystem) -> HdrHistogram:
    """How late each row was, by the time of its insert and the intended time of its call."""
    late = HdrHistogram(1, LATENCY_US_MAX, SIGNIFICANT_DIGITS)
    for (late_us,) in await redis.query(_STORED_LATE):
        late.record_value(min(max(late_us, 1), LATENCY_US_MAX))
    return late
