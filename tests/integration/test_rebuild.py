"""A database rebuilt from Kafka alone: the same books as the original's, and a ledger that goes on with them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence

import asyncpg
import pytest

from migrations.database import upgrade
from services.domain.model import Ticket
from services.ledger.rebuild import rebuild
from services.ledger.state_hash import digest_of, hash_tables
from services.ledger.store import LedgerStore
from services.runtime import lifecycle, wire
from services.runtime.config import LedgerConfig, ledger_config
from services.runtime.kafka import Appended, Message, Record, RecordProducer, Topics
from stack import Stack
from tests.conftest import TEST_PARTITIONS
from tests.integration.ledger_world import (
    HOME,
    PATIENCE_S,
    Fuse,
    FusedProducer,
    World,
    batches_of,
    change,
    coupon_at,
    create,
    eventually,
    garbage,
    issue,
    redrive,
)

EVERY = range(TEST_PARTITIONS)
ELSEWHERE, NOWHERE = (HOME + 1) % TEST_PARTITIONS, (HOME + 2) % TEST_PARTITIONS


@pytest.fixture
async def world(stack: Stack, database: str, topics: Topics) -> AsyncIterator[World]:
    made = World(stack, database, topics)
    yield made
    await made.close()


@pytest.fixture
async def copy(stack: Stack, empty_database: str, topics: Topics) -> AsyncIterator[World]:
    """The same topics with an empty, migrated database."""
    await upgrade(empty_database, time.monotonic() + PATIENCE_S)
    made = World(stack, empty_database, topics)
    yield made
    await made.close()


def environment(world: World) -> dict[str, str]:
    return {
        "FIRSTCOME_KAFKA_BOOTSTRAP": world.stack.kafka_bootstrap,
        "FIRSTCOME_POSTGRES_DSN": world.dsn,
        "FIRSTCOME_TOPIC_PREFIX": world.topics.prefix,
    }


def config(world: World) -> LedgerConfig:
    return ledger_config(environment(world))


async def command(world: World, name: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.ledger", name,
        env={**os.environ, **environment(world)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


async def told(world: World, name: str) -> str:
    """What the command prints; it must succeed."""
    process = await command(world, name)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, out
    return out.decode()


async def digest(world: World) -> str:
    return digest_of(await hash_tables(world.engine, world.topics.line))


async def topics_as_they_are(world: World) -> Sequence[list[Record]]:
    return [await world.records(t, p) for t in (world.topics.outcomes, world.topics.dlq) for p in EVERY]


async def make_history(world: World, patch: pytest.MonkeyPatch) -> None:
    """Every kind of verdict, and records that were parked by a release that could not read them and this one can."""

    def unlucky(record: Record, decode: object = wire._decode) -> object:
        if b"unlucky" in (record.value or b""):
            raise RuntimeError("a bad release")
        return decode(record)  # type: ignore[operator]

    for partition in EVERY:
        coupon_id = coupon_at(partition)
        crowd = [issue(f"user-{n - (n % 10 == 0)}", coupon_id) for n in range(600)]
        await world.put(
            create(200, coupon_id, request="create"),
            *crowd[:300],
            garbage(partition),
            *crowd[300:],
            partition=partition,
        )
    await world.put(
        change("PAUSE"), issue("paused"), change("RESUME"), change("ADJUST_STOCK", delta=300), issue("unlucky"),
        create(7, request="create"), create(200, request="create"), issue("late"), issue("lost", "no-such-coupon"),
        Message(b"other", issue("x").value, issue("x").headers),
    )  # fmt: skip
    parked = (await world.line())[-6]
    with patch.context() as patched:
        patched.setattr(wire, "_decode", unlucky)
        patched.setattr(wire, "are_ids", lambda _: False)  # no request is plain enough to go another way
        async with world.running(*(world.ledger(partition) for partition in EVERY)):
            await world.rest(*EVERY)
    original = Ticket(HOME, parked.offset)
    await world.put(
        redrive(issue("unlucky"), original, parked.timestamp_ms),
        redrive(issue("unlucky"), original, parked.timestamp_ms, attempt=2),
        redrive(garbage(HOME), Ticket(HOME, 301), parked.timestamp_ms),
    )
    await world.settle()
    verdicts = await world.verdicts()
    assert verdicts[parked.offset] == "PARKED INTERNAL"
    assert verdicts[-3:] == ["ISSUED 202", "REPEATED", "PARKED UNDECODABLE"]


async def test_a_rebuild_killed_and_stopped_on_its_way_ends_with_the_same_books_and_its_ledger_goes_on(
    world: World, copy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_history(world, monkeypatch)
    published = await topics_as_they_are(world)
    with pytest.raises(lifecycle.Unfinished, match=r"not empty: there are rows in .*user_coupon"):
        await rebuild(config(world), asyncio.Event())

    # kill -9, with one partition done and another that can't begin
    blocker = await asyncpg.connect(copy.dsn)
    blocked = blocker.transaction()
    await blocked.start()
    await blocker.execute("INSERT INTO ledger_progress VALUES ($1, $2, 0, 0, 0)", copy.topics.line, ELSEWHERE)
    process = await command(copy, "rebuild")
    ends = {partition: len(await world.line(partition)) for partition in EVERY}

    async def home_is_done() -> bool:
        row = await copy.progress(HOME)
        return row is not None and row["next_offset"] == ends[HOME]

    await eventually(home_is_done)
    process.kill()
    await process.communicate()
    await blocked.rollback()
    await blocker.close()
    assert await copy.verdicts(ELSEWHERE) == []

    # SIGTERM, a few small batches later
    stopping = asyncio.Event()
    left = 5

    async def settle(store: LedgerStore, *arguments: object, of: object = LedgerStore.settle) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            stopping.set()
        return await of(store, *arguments)  # type: ignore[operator]

    with monkeypatch.context() as patched:
        batches_of(50, patched)
        patched.setattr(LedgerStore, "settle", settle)
        with pytest.raises(lifecycle.Unfinished, match=r"stopped at .* of .* the same command goes on from there"):
            await rebuild(config(copy), stopping)
    assert await digest(copy) != await digest(world)

    assert "goes on with a rebuild that was stopped" in (text := await told(copy, "rebuild"))
    assert f"done: {sum(ends.values()):,} records" in text
    assert await topics_as_they_are(world) == published
    ours, theirs = await asyncio.gather(told(world, "state-hash"), told(copy, "state-hash"))
    assert ours == theirs
    assert await copy.settled_rows() == await world.settled_rows()
    for partition in EVERY:
        row = await copy.progress(partition)
        assert row["published_offset"] == row["next_offset"] == ends[partition]

    # A ledger on it publishes nothing again, and goes on.
    async with copy.running(*(copy.ledger(partition) for partition in EVERY)):
        await copy.put(issue("after"), issue("user-1", request="another"), garbage(99))
        await copy.rest(*EVERY)
    assert (await copy.verdicts())[-3:] == ["ISSUED 203", "ALREADY_ISSUED", "PARKED UNDECODABLE"]
    assert [len(await copy.outcomes(partition)) for partition in EVERY] == [
        ends[partition] + 3 * (partition == HOME) for partition in EVERY
    ]
    await copy.audit()

    # One row changed by hand shows, in its table.
    await world.settle()
    assert await digest(copy) == await digest(world)
    await copy.execute("UPDATE user_coupon SET user_id = 'mallory' WHERE user_id = 'late'")
    hashes = [await hash_tables(one.engine, one.topics.line) for one in (world, copy)]
    assert [ours.table for ours, theirs in zip(*hashes, strict=True) if ours != theirs] == ["user_coupon"]


class WithoutDeadLetters(RecordProducer):
    """Loses what should go to the DLQ."""

    async def append(self, topic: str, partition: int, messages: Iterable[Message]) -> list[Appended]:
        if topic.endswith(".dlq"):
            return [Appended(0, 0) for _ in messages]
        return await super().append(topic, partition, messages)


async def test_what_kafka_lacks_is_published_by_the_ledger_that_is_started_on_the_rebuilt_database(
    world: World, copy: World
) -> None:
    # One partition's ledger dies with a batch committed and its dead letter published, its outcomes not.
    await world.settle(create(2), issue("a"))
    await world.put(garbage(), issue("b"), issue("c"))
    dying = FusedProducer(world.producer, Fuse(1), world.topics.outcomes)
    assert await world.run_until_death(world.ledger(producer=dying))
    # Another one's outcomes are there, and its dead letter is not.
    losing = WithoutDeadLetters(world.stack.kafka_bootstrap, "test")
    elsewhere = coupon_at(ELSEWHERE)
    await world.put(create(2, elsewhere), garbage(), issue("a", elsewhere), partition=ELSEWHERE)
    async with world.running(world.ledger(ELSEWHERE, producer=losing)):
        await world.rest(ELSEWHERE)
    await losing.stop()
    # A third one has no outcomes at all.
    await world.put(create(2, coupon_at(NOWHERE)), garbage(), issue("a", coupon_at(NOWHERE)), partition=NOWHERE)

    await rebuild(config(copy), asyncio.Event())
    rows = [await copy.progress(partition) for partition in (HOME, ELSEWHERE, NOWHERE)]
    # What is behind the last outcome nobody was told: it is left to the ledger.
    assert [(row["next_offset"], row["published_offset"]) for row in rows] == [(2, 2), (3, 1), (3, 0)]
    assert [len(await copy.outcomes(partition)) for partition in (HOME, ELSEWHERE, NOWHERE)] == [2, 3, 0]

    three = HOME, ELSEWHERE, NOWHERE
    async with copy.running(*(copy.ledger(partition) for partition in three)):
        await copy.rest(*three)
    async with world.running(*(world.ledger(partition) for partition in three)):
        await world.rest(*three)
    assert await digest(copy) == await digest(world)
    assert [await copy.dead_letter_offsets(partition) for partition in three] == [[2], [1], [1]]
    await copy.audit()
