"""What callers and operators can do: storms of one user, stock raised in mid-rush."""

from __future__ import annotations

import asyncio
import random

from chaos.clients import Clients
from chaos.fault import Fault
from chaos.plan import Act, Change, Request, Way, new_uuid
from chaos.world import World

STORM_CALLS = 600
RAISES = 20
RAISE_BY = 10


async def _storm(world: World, rng: random.Random) -> None:
    """One user, at all issuers at once: a few request_ids over and over, and new ones."""
    await world.at(1.0)
    people: Clients = world.clients
    kept = [new_uuid(rng) for _ in range(5)]

    async def call(number: int) -> None:
        request_id = kept[number % 5] if number % 2 else new_uuid(rng)
        way = Way.WAIT if number % 7 == 0 else Way.UNARY
        await people.act(Act(0.0, way, (Request("live" if number % 3 else "hot-1", "storm", request_id),)))

    await asyncio.gather(*(call(number) for number in range(STORM_CALLS)))
    await world.until_drained()
    rows = await world.fetch("SELECT coupon_id, count(*) AS n FROM user_coupon WHERE user_id = 'storm' GROUP BY 1")
    world.require(all(row["n"] == 1 for row in rows), f"the user has {rows}")
    world.note(f"{STORM_CALLS} calls of one user, {len(rows)} grants")


async def _raised(world: World, rng: random.Random) -> None:
    """Sold out, raised, sold out again, and again."""
    for _ in range(RAISES):
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        await world.clients.change(Change(0.0, "ADJUST", "hot-0", RAISE_BY, new_uuid(rng)))
    (row,) = await world.fetch("SELECT total FROM coupon WHERE coupon_id = 'hot-0'")
    world.note(f"raised to {row['total']}")
    world.require(row["total"] >= RAISES * RAISE_BY, f"raised {RAISES} times by {RAISE_BY}, it is {row['total']}")


FAULTS = (
    Fault("one-user-storm", f"one user calls {STORM_CALLS} times at once, at all issuers", _storm),
    Fault("stock-raised", f"the stock of a coupon that sells out is raised {RAISES} times in mid-rush", _raised),
)
