"""A broker whose disk is full; three brokers of which some are killed."""

from __future__ import annotations

import asyncio
import random
import resource
from pathlib import Path

from chaos.fault import Fault, Setup
from chaos.world import World
from stack import KafkaCluster

ROOM_BYTES = 40_000
_CLUSTERED = Setup(clustered=True)


async def _disk_full(world: World, rng: random.Random) -> None:
    """No file of the broker may grow beyond a size that the line reaches within seconds."""
    await world.at(2.0)
    broker = world.stack.kafka
    largest = max(path.stat().st_size for path in _segments(broker.log_path.parent / "data", world.line))
    _, hard = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (largest + ROOM_BYTES, hard))

    async def over() -> bool:
        return not broker.running

    seconds = await world.until("the broker has given up its full disk", over)
    world.note(f"the broker ended {seconds:.1f} s after (status {broker.returncode})")
    await asyncio.sleep(rng.uniform(1.0, 2.0))
    await world.engines.mend()


def _segments(data: Path, topic: str) -> list[Path]:
    return list(data.glob(f"{topic}-*/*.log"))


async def _leader_killed(world: World, rng: random.Random) -> None:
    """The leader of the hottest partition, then the next one, with a restart in between."""
    cluster = await world.engines.cluster()
    for _ in range(2):
        await asyncio.sleep(rng.uniform(1.5, 2.5))
        node = await _leader(world, 0)
        await asyncio.to_thread(cluster.broker(node).kill)
        await asyncio.sleep(3.0)
        await _restart(cluster, node)
    await _until_in_sync(world)


async def _min_isr_lost(world: World, rng: random.Random) -> None:
    """Two of three are away: nothing may be acknowledged; then they come back."""
    cluster = await world.engines.cluster()
    await world.at(rng.uniform(2.0, 3.0))
    nodes = rng.sample((1, 2, 3), 2)
    for node in nodes:
        await asyncio.to_thread(cluster.broker(node).kill)
    await asyncio.sleep(5.0)
    for node in nodes:
        await asyncio.to_thread(cluster.broker(node).start)
    for node in nodes:
        await asyncio.to_thread(cluster.broker(node).wait_ready)
    await _until_in_sync(world)


async def _rolling(world: World, rng: random.Random) -> None:
    """Each broker is killed and comes back, one after the other, as an upgrade that goes wrong does."""
    cluster = await world.engines.cluster()
    await world.at(1.0)
    for node in (1, 2, 3):
        await asyncio.to_thread(cluster.broker(node).kill)
        await _restart(cluster, node)
        await _until_in_sync(world)


async def _restart(cluster: KafkaCluster, node: int) -> None:
    await asyncio.to_thread(cluster.broker(node).start)
    await asyncio.to_thread(cluster.broker(node).wait_ready)


async def _leader(world: World, partition: int) -> int:
    async with world.admin() as admin:
        (topic,) = await admin.describe_topics([world.line])
    return next(int(found["leader"]) for found in topic["partitions"] if found["partition"] == partition)


async def _until_in_sync(world: World) -> None:
    async def in_sync() -> bool:
        async with world.admin() as admin:
            (topic,) = await admin.describe_topics([world.line])
        return all(len(found["isr"]) == 3 and found["leader"] > 0 for found in topic["partitions"])

    await world.until("all replicas are in sync", in_sync)


FAULTS = (
    Fault("broker-disk-full", "the broker's files may grow no more; it ends, and comes back with room", _disk_full),
    Fault("leader-killed", "three brokers: the leader is killed, then the next one", _leader_killed, _CLUSTERED),
    Fault(
        "min-isr-lost", "three brokers: two are killed at once, so nothing is acknowledged", _min_isr_lost, _CLUSTERED
    ),
    Fault("brokers-roll", "three brokers: one after the other is killed and comes back", _rolling, _CLUSTERED),
)
