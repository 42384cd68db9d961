"""What goes wrong around the services: clocks, telemetry, group membership."""

from __future__ import annotations

import asyncio
import random

from aiokafka.protocol.admin import DeleteGroupsRequest

from chaos.fault import Fault, Setup
from chaos.world import NotAsExpected, World
from demo.garbage import make_garbage, put_garbage

STORM_ROUNDS = 6
SILENT_PORT = "http://192.0.2.1:4317"  # of a net that is for documentation: nobody answers
_CLOCKS = {
    # Issuers judge the sale window by their own clock when it is more than 1 s away: within that they may differ.
    "issuer-0": {"CHAOS_CLOCK_SHIFT_S": "0.9"},
    "issuer-1": {"CHAOS_CLOCK_SHIFT_S": "-0.9"},
    "ledger-0": {"CHAOS_CLOCK_SHIFT_S": "7200"},
    "ledger-1": {"CHAOS_CLOCK_SHIFT_S": "-86400"},
    "dlq-0": {"CHAOS_CLOCK_SHIFT_S": "3600"},
}


async def _clocks(world: World, rng: random.Random) -> None:
    garbage = make_garbage("hot-0", 1, 4) * 2
    putting = asyncio.create_task(put_garbage(world.kafka_bootstrap, world.line, garbage, 6.0))
    await world.at(rng.uniform(3.0, 5.0))
    # The other clock takes over what this one has begun.
    world.kill("ledger-0")
    await world.at(8.0)
    await putting


async def _telemetry(world: World, rng: random.Random) -> None:
    await world.at(world.setup.rush_s)


async def _rebalances(world: World, rng: random.Random) -> None:
    """Ledgers that come and go, orderly and not, until every partition has moved many times."""
    for _ in range(STORM_ROUNDS):
        name = rng.choice(("ledger-1", "ledger-2"))
        process = world.services[name]
        if rng.random() < 0.5:
            await asyncio.to_thread(process.stop)
        else:
            world.kill(name)
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        await world.start_again(name)
    taken = sum(len(world.logged(name, "position_taken")) for name in world.services if name.startswith("ledger"))
    world.note(f"{taken} positions taken")


async def _groups_forgotten(world: World, rng: random.Random) -> None:
    """Kafka forgets how far the groups were."""
    await world.at(rng.uniform(2.0, 3.0))
    names = ("ledger-0", "ledger-1", "dlq-0")
    await asyncio.gather(*(asyncio.to_thread(world.services[name].stop) for name in names))
    groups = [f"{world.prefix}ledger", f"{world.prefix}dlq"]
    async with world.admin() as admin:
        node = await admin.find_coordinator(groups[0])
        left = groups
        for _ in range(100):  # a member that was killed counts until its session is over
            answer = await admin._send_request(DeleteGroupsRequest(left), node)
            left = [name for name, code in answer.results if code != 0]
            if not left:
                break
            await asyncio.sleep(0.1)
        if left:
            raise NotAsExpected(f"the groups {answer.results} are not deleted")
    await world.start_again(*names)


FAULTS = (
    Fault(
        "clocks-apart", "clocks that are wrong by up to a day, and a change of the ledger", _clocks, Setup(env=_CLOCKS)
    ),
    Fault(
        "telemetry-dead",
        "every trace is sampled, and nobody takes them",
        _telemetry,
        Setup(
            env={
                kind: {"OTEL_EXPORTER_OTLP_ENDPOINT": SILENT_PORT, "OTEL_TRACES_SAMPLER": "always_on"}
                for kind in ("issuer", "ledger", "dlq")
            }
        ),
        standstill_s_max=3.0,
    ),
    Fault("rebalance-storm", "three ledgers that come and go all the time", _rebalances, Setup(ledgers=3, rush_s=14.0)),
    Fault("groups-forgotten", "the consumer groups and their offsets are deleted", _groups_forgotten),
)
