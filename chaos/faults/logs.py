"""What is done to the topics themselves: recreated, truncated, limits lowered."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from chaos.fault import Fault, Inject, Setup
from chaos.plan import PARTITIONS
from chaos.world import World

LOWERED_S = 5.0
_LEDGERS = ("ledger-0", "ledger-1")
_BOOKS = """
SELECT (SELECT array_agg(c ORDER BY coupon_id)::text FROM coupon c),
    (SELECT count(*) || ' ' || max(ticket_partition || '-' || ticket_offset) FROM user_coupon),
    (SELECT count(*) || ' ' || max(ticket_partition || '-' || ticket_offset) FROM rejected_issue),
    (SELECT array_agg(p ORDER BY topic, partition)::text FROM ledger_progress p)"""


async def _recreated(world: World, rng: random.Random) -> None:
    """Another topic of the same name: nothing of it may be settled beside what is there."""
    await world.at(6.0)
    await _without_callers(world)
    before = await world.fetch(_BOOKS)
    async with world.admin() as admin:
        configs = await _configs(admin, world.line)
        await admin.delete_topics([world.line])
        await asyncio.sleep(1.0)
        await admin.create_topics([NewTopic(world.line, PARTITIONS, 1, topic_configs=configs)])
    await asyncio.sleep(1.0)
    # As many records as there were, and more: another history in the same places.
    for partition in range(PARTITIONS):
        await world.put(partition, [(b"hot-0", b"another", [])] * 600)
    await _until_halted(world)
    await _unchanged(world, before)


async def _truncated(world: World, rng: random.Random) -> None:
    """Records that no ledger has seen are deleted while all ledgers are down."""
    await world.at(4.0)
    world.kill(*_LEDGERS)
    await world.at(7.0)
    await _without_callers(world)
    before = await world.fetch(_BOOKS)
    ends = await world.ends(world.line)
    async with world.admin() as admin:
        await admin.delete_records(
            {TopicPartition(world.line, partition): RecordsToDelete(end) for partition, end in ends.items()}
        )
    await world.start_again(*_LEDGERS)
    await _until_halted(world)
    await _unchanged(world, before)


async def _without_callers(world: World) -> None:
    """The people go: what is not in the line by now does not get in."""
    world.kill("issuer-0", "issuer-1")
    ends = await world.ends(world.line)
    if all(world.services[name].running for name in _LEDGERS):
        await world.until_drained()
    world.note(f"{sum(ends.values())} records in the line")
    # The last publication is noted in the table, too, before it is looked at.
    await asyncio.sleep(2.5)


async def _until_halted(world: World) -> None:
    async def halted() -> bool:
        found = [line for name in _LEDGERS for line in world.logged(name, "partition_halted")]
        return len({line["partition"] for line in found}) == PARTITIONS

    async def alarmed() -> bool:
        return "NOT_SERVING" in [await world.health(name, "firstcome.ledger.line") for name in _LEDGERS]

    seconds = await world.until("every partition is halted", halted)
    seconds += await world.until("a ledger's health says so", alarmed, patience_s=10.0)
    reasons = {line["reason"].partition(":")[0] for name in _LEDGERS for line in world.logged(name, "partition_halted")}
    world.note(f"all partitions halted after {seconds:.1f} s ({', '.join(sorted(reasons))})")
    world.require(reasons == {"NotTheLog"}, f"halted for {reasons}")


async def _unchanged(world: World, before: list[Any]) -> None:
    await asyncio.sleep(2.0)
    after = await world.fetch(_BOOKS)
    world.require([tuple(row) for row in before] == [tuple(row) for row in after], f"{before} became {after}")


def _refuses(topic: str, size: int) -> Inject:
    """The broker refuses batches for a while: a rejected batch wedges an idempotent producer of aiokafka for ever."""

    async def inject(world: World, rng: random.Random) -> None:
        await world.at(rng.uniform(2.0, 3.0))
        name = world.line if topic == "line" else world.outcomes
        resource = ConfigResourceType.TOPIC
        async with world.admin() as admin:
            was = await _configs(admin, name)
            await admin.alter_configs([ConfigResource(resource, name, {**was, "max.message.bytes": str(size)})])
            await asyncio.sleep(LOWERED_S)
            await admin.alter_configs([ConfigResource(resource, name, was)])
        recycled = sum(len(world.logged(service, "producer_recycled")) for service in world.services)
        world.note(f"{recycled} producers replaced")
        world.require(recycled > 0, "no producer was refused")

    return inject


async def _configs(admin: Any, topic: str) -> dict[str, str]:
    """What is set for the topic itself."""
    (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    names = ("cleanup.policy", "message.timestamp.type", "min.insync.replicas", "retention.ms", "max.message.bytes")
    return {entry[0]: entry[1] for entry in response.resources[0][4] if entry[0] in names}


FAULTS = (
    Fault(
        "line-refuses", "the line takes no batch for a while: issuers' producers must not wedge", _refuses("line", 100)
    ),
    Fault("outcomes-refuse", "the outcomes topic takes no batch for a while", _refuses("outcomes", 100)),
    Fault(
        "topic-recreated",
        "the line's topic is deleted and another made and filled: all halts, nothing is written",
        _recreated,
        stands=False,
    ),
    Fault(
        "line-truncated",
        "unsettled records are deleted from the line: all halts, nothing is written",
        _truncated,
        Setup(rush_s=8.0),
        stands=False,
    ),
)
