"""Records that can't be processed: some, many, too large, all of them; and a dlq that dies while it redrives."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from chaos.fault import Fault, Inject, Setup
from chaos.plan import Act, Request, Way, new_uuid
from chaos.world import World
from demo.garbage import ISSUE_TYPE, make_garbage, put_garbage

GARBAGE_RUN = 1_500
RUN_MAX = 1_000
CURSED = 60
_CURSED = {"ledger": {"CHAOS_CURSED": "cursed"}}
_QUICK_RETRIES = {"FIRSTCOME_RETRY_BACKOFF_BASE_MS": "300", "FIRSTCOME_RETRY_BACKOFF_CAP_MS": "1000"}


async def _garbage(world: World, rng: random.Random) -> None:
    garbage = [one for partition in range(4) for one in make_garbage("hot-0", partition, 4)] * 3
    rng.shuffle(garbage)
    await put_garbage(world.kafka_bootstrap, world.line, garbage, 6.0)
    world.note(f"{len(garbage)} records of garbage")


async def _oversized(world: World, rng: random.Random) -> None:
    """Up to what the topic takes, which is more than an issue request may be."""
    await world.at(1.0)
    for size in (65_000, 66_000, 200_000, 1_000_000, 1_047_000):
        value = rng.randbytes(size)
        await world.put(rng.randrange(4), [(b"hot-0", value, [("ce_type", ISSUE_TYPE)])])
    long_header = [("ce_type", ISSUE_TYPE), ("odd", b"x" * 900_000)]
    await world.put(rng.randrange(4), [(b"hot-0", b"", long_header), (b"k" * 500_000, None, [])])


async def _all_garbage(world: World, rng: random.Random) -> None:
    partition = 2
    await world.at(1.0)
    await world.put(partition, [(b"k%d" % n, b"\xff\xfe%d" % n, [("ce_type", ISSUE_TYPE)]) for n in range(GARBAGE_RUN)])
    names = ("ledger-0", "ledger-1")

    async def alarmed() -> bool:
        return "NOT_SERVING" in [await world.health(name, "firstcome.ledger.line") for name in names]

    seconds = await world.until("a ledger's health shows the halted partition", alarmed)
    parked = await _parked_run(world, partition)
    # Each ledger that takes the partition over parks one more before it halts.
    world.require(RUN_MAX <= parked <= RUN_MAX + 5, f"{parked} records of the run are parked, not {RUN_MAX}")
    alive = [await world.health(name, "") for name in names]
    world.require(alive == ["SERVING"] * 2, f"liveness is {alive}")
    # All that the other partitions get meanwhile is settled.
    await world.at(7.0)
    world.note(f"halted {seconds:.1f} s after, with {parked} parked")
    for name in names:
        world.kill(name)
    await world.start_again(*names, FIRSTCOME_DEAD_LETTER_RUN_MAX="0")
    await world.until_drained()
    parked = await _parked_run(world, partition)
    world.require(parked == GARBAGE_RUN, f"{parked} records are parked after the restart, not {GARBAGE_RUN}")


async def _parked_run(world: World, partition: int) -> int:
    statement = "SELECT count(*) AS n FROM rejected_issue WHERE reason = 'PARKED' AND ticket_partition = $1"
    return int((await world.fetch(statement, partition))[0]["n"])


async def _curse(world: World, rng: random.Random) -> None:
    """Requests on which the ledger fails the first time."""
    for number in range(CURSED):
        coupon = rng.choice(("hot-0", "hot-1", "hot-2", "live"))
        await world.clients.act(Act(0.0, Way.UNARY, (Request(coupon, f"cursed-{number}", new_uuid(rng)),)))
        await asyncio.sleep(rng.uniform(0.0, 0.1))


async def _until_resolved(world: World) -> None:
    async def resolved() -> bool:
        (row,) = await world.fetch(_UNRESOLVED)
        return bool(row["unresolved"] == 0)

    await world.until("every redrive has its verdict", resolved)
    rows = await world.fetch("SELECT reason FROM rejected_issue WHERE redrive_of IS NOT NULL")
    granted = await world.fetch("SELECT count(*) AS n FROM user_coupon WHERE redrive_of IS NOT NULL")
    told = Counter(row["reason"] for row in rows)
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(told.items()))
    world.note(f"redriven: {granted[0]['n']} ISSUED, {refused}")


async def _cursed(world: World, rng: random.Random) -> None:
    await _curse(world, rng)
    await _until_resolved(world)


def _dies_redriving(kill_at_random: bool) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        cursing = asyncio.create_task(_curse(world, rng))
        if kill_at_random:
            for _ in range(4):
                await asyncio.sleep(rng.uniform(0.5, 1.5))
                world.kill("dlq-0")
                await world.start_again("dlq-0")
        else:
            await world.until_down("dlq-0")
            await world.start_again("dlq-0")
        await cursing
        await _until_resolved(world)

    return inject


def _redriving(name: str, what: str, inject: Inject, failpoint: str | None = None) -> Fault:
    dlq = {**_QUICK_RETRIES, **({"FIRSTCOME_FAILPOINT": failpoint} if failpoint else {})}
    return Fault(name, what, inject, Setup(env={**_CURSED, "dlq": dlq}), believed_max=2 * CURSED)


# What was parked by the ledger and is not yet resolved by the dlq.
_UNRESOLVED = """
SELECT count(*) AS unresolved FROM rejected_issue r LEFT JOIN dead_letter d USING (ticket_partition, ticket_offset)
WHERE r.reason = 'PARKED' AND r.redrive_of IS NULL AND d.state IS DISTINCT FROM 'RESOLVED'"""
FAULTS = (
    Fault("garbage", "records of every broken kind among the requests, in all partitions", _garbage),
    Fault("oversized", "records larger than any request, up to what the topic takes", _oversized),
    Fault("all-garbage", f"{GARBAGE_RUN} broken records in a row: the partition halts and alarms", _all_garbage),
    _redriving("cursed", "a bug of the ledger that passes: dead letters are redriven and granted", _cursed),
    _redriving("dlq-killed-redriving", "kill -9 of the dlq again and again while it redrives", _dies_redriving(True)),
    _redriving(
        "dlq-dies-redrives-published",
        "kill -9 of the dlq when redrives are in the line, not marked",
        _dies_redriving(False),
        "dlq.redrives_published=kill@3",
    ),
    _redriving(
        "dlq-dies-redrives-marked",
        "kill -9 of the dlq when redrives are marked, not committed",
        _dies_redriving(False),
        "dlq.redrives_marked=kill@3",
    ),
)
