"""A rush on one coupon, then storms of people who come too late or for the second time; all by schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.callers import Told, run, run_all
from bench.load import Load
from bench.session import Session, Watch, rates, settle
from bench.systems import System

STORM_SHARE = 0.6
"""Of saturation, as far as it is known."""
STORM_PER_S = 1_000.0
DUPLICATE_USERS = 1_000
REFUSED = "FAILED_PRECONDITION"
DUPLICATE = "ALREADY_EXISTS"


@dataclass(frozen=True, slots=True)
class Rush:
    """What became of it: how long the last row took from the last call."""

    told: Told
    watch: Watch

    @property
    def tail_s(self) -> float:
        return max(self.watch.last_settled_s - self.told.last_call_s, 0.0)


async def scenario(session: Session) -> None:
    """The rush on both systems, the storms on ours."""
    results, lengths = session.results, session.lengths
    saturation = float(results.figures.get("saturation_per_s", STORM_PER_S / STORM_SHARE))
    rate_per_s = saturation * STORM_SHARE
    async with session.firstcome() as ours:
        rush = await _rush(session, ours)
        results.put(
            tail_s=rush.tail_s,
            rush_requests=rush.told.requests,
            rush_per_s=rush.told.per_s,
            rush_refused_at_once=rush.told.errors[REFUSED],
        )
        results.put_latency("rush", rush.told.latencies)
        results.line("lag", "rush", rush.watch.lag)
        results.line("rush", "answered", rush.told.rates())
        results.line("rush", "settled", rates(rush.watch.settled))
        ((issued,),) = await ours.query("SELECT count(*) FROM user_coupon WHERE coupon_id = 'rush'")
        if issued != min(lengths.rush_stock, rush.told.requests):
            results.fail(f"rush: {issued} of {lengths.rush_stock} issued to {rush.told.requests}")
        storms = {
            "sold_out_storm": Load(ours.address, "coupons/rush", "late"),
            "duplicate_storm": Load(ours.address, "coupons/again", "again", user_pool=DUPLICATE_USERS),
        }
        await ours.create(["again"], 10 * DUPLICATE_USERS)
        first = replace(storms["duplicate_storm"], callers=lengths.callers, calls=DUPLICATE_USERS)
        await settle(ours, first)
        for name, load in storms.items():
            told = await run(replace(load, rate_per_s=rate_per_s, seconds=lengths.storm_s))
            results.put(**{f"{name}_per_s": told.per_s})
            results.put(**{f"{name}_refused": told.errors[REFUSED] + told.errors[DUPLICATE]})
            results.put_latency(name, told.latencies)
            session.expect(name, told, REFUSED, DUPLICATE)
            if told.states:
                results.fail(f"{name}: {dict(told.states)} were not refused")
        await session.check("rush", ours)
    async with session.redis(batch=1_000) as redis:
        rush = await _rush(session, redis)
        results.put(baseline_tail_s=rush.tail_s)
        results.put_latency("baseline_rush", rush.told.latencies)
        results.line("rush", "Redis system: answered", rush.told.rates())
        results.line("rush", "Redis system: stored", rates(rush.watch.settled))
        results.line("lag", "Redis system: rush", rush.watch.lag)


async def _rush(session: Session, system: System) -> Rush:
    lengths = session.lengths
    await system.create(["rush"], lengths.rush_stock)
    batches = Load(
        system.address,
        "coupons/rush",
        "batch",
        batch=lengths.rush_batch,
        rate_per_s=lengths.rush_batches_per_s,
        seconds=lengths.rush_s,
    )
    single = Load(system.address, "coupons/rush", "single", rate_per_s=lengths.rush_unary_per_s, seconds=lengths.rush_s)
    async with Watch(system) as watch:
        told = await run_all([batches, single])
        await watch.until_settled(told.good)
    session.expect("rush", told, REFUSED)
    return Rush(told, watch)
