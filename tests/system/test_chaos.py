"""Some of the faults of `make chaos`, each in a shorter rush; and that its verdict can be a bad one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.faults import FAULTS
from chaos.run import run
from chaos.world import Engines, World
from stack import Link, Stack

SEED = 1
RUSH_S = 4.0
SHORT = ("ledger-killed-for-good", "ledger-zombie-coupons-written", "postgres-stopped", "broker-frozen")


@pytest.fixture
async def engines(stack: Stack) -> AsyncIterator[Engines]:
    kafka = stack.kafka
    assert kafka.detour_target_port is not None
    async with Link(kafka.detour_target_port, kafka.detour_port) as to_kafka, Link(stack.postgres.port) as to_postgres:
        yield Engines(stack, to_kafka, to_postgres)


@pytest.mark.parametrize("name", SHORT)
async def test_the_promises_hold_under_the_fault(engines: Engines, tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    if name != "ledger-killed-for-good":
        fault = replace(fault, setup=replace(fault.setup, rush_s=RUSH_S))
    outcome = await run(fault, engines, SEED, tmp_path)
    assert outcome.findings == ()
    assert outcome.report is not None
    assert outcome.report.counts.issued > 100


async def test_what_is_wrong_in_the_tables_is_found(engines: Engines, tmp_path: Path) -> None:
    async def wrong(world: World, rng: object) -> None:
        await world.at(2.5)
        await world.until_drained()
        await world.fetch("UPDATE coupon SET remaining = remaining - 1, total = total - 1 WHERE coupon_id = 'live'")

    fault = replace(FAULTS["garbage"], inject=wrong, setup=replace(FAULTS["garbage"].setup, rush_s=2.0))
    outcome = await run(fault, engines, SEED, tmp_path)
    assert not outcome.ok
    assert any("ORDER" in finding or "STOCK" in finding for finding in outcome.findings)
