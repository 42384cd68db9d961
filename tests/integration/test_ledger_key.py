"""While everybody is granted the unique key alone finds who has the coupon already; else everybody is looked up."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from services.ledger.store import LedgerStore
from services.runtime.kafka import Message
from services.runtime.postgres import UniqueViolation
from tests.integration.ledger_world import COUPON, World, batches_of, change, create, halted, issue, request_id

TRUSTING, CAREFUL = "trusting", "careful"


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a batch was settled in which way, and what each try came to."""
    seen: Counter[str] = Counter()
    settle = LedgerStore._settle

    async def settling(store: LedgerStore, *arguments: Any, careful: bool) -> Any:
        way = CAREFUL if careful else TRUSTING
        try:
            settled = await settle(store, *arguments, careful=careful)
        except Exception as error:
            seen[f"{way} {type(error).__name__}"] += 1
            raise
        seen[way] += 1
        return settled

    monkeypatch.setattr(LedgerStore, "_settle", settling)
    return seen


async def test_nobody_is_looked_up_while_everybody_is_granted(
    world: World, ways: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(5, monkeypatch)
    await world.settle(create(100), *(issue(f"user-{number}") for number in range(49)))
    assert ways == {TRUSTING: 10}
    assert await world.verdicts() == ["APPLIED", *(f"ISSUED {n}" for n in range(1, 50))]
    await world.audit()


async def test_who_has_it_already_is_found_and_everybody_looked_up_for_a_while(
    world: World, ways: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ledger.store.CAREFUL_BATCHES", 3)
    batches_of(1, monkeypatch)
    await world.settle(create(100), issue("a"), issue("a"), issue("a", request="again"), issue("b"), issue("c"))
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "REPEATED", "ALREADY_ISSUED", "ISSUED 2", "ISSUED 3"]
    assert ways == {TRUSTING: 3, f"{TRUSTING} {UniqueViolation.__name__}": 1, CAREFUL: 3}
    await world.audit()


async def test_who_is_refused_is_told_what_he_has(
    world: World, ways: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches_of(2, monkeypatch)
    await world.settle(create(1), issue("a"), issue("b"), issue("a"))
    assert await world.verdicts() == ["APPLIED", "ISSUED 1", "SOLD_OUT", "REPEATED"]
    assert ways == {TRUSTING: 1, f"{TRUSTING} _NotAllGranted": 1, CAREFUL: 1}
    await world.audit()


@pytest.mark.parametrize("seed", range(3))
async def test_verdicts_are_those_of_looking_everybody_up(
    world: World, ways: Counter[str], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The checker has its own model, which looks nothing up."""
    monkeypatch.setattr("services.ledger.store.CAREFUL_BATCHES", 1)
    draw = random.Random(seed)

    def drawn() -> Message:
        if draw.random() < 0.03:
            return change("ADJUST_STOCK", delta=draw.choice([-5, 10, 25]))
        if draw.random() < 0.02:
            return change(draw.choice(["PAUSE", "RESUME", "RESUME"]))
        user = f"user-{draw.randrange(200)}"
        return issue(user, request=draw.choice([user, user, request_id(str(draw.random()))]))

    batches_of(6, monkeypatch)
    await world.settle(create(60), *(drawn() for _ in range(600)))
    tried = [TRUSTING, CAREFUL, f"{TRUSTING} {UniqueViolation.__name__}", f"{TRUSTING} _NotAllGranted"]
    assert all(ways[way] > 0 for way in tried), ways
    assert set(ways) == set(tried)
    await world.audit()


async def test_one_who_has_it_is_found_among_thousands_who_have_not(world: World, ways: Counter[str]) -> None:
    await world.settle(create(10_000), issue("a"))
    await world.settle(issue("a", request="again"), *(issue(f"user-{number}") for number in range(7_999)))
    assert ways[f"{TRUSTING} {UniqueViolation.__name__}"] == 1
    assert (await world.verdicts())[1:4] == ["ISSUED 1", "ALREADY_ISSUED", "ISSUED 2"]
    await world.audit()


async def test_a_clash_with_another_key_is_no_sign_of_a_grant(world: World, ways: Counter[str]) -> None:
    await world.settle(create(5))
    await world.execute(
        f"""
        INSERT INTO user_coupon (user_id, coupon_id, request_id, sequence, ticket_partition, ticket_offset, accepted_at)
        VALUES ('mallory', '{COUPON}', 'x', 1, 7, 7, now())"""
    )
    await world.put(issue("a"))
    ledger = world.ledger()
    async with world.running(ledger):
        assert "user_coupon_sequence_key" in await halted(ledger)
    assert ways == {TRUSTING: 1, f"{TRUSTING} {UniqueViolation.__name__}": 2}


@pytest.mark.parametrize(
    "instead",
    [
        "",
        ", ADD CONSTRAINT user_coupon_pkey PRIMARY KEY (user_id, coupon_id, sequence)",
        ", ADD CONSTRAINT user_coupon_pkey PRIMARY KEY (user_id, sequence)",
        ", ADD CONSTRAINT user_coupon_pkey PRIMARY KEY (user_id, coupon_id) DEFERRABLE INITIALLY DEFERRED",
    ],
)
async def test_without_the_key_nothing_is_settled_but_what_is_committed_is_published(
    world: World, instead: str
) -> None:
    await world.settle(create(5), issue("a"))
    await world.execute(
        f"ALTER TABLE user_coupon DROP CONSTRAINT user_coupon_pkey{instead}",
        "UPDATE ledger_progress SET published_offset = 1",
    )
    await world.put(issue("a", request="again"))
    ledger = world.ledger()
    async with world.running(ledger):
        assert "user_coupon_pkey" in await halted(ledger)
    assert await world.verdicts() == ["APPLIED", "ISSUED 1"]
    assert len(await world.outcomes()) == 3  # the second once more
