"""The bugs, the scenario that lets each show, and the check that must find it; and how they are run."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from checker import Check, Limits, Report
from migrations.database import upgrade
from stack import Stack
from tests.system.planted import scenarios
from tests.system.planted.world import PATIENCE_S, PlantedWorld, fresh_world

Scenario = Callable[[PlantedWorld], Awaitable[None]]
HALTED_DRAIN_S = 0.5
DRAIN_S = 30.0
LIMITS = Limits(believed_max=1)
"""One record of the scenarios is one that PostgreSQL can't store."""
AT_ONCE_MAX = 3


@dataclass(frozen=True, slots=True)
class Bug:
    """`module` of the service that has it; `tables` is what is wrong with the database. `halts`: the ledger notices
    in the end that something is wrong, and stands still."""

    module: str
    service: str
    scenario: Scenario
    check: Check
    tables: str = ""
    halts: bool = False

    @property
    def words(self) -> str:
        """What it does, in its own words."""
        return _sentence(f"tests/system/planted/{self.module}.py")


BUGS = (
    Bug("no_compare_and_set", "ledger", scenarios.zombie, Check.MANY_ROWS, halts=True),
    Bug(
        "no_unique_key",
        "ledger",
        scenarios.called_again,
        Check.TWICE_IN_TABLES,
        tables="ALTER TABLE user_coupon DROP CONSTRAINT user_coupon_pkey",
    ),
    Bug("offset_before_transaction", "ledger", scenarios.killed_in_transaction, Check.NO_ROW, halts=True),
    Bug("stock_by_batch_size", "ledger", scenarios.called_again, Check.STOCK_SUM),
    Bug(
        "stock_forgotten",
        "ledger",
        scenarios.one_after_the_other,
        Check.OVERSOLD,
        tables="ALTER TABLE user_coupon DROP CONSTRAINT user_coupon_sequence_key",
    ),
    Bug("outcomes_before_commit", "ledger", scenarios.one_unstorable, Check.OUTCOME_CONTRADICTORY),
    Bug("dead_letter_skipped", "ledger", scenarios.dlq_away, Check.DEAD_LETTER_MISSING),
    Bug("sold_out_for_ever", "issuer", scenarios.stock_raised, Check.REFUSAL_NOT_TRUE),
    Bug("batch_parked_for_one", "ledger", scenarios.one_unstorable, Check.TOO_MANY_BELIEVED),
    Bug("redrive_granted_twice", "ledger", scenarios.corrected_twice, Check.WRONG_VERDICT),
    Bug("last_come_first_served", "ledger", scenarios.frozen_for_a_moment, Check.INVERSION),
    Bug("ticket_of_another", "issuer", scenarios.many_at_once, Check.TICKET_OF_ANOTHER),
    Bug("accepted_without_acknowledgement", "issuer", scenarios.line_refuses, Check.TICKET_NOT_IN_LINE),
)
SCENARIOS = tuple(dict.fromkeys(bug.scenario for bug in BUGS))


@dataclass(frozen=True, slots=True)
class Run:
    """What the checker said of each bug, and of healthy services to which all of it happened one after the other."""

    planted: dict[str, Report]
    healthy: Report


async def run_all(stack: Stack, folder: Path, say: Callable[[str], None] = lambda text: None) -> Run:
    """Run every bug with its scenario, AT_ONCE_MAX at a time, and the control."""
    template = f"planted_{uuid.uuid4().hex[:12]}"
    await upgrade(await asyncio.to_thread(stack.create_database, template), time.monotonic() + PATIENCE_S)
    turns = asyncio.Semaphore(AT_ONCE_MAX)

    async def run_bug(bug: Bug) -> Report:
        async with turns, fresh_world(stack, template, folder / bug.module, {bug.service: bug.module}) as world:
            begun_s = time.monotonic()
            if bug.tables:
                await world.line.execute(bug.tables)
            await world.start("ledger")
            if bug.service == "issuer":
                await world.start("issuer")
            await bug.scenario(world)
            report = await world.verdict(HALTED_DRAIN_S if bug.halts else DRAIN_S, LIMITS)
            say(f"{bug.module}: {', '.join(sorted(report.checks))} ({time.monotonic() - begun_s:.1f} s)")
            return report

    async def run_healthy() -> Report:
        async with turns, fresh_world(stack, template, folder / "healthy", {}) as world:
            await asyncio.gather(world.start("ledger"), world.start("issuer"))
            for scenario in SCENARIOS:
                begun_s = time.monotonic()
                await scenario(world)
                say(f"healthy services, {scenario.__name__} ({time.monotonic() - begun_s:.1f} s)")
            return await world.verdict(DRAIN_S, LIMITS)

    async with asyncio.TaskGroup() as group:
        healthy = group.create_task(run_healthy())  # first, since it takes longest
        planted = {bug.module: group.create_task(run_bug(bug)) for bug in BUGS}
    return Run({module: task.result() for module, task in planted.items()}, healthy.result())


def _sentence(path: str) -> str:
    text = (Path(__file__).parents[3] / path).read_text()
    return " ".join(text.split('"""')[1].split())
