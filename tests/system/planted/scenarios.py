"""What happens to the services: ordinary days and faults, each of which lets some bug show. Healthy services hold.

A scenario begins with the services that it names running, and ends with the line settled.
"""

from __future__ import annotations

import asyncio

from demo.answers import Answer
from services.domain.model import Ticket
from tests.integration.ledger_world import create, garbage, issue, redrive
from tests.system.planted.world import HOME, PlantedWorld

REFRESHED_S = 1.5
"""Longer than a refusal without a ticket may be out of date."""


async def zombie(world: PlantedWorld) -> None:
    """Two ledgers work on the partition at once, as when a frozen one wakes up again."""
    await world.put(create(200, "zombie"))
    await world.settled()
    other = await world.start("ledger", group="zombie")

    async def has_position() -> bool:
        return world.logged("zombie", "position_taken") > 0

    await world.until(has_position)

    async def met() -> bool:
        """One was too late and was told so, or has settled what the other had."""
        turned_away = world.logged("ledger", "partition_interrupted") + world.logged("zombie", "partition_interrupted")
        return turned_away > 0 or "REPEATED" in await world.line.verdicts(HOME)

    for turn in range(20):
        await world.put(*(issue(f"z{turn}-{number}", "zombie") for number in range(5)))
        await world.settled()
        if await met():
            break
    await world.until(met)
    other.kill()
    await world.settled()


async def called_again(world: PlantedWorld) -> None:
    """The same person calls again: at once, later, and with another request."""
    await world.put(create(10, "again"))
    await world.settled()
    async with world.frozen("ledger"):
        await world.put(issue("ann", "again"), issue("ann", "again"), issue("bob", "again"))
    await world.settled()
    await world.put(issue("ann", "again", request="ann's second"))
    await world.settled()
    await world.put(issue("cem", "again"))
    await world.settled()


async def one_after_the_other(world: PlantedWorld) -> None:
    """Three people come, each after the one before was served; there are two coupons."""
    await world.put(create(2, "few"))
    for user_id in ("ann", "bob", "cem"):
        await world.settled()
        await world.take_place("few", user_id)
    await world.settled()


async def killed_in_transaction(world: PlantedWorld) -> None:
    """kill -9 while PostgreSQL makes the ledger wait with its inserts."""
    await world.put(create(10, "killed"))
    await world.settled()
    async with world.table_locked("user_coupon") as connection:
        await world.put(issue("ann", "killed"), issue("bob", "killed"))

        async def waits() -> bool:
            waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'user_coupon'::regclass AND NOT granted"
            return bool(await connection.fetchval(waiting))

        await world.until(waits)
        world.processes["ledger"].kill()
    await world.start("ledger")
    await world.settled()
    await world.put(issue("cem", "killed"))
    await world.settled()


async def one_unstorable(world: PlantedWorld) -> None:
    """A record that PostgreSQL can't store, among others."""
    await world.start_dlq()
    await world.put(create(10, "unstorable"))
    await world.settled()
    async with world.frozen("ledger"):
        await world.put(
            issue("ann", "unstorable"), create(1, "nul", name="\x00"), issue("bob", "unstorable"), issue("cem", "nul")
        )
    await world.settled()


async def dlq_away(world: PlantedWorld) -> None:
    """The broker takes no dead letters for a while."""
    await world.start_dlq()
    await world.put(create(10, "away"))
    await world.settled()
    refused_before = world.logged("ledger", "producer_recycled")
    await world.limit_record_bytes(world.topics.dlq, 100)
    try:
        await world.put(issue("ann", "away"), garbage(1), issue("bob", "away"))

        async def refused() -> bool:
            return world.logged("ledger", "producer_recycled") > refused_before

        await world.until(refused)
    finally:
        await world.limit_record_bytes(world.topics.dlq, None)
    await world.put(issue("cem", "away"))
    await world.settled()


async def corrected_twice(world: PlantedWorld) -> None:
    """Two redrives of one dead letter, each corrected to somebody else."""
    await world.start_dlq()
    _, failed = await world.put(create(10, "corrected"), garbage(2))
    original, time_ms = Ticket(HOME, failed.offset), failed.timestamp_ms
    await world.settled()
    for user_id in ("bob", "cem"):
        await world.put(redrive(issue(user_id, "corrected"), original, time_ms))
        await world.settled()


async def frozen_for_a_moment(world: PlantedWorld) -> None:
    """Six come, one after the other, while the ledger stands still; there are five coupons.

    It may have asked for the first of them when it was stopped, and then settles those by themselves.
    """
    await world.put(create(5, "frozen"))
    await world.settled()
    async with world.frozen("ledger"):
        for user_id in ("first", "second", "third", "fourth", "fifth", "sixth"):
            await world.take_place("frozen", user_id)
    await world.settled()


async def stock_raised(world: PlantedWorld) -> None:
    """Sold out, known to be so, and then there is more."""
    await world.client.create("raised", 1)
    await world.call("raised", "ann", wait=True)

    async def refused_without_ticket() -> bool:
        answer = await world.call("raised", "bob", wait=True)
        return isinstance(answer, Answer) and answer.reason == "SOLD_OUT" and not answer.ticket

    await world.until(refused_without_ticket)
    await world.client.adjust("raised", 5)
    await asyncio.sleep(REFRESHED_S)
    await world.call("raised", "cem", wait=True)
    await world.settled()


async def many_at_once(world: PlantedWorld) -> None:
    """Requests that go into the line together."""
    await world.client.create("together", 10)
    await world.call_together("together", ["ann", "bob", "cem"])
    await world.settled()


async def line_refuses(world: PlantedWorld) -> None:
    """The broker takes no requests for a while."""
    await world.client.create("refuses", 10)
    await world.call("refuses", "ann", wait=True)
    await world.limit_record_bytes(world.topics.line, 100)
    try:
        await world.call("refuses", "bob")
    finally:
        await world.limit_record_bytes(world.topics.line, None)
    await world.settled()
