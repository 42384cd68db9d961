"""The example consumer on real outcomes: each winner told once, through duplicates, crashes and other topics."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from examples.notifier.notifier import OutcomesLost, notify, tell_untold
from examples.notifier.store import Store, Win
from services.runtime.kafka import Message, Topics
from stack import Stack
from tests.integration.ledger_world import COUPON, HOME, PATIENCE_S, World, change, create, garbage, issue


@pytest.fixture
async def world(stack: Stack, database: str, topics: Topics) -> AsyncIterator[World]:
    made = World(stack, database, topics)
    yield made
    await made.close()


async def told(world: World, store: Path, topic: str | None = None) -> list[str]:
    """Whom a run to the topic's end tells."""
    users: list[str] = []
    opened = Store(store)
    try:
        reading = notify(
            world.stack.kafka_bootstrap,
            topic or world.topics.outcomes,
            opened,
            lambda win: users.append(win.user_id),
            asyncio.Event(),
            until_end=True,
        )
        await asyncio.wait_for(reading, PATIENCE_S)
    finally:
        opened.close()
    return users


async def run(world: World, store: Path, out: Path) -> int | None:
    """The program itself, to the topic's end."""
    options = ["--bootstrap", world.stack.kafka_bootstrap, "--topic", world.topics.outcomes, "--until-end"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.notifier", *options, "--store", str(store), "--out", str(out)
    )
    return await asyncio.wait_for(process.wait(), PATIENCE_S)


async def test_each_winner_is_told_once_though_outcomes_come_twice_and_the_program_starts_again(
    world: World, tmp_path: Path
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    await world.settle(create(2), issue("ann"), garbage(), issue("bob"), issue("cid"), issue("ann"))
    assert await run(world, store, out) == 0
    assert out.read_text().splitlines() == [
        f"ann has coupon {COUPON}, number 1 [{world.topics.line}/{HOME}/1]",
        f"bob has coupon {COUPON}, number 2 [{world.topics.line}/{HOME}/3]",
    ]
    # A ledger on an older row publishes all of it again.
    await world.execute("UPDATE ledger_progress SET published_offset = 0, dlq_offset = 0")
    await world.settle(change("ADJUST_STOCK", delta=1), issue("dan"))
    assert len(await world.outcomes()) == 6 + 6 + 2
    assert await told(world, store) == ["dan"]
    assert await told(world, store) == []

    # On another topic, where the same outcomes are published for a new consumer, they are the same events.
    other = [Message(one.key, one.value, list(one.headers)) for one in await world.outcomes()]
    await world.producer.append(world.topics.dlq, HOME, other)
    assert await told(world, store, world.topics.dlq) == []
    assert await told(world, tmp_path / "another", world.topics.dlq) == ["ann", "bob", "dan"]


async def test_outcomes_that_are_gone_are_not_passed_over_in_silence(world: World, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.take_in(world.topics.outcomes, HOME, 7, [])
    store.close()
    with pytest.raises(OutcomesLost, match=r"has 0 to 0, not 7.*republish"):
        await told(world, tmp_path / "store")


def test_a_crash_between_telling_and_noting_tells_again_under_the_same_id(tmp_path: Path) -> None:
    wins = [Win(f"line/0/{number}", "spring", f"user-{number}", number) for number in (1, 2, 3)]
    heard: list[Win] = []

    def tell_and_die_at_the_second(win: Win) -> None:
        heard.append(win)
        if len(heard) == 2:
            raise KeyboardInterrupt

    store = Store(tmp_path / "store")
    store.take_in("outcomes", 0, 4, [*wins, *wins])
    with pytest.raises(KeyboardInterrupt):
        tell_untold(store, tell_and_die_at_the_second)
    store.close()
    store = Store(tmp_path / "store")
    assert store.positions("outcomes") == {0: 4}
    tell_untold(store, heard.append)
    assert heard == [*wins[:2], *wins]
    store.take_in("outcomes", 0, 7, wins)
    assert store.untold(10) == []
    store.close()
