"""Replay jobs over the whole log while the rush goes on: an audit and a republication, by dlqs that are killed."""

from __future__ import annotations

import asyncio
import random

from aiokafka.admin import NewTopic

from chaos.fault import Fault, Inject, Setup
from chaos.plan import PARTITIONS
from chaos.world import World
from checker.topics import Extent, extents, read
from demo.garbage import make_garbage, put_garbage
from firstcome import Client, Connection, ReplayJob, ReplayState, connect

PER_SECOND = 120
"""So slow that the jobs are under way while the fault lasts."""
KILLS = 3


def _replayed(*, kills: int) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        garbage = make_garbage("hot-0", 1, PARTITIONS)
        putting = asyncio.create_task(put_garbage(world.kafka_bootstrap, world.line, garbage, 4.0))
        target = f"{world.prefix}replayed"
        async with world.admin() as admin:
            await admin.create_topics([NewTopic(target, PARTITIONS, 1)])
        await world.at(rng.uniform(4.0, 5.0))
        async with connect(Connection(dlq_address=world.dlq_addresses[0])) as client:
            jobs = [
                await client.replays.audit(max_per_second=PER_SECOND),
                await client.replays.republish(target, max_per_second=PER_SECOND),
                await client.replays.audit(),
            ]
        for number in range(kills):
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            name = f"dlq-{number % 2}"
            world.kill(name)
            await world.start_again(name)
        async with connect(Connection(dlq_address=world.dlq_addresses[0])) as client:
            for number, job in enumerate(jobs):
                jobs[number] = await _ended(world, client, job)
        await putting
        for job in jobs:
            world.require(job.state is ReplayState.SUCCEEDED, f"{job.kind} is {job.state}: {job.error}")
            world.require(job.difference_count == 0, f"the audit found {job.differences[:3]}")
        world.note(f"{jobs[0].matched_count:,} and {jobs[2].matched_count:,} records audited, none differs")
        await _compare(world, target, jobs[1].matched_count)

    return inject


async def _ended(world: World, client: Client, job: ReplayJob) -> ReplayJob:
    latest = [job]

    async def over() -> bool:
        latest[0] = await client.replays.get(job.job_id)
        return latest[0].ended

    await world.until(f"{job.kind} ends", over)
    return latest[0]


async def _compare(world: World, target: str, matched: int) -> None:
    """What was published again is what had been published, with the same `ce_id`s."""
    again, first = await _outcomes(world, target), await _outcomes(world, world.outcomes)
    world.require(len(again) == matched, f"{len(again)} outcomes were published again, not {matched}")
    other = [ce_id for ce_id, value in again.items() if first.get(ce_id) != value]
    world.require(not other, f"{len(other)} outcomes differ from those of the outcomes topic, the first: {other[:1]}")
    world.note(f"{len(again):,} outcomes published again")


async def _outcomes(world: World, topic: str) -> dict[bytes | None, bytes | None]:
    found: dict[bytes | None, bytes | None] = {}
    for partition, extent in enumerate((await extents(world.kafka_bootstrap, [topic]))[topic]):
        async for records in read(world.kafka_bootstrap, topic, partition, Extent(0, extent.end)):
            found.update({dict(record.headers).get("ce_id"): record.value for record in records})
    return found


_TWO = Setup(dlqs=2, rush_s=9.0)
FAULTS = (
    Fault(
        "replay-under-load",
        "the whole log is audited and its outcomes published again in mid-rush",
        _replayed(kills=0),
        _TWO,
    ),
    Fault("replay-dlqs-killed", "the same, and the dlqs that work on it are killed", _replayed(kills=KILLS), _TWO),
)
