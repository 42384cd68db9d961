"""Whatever happens in whatever order to producers, ledgers, zombies, dlq and database, the checker finds the promises
kept; and where one part of the design is taken away, Hypothesis finds a sequence that breaks them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.domain.dead_letter import DeadLetterState
from services.domain.model import Issued
from tests.integration.ledger_world import change, create, garbage, issue, request_id
from tests.simulation.system import Fate, Flaws, System

COUPON = "coupon"
USERS = ["ann", "bob", "cem", "dua"]
LEDGERS = 2
EXAMPLES = 80
STEPS = 60
MUTATION_EXAMPLES = 6_000

users = st.sampled_from(USERS)
requests = st.integers(0, 1)
sizes = st.integers(1, 6)
# Mostly well: a system in which nothing works never gets anywhere.
fates = st.sampled_from([Fate.DONE] * 6 + list(Fate))
seldom = st.sampled_from([False] * 3 + [True])


class SystemMachine(RuleBasedStateMachine):
    """Two ledgers that believe they own the same partition, and all that can go wrong around them."""

    flaws = Flaws()

    def __init__(self) -> None:
        super().__init__()
        self.system = System(self.flaws, ledgers=LEDGERS)
        self.cursed: set[int] = set()

    @initialize(total=st.integers(1, 3))
    def open(self, total: int) -> None:
        self.system.append(self.system.line, create(total, COUPON, request="open"))

    # Callers and operators

    @rule(user=users, number=requests, fate=fates, late=seldom, cursed=seldom)
    def call(self, user: str, number: int, fate: Fate, late: bool, cursed: bool) -> None:
        """`cursed`: the ledgers of this release fail at the record that is put next."""
        if cursed:
            self.cursed.add(len(self.system.line))
        request = f"{user}{number}"
        self.system.send(COUPON, user, request_id(request), issue(user, COUPON, request=request), fate, late=late)

    @rule()
    def late_batch_arrives(self) -> None:
        if self.system.delayed:
            self.system.append(self.system.line, self.system.delayed.pop(0))

    @rule(action=st.sampled_from(["PAUSE", "RESUME", "ADJUST_STOCK"]), delta=st.sampled_from([-1, 1]), number=requests)
    def change(self, action: str, delta: int, number: int) -> None:
        message = change(action, COUPON, delta=delta, request=f"{action}{delta}{number}")
        self.system.append(self.system.line, message)

    @rule()
    def rubbish(self) -> None:
        self.system.append(self.system.line, garbage())

    # Processes

    @rule(which=st.integers(0, LEDGERS - 1), fate=fates, size=sizes)
    def ledger_steps(self, which: int, fate: Fate, size: int) -> None:
        self.system.ledgers[which].step(fate, size, self.cursed.__contains__)

    @rule(which=st.integers(0, LEDGERS - 1), size=sizes, steps=st.integers(3, 12))
    def ledger_works(self, which: int, size: int, steps: int) -> None:
        for _ in range(steps):
            self.system.ledgers[which].step(Fate.DONE, size, self.cursed.__contains__)

    @rule(which=st.integers(0, LEDGERS - 1), fate=fates)
    def all_work_for_a_while(self, which: int, fate: Fate) -> None:
        self.ledger_works(which, 100, 12)
        self.dlq_files(100)
        self.time_passes(10)
        self.dlq_redrives(fate)

    @rule(size=sizes)
    def dlq_files(self, size: int) -> None:
        self.system.file(size)

    @rule(fate=fates)
    def dlq_redrives(self, fate: Fate) -> None:
        self.system.redrive(fate)
        self.system.resolve()

    # Accidents

    @rule()
    def the_release_is_mended(self) -> None:
        self.cursed.clear()

    @rule()
    def postgres_ends_the_transaction(self) -> None:
        self.system.end_transaction()

    @rule()
    def back_up(self) -> None:
        self.system.back_up()

    @rule(mended=st.booleans())
    def restore(self, mended: bool) -> None:
        self.system.restore()
        if mended:
            self.cursed.clear()

    @rule(ms=st.sampled_from([1, 10, 100, 100_000]))
    def time_passes(self, ms: int) -> None:
        self.system.now_ms += ms

    # What holds at every moment

    @invariant()
    def nothing_is_granted_beyond_the_stock_or_twice(self) -> None:
        tables = self.system.tables
        granted = [row for row in tables.rows if isinstance(row, Issued)]
        assert max(Counter((row.coupon_id, row.user_id) for row in granted).values(), default=1) == 1
        for coupon in tables.coupons.values():
            assert coupon.remaining >= 0
            assert sum(row.coupon_id == coupon.coupon_id for row in granted) + coupon.remaining == coupon.total

    @invariant()
    def every_settled_record_has_exactly_one_verdict(self) -> None:
        tables = self.system.tables
        assert sorted(row.offset for row in tables.rows) == list(range(tables.next_offset))

    def teardown(self) -> None:
        """At rest, the checker's own model must agree with line, tables, DLQ, outcomes and callers."""
        self.system.drain()
        report = asyncio.run(self.system.judge())
        assert report.held, [str(finding) for finding in report.findings]
        states = {letter.state for letter in self.system.tables.letters.values()}
        assert states <= {DeadLetterState.PARKED, DeadLetterState.RESOLVED}


def run(machine: type[RuleBasedStateMachine], **more: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            stateful_step_count=STEPS, deadline=None, database=None, suppress_health_check=list(HealthCheck), **more
        ),
    )


def test_the_promises_hold_whatever_happens() -> None:
    run(SystemMachine, max_examples=EXAMPLES)


@pytest.mark.parametrize("flaw", Flaws.__dataclass_fields__)
def test_without_this_part_of_the_design_a_promise_breaks(flaw: str) -> None:
    class Flawed(SystemMachine):
        flaws = Flaws(**{flaw: True})

    with pytest.raises(AssertionError):
        # The same examples each time; the first that breaks is enough.
        run(Flawed, max_examples=MUTATION_EXAMPLES, derandomize=True, phases=[Phase.generate])
