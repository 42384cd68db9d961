"""What the ledger makes of accidents: deaths at each step, rivals, cut connections, restored databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import asyncpg
import pytest

from services.domain.decide import _Line
from services.domain.model import ParkReason
from services.ledger import consumer
from services.ledger import store as ledger_store
from services.ledger.store import LedgerStore, ParkedRun
from services.runtime import wire
from services.runtime.kafka import Appended, DeliveryUnknown, Message, Record, RecordProducer
from services.runtime.progress import Position, PositionLost
from stack import Link, Stack
from tests.conftest import TEST_PARTITIONS
from tests.integration.ledger_world import (
    COUPON,
    HOME,
    Died,
    Fuse,
    FusedProducer,
    FusedStore,
    World,
    batches_of,
    change,
    coupon_at,
    create,
    eventually,
    garbage,
    halted,
    issue,
)


def mixture(size: int = 40) -> list[Message]:
    """A coupon of a quarter of the records, with repeats, changes, garbage and what PostgreSQL refuses."""
    odd = coupon_at(HOME, 1)
    made = [create(size // 4)]
    for number in range(1, size):
        if number % 7 == 0:
            made.append(garbage(number))
        elif number % 11 == 0:
            made.append(create(1, odd, name=f"\x00{number}"))
        elif number % 13 == 0:
            made.append(change("PAUSE" if number % 2 else "RESUME"))
        else:
            made.append(issue(f"user-{number % 17}", request=str(number % 34)))
    return made


# Deaths


async def die_before_commit(world: World, patch: pytest.MonkeyPatch) -> None:
    async def dying(*_: Any) -> None:
        raise Died

    with patch.context() as here:
        here.setattr(ledger_store, "_write_coupons", dying)
        assert await world.run_until_death(world.ledger())
    assert await world.verdicts() == []


async def die_between_commit_and_publication(world: World, patch: pytest.MonkeyPatch) -> None:
    store = FusedStore(world.store, Fuse(2))
    assert await world.run_until_death(world.ledger(store=store))
    assert await world.verdicts() != []
    assert await world.outcomes() == []


async def die_between_dead_letters_and_outcomes(world: World, patch: pytest.MonkeyPatch) -> None:
    producer = FusedProducer(world.producer, Fuse(1), world.topics.outcomes)
    assert await world.run_until_death(world.ledger(producer=producer))
    assert await world.dead_letters() != []
    assert await world.outcomes() == []


async def die_between_publication_and_its_note(world: World, patch: pytest.MonkeyPatch) -> None:
    store = FusedStore(world.store, Fuse(3))
    assert await world.run_until_death(world.ledger(store=store))
    assert len(await world.outcomes()) == len(await world.line())
    assert (await world.progress())["published_offset"] == 0


@pytest.mark.parametrize(
    "die",
    [
        die_before_commit,
        die_between_commit_and_publication,
        die_between_dead_letters_and_outcomes,
        die_between_publication_and_its_note,
    ],
)
async def test_a_death_loses_nothing_and_doubles_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, die: Callable[..., Any]
) -> None:
    await world.put(create(2), issue("a"), garbage(), issue("b"), issue("c"), issue("a"))
    await die(world, monkeypatch)
    await world.settle()
    assert await world.verdicts() == [
        "APPLIED",
        "ISSUED 1",
        "PARKED UNDECODABLE",
        "ISSUED 2",
        "SOLD_OUT",
        "REPEATED",
    ]
    # What was on the DLQ is found there, and not put there again.
    assert await world.dead_letter_offsets() == [2]
    await world.audit()


async def test_dead_letters_are_not_put_again_when_the_next_batch_is_committed_before_their_outcomes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_IDLE_MS", "IDLE_MS"):  # the next batch comes before the ledger waits for this one
        monkeypatch.setattr(consumer, name, 10_000)
    on_dlq, next_settled = asyncio.Event(), asyncio.Event()

    class Telling(LedgerStore):
        async def settle(self, before: Position, *rest: Any) -> Any:
            done = await super().settle(before, *rest)
            if before.next_offset > 0:
                next_settled.set()
            return done

    class Dying(FusedProducer):
        async def append(self, topic: str, partition: int, messages: Iterable[Message]) -> list[Appended]:
            if topic == world.topics.outcomes:
                on_dlq.set()
                await next_settled.wait()
                raise Died
            return await super().append(topic, partition, messages)

    await world.put(create(2), garbage())
    store = Telling(world.engine, world.topics.line, TEST_PARTITIONS)
    ledger = world.ledger(store=store, producer=Dying(world.producer, Fuse(1_000)))
    dying = asyncio.create_task(world.run_until_death(ledger))
    await on_dlq.wait()
    await world.put(issue("a"))
    assert await dying
    assert (await world.progress())["next_offset"] == 3
    monkeypatch.setattr(consumer, "IDLE_MS", 50)
    await world.settle()
    assert await world.dead_letter_offsets() == [1]
    await world.audit()


@pytest.mark.parametrize("steps", [2, 5])
async def test_a_ledger_that_dies_again_and_again_settles_everything_once(
    world: World, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Each lives for so many calls to store and producer; where none gets ahead, the next may live a step longer."""
    batches_of(6, monkeypatch)
    await world.put(*mixture())
    died, longer, reached = 0, 0, 0
    while True:
        fuse = Fuse(steps + longer)
        ledger = world.ledger(store=FusedStore(world.store, fuse), producer=FusedProducer(world.producer, fuse))
        if not await world.run_until_death(ledger):
            break
        died += 1
        row = await world.progress()
        ahead = row["next_offset"] + row["published_offset"] > reached
        longer = 0 if ahead else longer + 1
        reached = max(reached, row["next_offset"] + row["published_offset"])
        assert died < 200
    assert died > 0
    await world.audit()


