"""`decide()` on a line that grows, settled in batches of any size, beside the checker's own model of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from checker.compare import compare
from checker.findings import Findings
from checker.model import SequentialModel
from checker.records import Record as CheckedRecord
from services.domain.decide import decide
from services.domain.model import ChangeRequest, Decision, Issued, LineRecord, LineState, Ticket, Verdict
from services.runtime import wire
from services.runtime.kafka import Message, Record
from tests.integration.ledger_world import change, create, garbage, issue, redrive
from tests.simulation.system import Tables
from tests.unit.checker_world import START_MS, row_of

COUPONS = ["one", "two"]
USERS = ["ann", "bob", "cem"]
HOME = 0

coupons = st.sampled_from(COUPONS)
users = st.sampled_from(USERS)
numbers = st.integers(0, 2)
seconds = st.none() | st.integers(-2, 6)


class DecideMachine(RuleBasedStateMachine):
    """Records come one by one, a millisecond or a second apart; now and then what is there is decided and stored."""

    decide = staticmethod(decide)

    def __init__(self) -> None:
        super().__init__()
        self.tables = Tables()
        self.model = SequentialModel(HOME, 1)
        self.waiting: list[Record] = []
        self.offset = 0
        self.now_ms = START_MS
        self.times_ms: list[int] = []

    def put(self, message: Message) -> None:
        self.now_ms += 1
        self.waiting.append(Record(self.offset, self.now_ms, message.key, message.value, tuple(message.headers)))
        self.times_ms.append(self.now_ms)
        self.offset += 1

    @initialize(total=st.integers(1, 3))
    def open(self, total: int) -> None:
        self.put(create(total, COUPONS[0], request="open"))

    @rule(coupon=coupons, user=users, number=numbers)
    def someone_asks(self, coupon: str, user: str, number: int) -> None:
        self.put(issue(user, coupon, request=f"{user}{number}"))

    @rule(coupon=coupons, total=st.integers(0, 3), start=seconds, end=seconds, number=numbers)
    def create(self, coupon: str, total: int, start: int | None, end: int | None, number: int) -> None:
        self.put(create(total, coupon, request=f"create{number}", start_s=_at(start), end_s=_at(end)))

    @rule(coupon=coupons, action=st.sampled_from(["PAUSE", "RESUME", "RESUME", "CLOSE"]), number=numbers)
    def switch(self, coupon: str, action: str, number: int) -> None:
        self.put(change(action, coupon, request=f"{action}{number}"))

    @rule(coupon=coupons, delta=st.integers(-2, 2), number=numbers, etag=st.sampled_from(["", "", "0-0", "0-3"]))
    def adjust(self, coupon: str, delta: int, number: int, etag: str) -> None:
        self.put(change("ADJUST_STOCK", coupon, delta=delta, etag=etag, request=f"adjust{number}"))

    @rule(coupon=coupons, start=seconds, end=seconds, number=numbers)
    def move_window(self, coupon: str, start: int | None, end: int | None, number: int) -> None:
        paths = ["start_time", "end_time"]
        self.put(change("UPDATE", coupon, paths=paths, start_s=_at(start), end_s=_at(end), request=f"update{number}"))

    @rule(data=st.data(), coupon=coupons, user=users, number=numbers)
    def redrive(self, data: st.DataObject, coupon: str, user: str, number: int) -> None:
        original = data.draw(st.integers(0, len(self.times_ms) - 1))
        message = issue(user, coupon, request=f"{user}{number}")
        self.put(redrive(message, Ticket(HOME, original), self.times_ms[original]))

    @rule()
    def rubbish(self) -> None:
        self.put(garbage())

    @rule()
    def a_second_passes(self) -> None:
        self.now_ms += 1_000

    @rule()
    def settle(self) -> None:
        batch, self.waiting = self.waiting, []
        decoded, _ = wire.decode_all(batch)
        decision = self.decide(self.tables.state(), decoded)
        self.tables.store(decision)
        for record, verdict in zip(batch, decision.verdicts, strict=True):
            self.compare(record, verdict)

    def compare(self, record: Record, verdict: Verdict) -> None:
        found = Findings()
        checked = CheckedRecord(HOME, *record)
        compare(found, checked, self.model.settle(checked), row_of(HOME, verdict))
        assert not found.examples, [str(one) for one in found.examples]

    @invariant()
    def stock_and_grants_agree(self) -> None:
        for coupon in self.tables.coupons.values():
            view = self.model.coupon(coupon.coupon_id)
            assert view is not None
            assert (coupon.total, coupon.remaining, coupon.issued) == (view.total, view.remaining, view.issued)
            sequences = [
                row.sequence
                for row in self.tables.rows
                if isinstance(row, Issued) and row.coupon_id == coupon.coupon_id
            ]
            assert sequences == list(range(1, coupon.issued + 1))

    def teardown(self) -> None:
        self.settle()


def _at(after_s: int | None) -> int | None:
    return None if after_s is None else START_MS // 1_000 + after_s


SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def test_decide_does_what_the_model_does() -> None:
    run_state_machine_as_test(DecideMachine, settings=SETTINGS)


def _blind_to_grants(state: LineState, records: Sequence[LineRecord]) -> Decision:
    return decide(replace(state, grants={}), records)


def _blind_to_redrives(state: LineState, records: Sequence[LineRecord]) -> Decision:
    return decide(replace(state, redriven={}), records)


def _backwards(state: LineState, records: Sequence[LineRecord]) -> Decision:
    decision = decide(state, records[::-1])
    return Decision(decision.verdicts[::-1], decision.coupons)


def _changes_first(state: LineState, records: Sequence[LineRecord]) -> Decision:
    """A change takes effect for the records ahead of it in its batch, too."""
    decision = decide(state, sorted(records, key=lambda one: (not isinstance(one, ChangeRequest), one.offset)))
    return replace(decision, verdicts=tuple(sorted(decision.verdicts, key=lambda one: one.offset)))


@pytest.mark.parametrize("flawed", [_blind_to_grants, _blind_to_redrives, _backwards, _changes_first])
def test_a_decision_with_a_flaw_is_told_from_the_model(flawed: Callable[..., Decision]) -> None:
    class Flawed(DecideMachine):
        decide = staticmethod(flawed)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Flawed, settings=settings(SETTINGS, max_examples=2_000, derandomize=True, phases=[Phase.generate])
        )
