"""The batch path end to end: one hot coupon, 1,000 coupons, two issuers and two ledgers; the Redis system beside it."""

from __future__ import annotations

import statistics
from dataclasses import replace

from bench.callers import Told, part_of, run_all
from bench.load import Load
from bench.session import Session, Usage, Watch, rates, settle, settled_per_s
from bench.systems import Firstcome, System

BATCH = 1_000
CALLERS = 8
STOCK = 5_000_000
ONE_AT_A_TIME = 1
"""As the Redis system's design is drawn: take one, insert one."""
PROCESSES = 2


async def scenario(session: Session) -> None:
    """Each part on a system of its own."""
    await _one_hot_coupon(session)
    await _telemetry(session)
    await _many_coupons(session)
    await _redis(session)
    figures = session.results.figures
    ours, theirs = float(figures["batch_settled_per_s"]), float(figures["baseline_batched_settled_per_s"])
    session.results.put(
        baseline_batched_settled_ratio=ours / theirs,
        baseline_settled_ratio=ours / float(figures["baseline_settled_per_s"]),
    )


async def _one_hot_coupon(session: Session) -> None:
    results, requests = session.results, session.lengths.batch_requests
    async with session.firstcome() as ours:
        await ours.create(["hot"], STOCK)
        await settle(ours, _load(ours, "warm", min(requests, 10 * BATCH)))
        usage = Usage(ours)
        told, watch = await settle(ours, _load(ours, "b", requests))
        usage.stop(told.cpu_s)
        session.expect("batch", told)
        results.put(
            batch_accepted_per_s=told.per_s,
            batch_settled_per_s=settled_per_s(told, watch),
            batch_requests=told.good,
            cpu_us_per_settled=usage.servers_us(told.good),
        )
        results.put(**{f"cpu_us_per_settled_{name}": us for name, us in usage.by_name_us(told.good).items()})
        results.line("throughput", "accepted", told.rates())
        results.line("throughput", "settled", rates(watch.settled))
        results.line("lag", "batches of 1,000", watch.lag)
        small = replace(_load(ours, "s", requests // 5, batch=100))
        told, watch = await settle(ours, small)
        results.put(batch100_settled_per_s=settled_per_s(told, watch), batch100_accepted_per_s=told.per_s)
        await session.check("batch", ours)


async def _telemetry(session: Session) -> None:
    """Batches with and without tracing, in turn."""
    async with session.firstcome() as traced, session.firstcome(telemetry=False) as silent:
        pairs: list[tuple[float, float]] = []
        for system in (traced, silent):
            await system.create(["hot"], STOCK)
        for number in range(-1, session.lengths.telemetry_rounds):
            each = []
            for system in (traced, silent):
                load = _load(system, f"t{number}x", session.lengths.telemetry_requests)
                each.append(settled_per_s(*await settle(system, load)))
            if number >= 0:  # the first warms up
                pairs.append((each[0], each[1]))
        session.results.put(telemetry_batch_ratio=statistics.median(on / off for on, off in pairs))
        await session.check_all({"telemetry": traced, "telemetry_off": silent})


async def _many_coupons(session: Session) -> None:
    """One issuer and one ledger, then two of each: on two cores not faster, but what does a request cost?"""
    lengths, results = session.lengths, session.results
    for copies, name in ((1, "many"), (2, "two")):
        async with session.firstcome(copies=copies) as ours:
            await ours.create([f"c-{number}" for number in range(lengths.many_coupons)], STOCK)
            loads = [_many(ours, f"{n}w", lengths.many_requests // 10, lengths.many_coupons) for n in range(PROCESSES)]
            await _settle_all(ours, loads)
            loads = [_many(ours, f"{n}m", lengths.many_requests, lengths.many_coupons) for n in range(PROCESSES)]
            if copies > 1:
                loads = [replace(load, address=ours.addresses[n % copies]) for n, load in enumerate(loads)]
            usage = Usage(ours)
            told, watch = await _settle_all(ours, loads)
            usage.stop(told.cpu_s)
            session.expect(name, told)
            results.put(**{f"{name}_settled_per_s": settled_per_s(told, watch)})
            results.put(**{f"{name}_cpu_us_per_settled": usage.servers_us(told.good)})
            results.put(**{f"{name}_cpu_us_{part}": us for part, us in usage.by_name_us(told.good).items()})
            await session.check(name, ours)


async def _settle_all(ours: Firstcome, loads: list[Load]) -> tuple[Told, Watch]:
    async with Watch(ours) as watch:
        told = await run_all(loads)
        await watch.until_settled(told.good)
    return told, watch


async def _redis(session: Session) -> None:
    results, lengths = session.results, session.lengths
    async with session.redis(batch=BATCH) as redis:
        await redis.create(["hot"], STOCK)
        await settle(redis, _load(redis, "warm", min(lengths.redis_requests, 10 * BATCH)))
        usage = Usage(redis)
        told, watch = await settle(redis, _load(redis, "b", lengths.redis_requests))
        usage.stop(told.cpu_s)
        session.expect("batch of the Redis system", told)
        results.put(
            baseline_accepted_per_s=told.per_s,
            baseline_batched_settled_per_s=settled_per_s(told, watch),
            baseline_cpu_us_per_settled=usage.servers_us(told.good),
        )
        results.put(**{f"baseline_cpu_us_{name}": us for name, us in usage.by_name_us(told.good).items()})
        results.line("throughput", "Redis system: accepted", told.rates())
        results.line("throughput", "Redis system: stored", rates(watch.settled))
    async with session.redis(batch=ONE_AT_A_TIME) as redis:
        await redis.create(["hot"], STOCK)
        told, watch = await settle(redis, _load(redis, "b", lengths.redis_single_requests, batch=100))
        results.put(baseline_settled_per_s=settled_per_s(told, watch))


def _load(system: System, prefix: str, requests: int, *, batch: int = BATCH) -> Load:
    size = min(batch, max(1, requests // (2 * PROCESSES)))
    return Load(
        system.address, "coupons/hot", prefix, batch=size, callers=CALLERS, calls=requests // size, timeout_s=60
    )


def _many(system: System, prefix: str, requests: int, coupons: int) -> Load:
    size = min(BATCH, max(1, requests // (2 * PROCESSES)))
    load = Load(
        system.address,
        "coupons/c",
        prefix,
        coupons=coupons,
        batch=size,
        callers=CALLERS,
        calls=requests // size,
        timeout_s=60,
    )
    return part_of(load, 0, PROCESSES)