# Rivals


async def test_two_ledgers_on_one_partition_settle_every_record_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(20, monkeypatch)
    async with world.running(world.ledger(), world.ledger()):
        for start in range(0, 200, 50):
            await world.put(*mixture(50 + start // 50))
        await world.rest()
    assert await world.end() == len(await world.verdicts()) == 206
    await world.audit()


async def test_a_zombie_with_an_old_position_writes_nothing(world: World) -> None:
    await world.put(create(5), issue("a"))
    old = await world.store.position(HOME)
    await world.settle()
    before, rows = await world.settled_rows(), await world.progress()
    records = await world.line()
    decoded = [wire.decode(record) for record in records]
    with pytest.raises(PositionLost):
        await world.store.settle(old, old.behind(records[-1]), decoded, ParkedRun(0, 0))
    with pytest.raises(PositionLost):
        await world.store.acknowledge(old, old)
    assert (await world.settled_rows(), await world.progress()) == (before, rows)


async def test_a_ledger_whose_partition_was_settled_by_another_goes_on_behind_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen process: it has read records, and wakes when another has settled these and more."""
    frozen, thaw = asyncio.Event(), asyncio.Event()

    class Freezing(LedgerStore):
        async def settle(self, *arguments: Any) -> Any:
            if not thaw.is_set():
                frozen.set()
                await thaw.wait()
            return await super().settle(*arguments)

    sleeper = world.ledger(store=Freezing(world.engine, world.topics.line, TEST_PARTITIONS))
    async with world.running(sleeper):
        await world.put(create(5), issue("a"), garbage())
        await frozen.wait()
        await world.settle(issue("b"))
        thaw.set()
        await world.put(issue("c"))
        await world.rest()
    assert sleeper.halted is None
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "PARKED UNDECODABLE", "ISSUED 2", "ISSUED 3"]
    await world.audit()


async def test_a_ledger_frozen_while_it_sends_rows_does_not_hold_the_partition(world: World) -> None:
    """None of PostgreSQL's own time limits ends a COPY that waits for its client."""
    await world.settle(create(5), issue("a"))
    frozen = await asyncpg.connect(world.dsn, server_settings={"application_name": "test-ledger"})
    sending = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        sending.set()
        await asyncio.Event().wait()
        yield b""

    async def freeze() -> None:
        async with frozen.transaction():
            await frozen.execute("UPDATE ledger_progress SET next_offset = 99")
            await frozen.copy_to_table("rejected_issue", source=rows())

    sleeper = asyncio.create_task(freeze())
    try:
        await sending.wait()
        await world.settle(issue("b"))
    finally:
        frozen.terminate()
        sleeper.cancel()
        await asyncio.gather(sleeper, return_exceptions=True)
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "ISSUED 2"]
    await world.audit()


# COMMIT


@pytest.mark.parametrize("cut", ["cuts_before_commit", "cuts_after_commit"])
async def test_an_unknown_commit_is_resolved_by_reading_the_position_again(world: World, cut: str) -> None:
    async with Link.to_postgres(world.dsn) as way:
        setattr(way, cut, 2)
        store = world.store_at(way.dsn(world.dsn))
        await world.settle(create(2), issue("a"), garbage(), store=store)
        await world.settle(issue("b"), issue("c"), store=store)
        assert way.cut_count == 2
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "PARKED UNDECODABLE", "ISSUED 2", "SOLD_OUT"]
    assert await world.dead_letter_offsets() == [2]
    await world.audit()


# Away


