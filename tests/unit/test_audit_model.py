"""The audit's model, whose memory is the tables that it checks, over any log and with any row changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from services.dlq.replay.audit_model import Difference, PartitionModel, expected_rows
from services.dlq.replay.audit_rows import COLUMNS, ISSUED, Row, Rows
from services.domain.decide import decide
from services.domain.model import Action, Coupon, CouponId, Grant, LineRecord, LineState, Ticket
from tests.unit.line import SPRING, at, change
from tests.unit.test_decide_properties import FOREIGN, changes, garbage, issues

PARTITION = 0
Tables = Mapping[str, Sequence[Row]]
logs = st.lists(issues | issues | issues | changes | garbage, min_size=1, max_size=25).map(
    lambda records: [
        at(record, offset)
        for offset, record in enumerate([change(0, Action.CREATE, total=3, start_us=0, end_us=20), *records])
    ]
)


def audit(
    log: Sequence[LineRecord], tables: Tables, coupons: Mapping[CouponId, Coupon], piece: int
) -> list[Difference]:
    """What the model says of these tables, `piece` records at a time."""
    model = PartitionModel(PARTITION, 1)
    found: list[Difference] = []
    for start in range(0, len(log), piece):
        records = log[start : start + piece]
        inside = range(start, start + len(records))
        rows = Rows({table: [row for row in held if row[0] in inside] for table, held in tables.items()})
        elsewhere = frozenset(set(model.unknown(records)) & {FOREIGN})
        earlier = {}
        for offset, user_id, coupon_id, request_id, sequence, *_ in tables[ISSUED]:
            if offset < start:
                earlier[coupon_id, user_id] = Grant(request_id, sequence, Ticket(PARTITION, offset))
        asked = model.lookups(records, rows)
        found += model.compare(records, rows, {key: earlier[key] for key in asked if key in earlier}, elsewhere)
    return [*found, *model.coupon_differences(coupons)]


def truth(log: Sequence[LineRecord]) -> tuple[dict[str, list[Row]], dict[CouponId, Coupon]]:
    """The tables that the log makes."""
    decision = decide(LineState(PARTITION, {}, frozenset({FOREIGN}), {}, {}, {}), log)
    return expected_rows(PARTITION, decision.verdicts), {coupon.coupon_id: coupon for coupon in decision.coupons}


@given(logs, st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_the_tables_that_the_log_makes_have_no_difference(log: list[LineRecord], piece: int) -> None:
    assert audit(log, *truth(log), piece) == []


@given(logs, st.integers(1, 9), st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_or_missing_row_is_named_and_nothing_else_is(
    log: list[LineRecord], piece: int, data: st.DataObject
) -> None:
    tables, coupons = truth(log)
    table, index = data.draw(st.sampled_from([(table, i) for table, held in tables.items() for i in range(len(held))]))
    row = tables[table].pop(index)
    what = data.draw(st.sampled_from(["missing", *COLUMNS[table][1:]]))
    if what != "missing":
        column = COLUMNS[table].index(what)
        tables[table].insert(index, (*row[:column], "changed by hand", *row[column + 1 :]))
    (difference,) = audit(log, tables, coupons, piece)
    assert difference.ticket == Ticket(PARTITION, row[0])
    assert difference.expected.startswith(f"{table}: ")
    assert ("no row" if what == "missing" else f"{what}=changed by hand") in difference.found


@given(logs, st.integers(1, 9), st.data())
@settings(max_examples=200, deadline=None)
def test_a_grant_that_nobody_was_given_is_named_and_not_believed(
    log: list[LineRecord], piece: int, data: st.DataObject
) -> None:
    tables, coupons = truth(log)
    offset = data.draw(st.integers(0, len(log) - 1))
    granted = {(row[1], row[2]) for row in tables[ISSUED]}
    user_id = data.draw(st.sampled_from(["ann", "bob", "cem", "dua"]))
    if (user_id, SPRING) in granted or offset in {row[0] for row in tables[ISSUED]}:
        return  # no table would take it
    tables[ISSUED].append((offset, user_id, SPRING, "00000000-0000-4000-8000-000000000001", 99, None, None))
    tables[ISSUED].sort(key=lambda row: row[0])
    found = audit(log, tables, coupons, piece)
    assert {one.ticket for one in found} == {Ticket(PARTITION, offset)}
    assert any("sequence=99" in one.found for one in found)


def test_counters_that_the_grants_do_not_make_are_named() -> None:
    log: list[LineRecord] = [change(0, Action.CREATE, total=3)]
    tables, coupons = truth(log)
    (coupon,) = coupons.values()
    object.__setattr__(coupon, "remaining", 2)
    (difference,) = audit(log, tables, coupons, 1)
    assert (difference.expected, difference.found) == ("coupon: remaining=3", "coupon: remaining=2")
    assert (difference.ticket, difference.coupon_id) == (Ticket(PARTITION, 0), SPRING)