async def test_while_postgresql_is_away_nothing_is_parked_and_it_goes_on_by_itself(world: World) -> None:
    async with Link.to_postgres(world.dsn) as way:
        ledger = world.ledger(store=world.store_at(way.dsn(world.dsn)))
        async with world.running(ledger):
            await world.put(create(3), issue("a"))
            await world.rest()
            way.go_down()
            await world.put(issue("b"), issue("c"))

            async def refused() -> bool:
                return way.refused_count >= 3

            await eventually(refused)
            assert (await world.progress())["next_offset"] == 2
            way.heal()
            await world.rest()
        assert ledger.halted is None
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "ISSUED 2", "ISSUED 3"]
    assert await world.dead_letters() == []
    await world.audit()


@pytest.mark.parametrize("away", ["ALLOW_CONNECTIONS false", "RENAME"])
async def test_a_database_that_takes_no_connections_is_away_and_not_broken(
    world: World, stack: Stack, away: str
) -> None:
    name = world.dsn.rpartition("/")[2]
    other = World(stack, stack.postgres_dsn, world.topics)
    there, back = f'ALTER DATABASE "{name}" {away}', f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'
    if away == "RENAME":
        there, back = f'ALTER DATABASE "{name}" RENAME TO "x{name}"', f'ALTER DATABASE "x{name}" RENAME TO "{name}"'
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('{name}', 'x{name}')"
    ledger = world.ledger()
    try:
        async with world.running(ledger):
            await world.put(create(3), issue("a"))
            await world.rest()
            while True:
                await other.fetch(end)
                try:
                    await other.fetch(there)
                except Exception:  # a connection was quicker
                    continue
                break
            await other.fetch(end)
            await world.put(issue("b"))

            async def noticed() -> bool:
                return ledger._pace.failures >= 3 or ledger.halted is not None

            await eventually(noticed)
            await other.fetch(back)
            await world.rest()
        assert ledger.halted is None
    finally:
        await other.close()
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "ISSUED 2"]
    await world.audit()


class Unreliable:
    """A producer of which so many appends fail: some were not sent, some arrive all the same."""

    def __init__(self, producer: RecordProducer, failures: int) -> None:
        self._producer, self.failures = producer, failures

    async def append(self, topic: str, partition: int, messages: Iterable[Message]) -> list[Appended]:
        if self.failures > 0:
            self.failures -= 1
            if self.failures % 2:
                await self._producer.append(topic, partition, messages)
            raise DeliveryUnknown("told to fail")
        return await self._producer.append(topic, partition, messages)


async def test_while_kafka_takes_nothing_the_ledger_tries_again_in_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(5, monkeypatch)
    producer = Unreliable(world.producer, 6)
    ledger = world.ledger(producer=producer)
    await world.put(*mixture(30))
    async with world.running(ledger):
        await world.rest()
    assert (producer.failures, ledger.halted) == (0, None)
    await world.audit()


# A restored, older database


@pytest.fixture
def cursed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """While the list's one entry is true, deciding fails on the user 'cursed', as by a bug that is mended later."""
    on, issues = [True], _Line._issue

    def failing(self: _Line, request: Any) -> Any:
        if on[0] and request.user_id == "cursed":
            raise ZeroDivisionError
        return issues(self, request)

    monkeypatch.setattr(_Line, "_issue", failing)
    return on


async def test_a_restored_database_grants_who_was_granted_and_parks_what_was_parked(
    world: World, cursed: list[bool]
) -> None:
    await world.settle(create(2), garbage(), issue("a"))
    await world.back_up()
    await world.settle(issue("cursed"), garbage(1), issue("b"), issue("c"))
    before, letters = await world.settled_rows(), await world.dead_letter_offsets()
    assert (await world.verdicts())[3:] == ["PARKED INTERNAL", "PARKED UNDECODABLE", "ISSUED 2", "SOLD_OUT"]
    cursed[0] = False
    await world.restore()
    await world.settle()
    assert await world.settled_rows() == before
    assert await world.dead_letter_offsets() == letters == [1, 3, 4]
    await world.audit()


async def test_an_empty_database_is_rebuilt_from_the_line_and_the_dlq(world: World, cursed: list[bool]) -> None:
    await world.settle(*mixture(), issue("cursed"))
    before, letters = await world.settled_rows(), await world.dead_letter_offsets()
    cursed[0] = False
    await world.execute("TRUNCATE user_coupon, rejected_issue, coupon_change, coupon, ledger_progress")
    await world.settle()
    assert await world.settled_rows() == before
    assert await world.dead_letter_offsets() == letters
    await world.audit()


@pytest.mark.parametrize("steps", [2, 5])
async def test_deaths_while_a_restored_database_catches_up_revive_no_dead_letter(
    world: World, cursed: list[bool], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    batches_of(3, monkeypatch)
    await world.settle(create(20), issue("a"))
    await world.back_up()
    await world.settle(
        *(message for n in range(5) for message in (issue(f"b{n}"), issue("cursed"), create(1, name=f"\x00{n}")))
    )
    before = await world.settled_rows()
    cursed[0] = False
    await world.restore()
    longer, reached = 0, 0
    while True:
        fuse = Fuse(steps + longer)
        ledger = world.ledger(store=FusedStore(world.store, fuse), producer=FusedProducer(world.producer, fuse))
        if not await world.run_until_death(ledger):
            break
        row = await world.progress()
        longer = 0 if row["next_offset"] > reached else longer + 1
        reached = max(reached, row["next_offset"])
    assert await world.settled_rows() == before
    await world.audit()


async def test_a_known_dead_letter_is_not_forgotten_when_a_batch_is_settled_in_parts(
    world: World, cursed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored database, a release that parks more than the last, and a limit in front of what is known."""
    await world.settle(create(20))
    await world.back_up()
    await world.settle(issue("a"), issue("b"), issue("c"), issue("d"), issue("e"), issue("cursed"))
    cursed[0] = False
    await world.restore()
    decode, decoded, published = wire._decode, asyncio.Event(), asyncio.Event()

    def worse(record: Record) -> Any:
        if record.offset in (2, 4, 5):
            return wire._unprocessable(record, ParkReason.UNDECODABLE, "by a bad release")
        return decode(record)

    class Late(LedgerStore):
        async def settle(self, before: Position, *rest: Any) -> Any:
            if before.next_offset == 4:
                decoded.set()
                await published.wait()
            return await super().settle(before, *rest)

    class Telling(FusedProducer):
        """Publishes the first batch while the second is settled."""

        async def append(self, topic: str, partition: int, messages: Iterable[Message]) -> list[Appended]:
            await decoded.wait()
            appended = await super().append(topic, partition, messages)
            if topic == world.topics.outcomes:
                asyncio.get_running_loop().call_soon(published.set)
            return appended

    batches_of(3, monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_decode", worse)
        patch.setattr(wire, "are_ids", lambda _: False)  # no request is plain enough to go another way
        store = Late(world.engine, world.topics.line, TEST_PARTITIONS)
        ledger = world.ledger(store=store, producer=Telling(world.producer, Fuse(1_000)), run_max=2)
        async with world.running(ledger):
            assert "in a row were parked" in await halted(ledger)
    assert len(await world.verdicts()) == 6
    await world.settle(run_max=0)
    assert (await world.verdicts())[6] == "PARKED INTERNAL"


async def test_a_ledger_that_stands_idle_notices_that_its_database_was_restored(world: World) -> None:
    ledger = world.ledger()
    async with world.running(ledger):
        await world.put(create(2), issue("a"))
        await world.rest()
        await world.back_up()
        await world.put(issue("b"), issue("c"))
        await world.rest()
        before = await world.settled_rows()
        await world.restore()
        await world.rest()  # though nothing new comes into the line
    assert await world.settled_rows() == before
    await world.audit()


async def test_a_database_that_is_restored_while_a_position_is_taken_halts_nobody(world: World) -> None:
    await world.settle(create(2))
    await world.back_up()
    await world.put(issue("a"))
    dying = FusedProducer(world.producer, Fuse(1), world.topics.outcomes)
    assert await world.run_until_death(world.ledger(producer=dying))

    class Restored(LedgerStore):
        restored = False

        async def verdicts(self, *asked: Any) -> Any:
            if not self.restored:
                self.restored = True
                await world.restore()
            return await super().verdicts(*asked)

    store = Restored(world.engine, world.topics.line, TEST_PARTITIONS)
    ledger = world.ledger(store=store)
    async with world.running(ledger):
        await world.rest()
    assert store.restored
    assert await world.verdicts() == ["APPLIED", "ISSUED 1"]
    await world.audit()


async def test_a_user_whose_grant_was_restored_away_has_the_same_sequence_again(world: World) -> None:
    await world.settle(create(3))
    await world.back_up()
    await world.settle(issue("a"), issue("b"), issue("c"))
    first = await world.outcomes()
    await world.restore()
    await world.settle(issue("d"), issue("b"))
    again = [one for one in await world.outcomes() if one.offset >= len(first)]
    assert [one[2:] for one in again[:3]] == [one[2:] for one in first[-3:]]
    assert (await world.verdicts())[1:] == ["ISSUED 1", "ISSUED 2", "ISSUED 3", "SOLD_OUT", "REPEATED"]
    assert {row["coupon_id"] for row in await world.fetch("SELECT coupon_id FROM user_coupon")} == {COUPON}
    await world.audit()
