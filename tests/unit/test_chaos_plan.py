"""The schedule of chaos: the same for the same seed, and with something of everything in it."""

from __future__ import annotations

import random
from pathlib import Path

from chaos.__main__ import _last_line
from chaos.faults import FAULTS
from chaos.plan import Way, make_plan
from chaos.run import Outcome

RUSH_S = 5.0


def test_the_same_seed_gives_the_same_rush() -> None:
    assert make_plan(random.Random("7 a"), RUSH_S) == make_plan(random.Random("7 a"), RUSH_S)
    assert make_plan(random.Random("7 a"), RUSH_S) != make_plan(random.Random("8 a"), RUSH_S)


def test_every_way_of_calling_is_in_it_and_repeats_and_second_tries() -> None:
    plan = make_plan(random.Random(1), RUSH_S)
    assert {act.way for act in plan.acts} == set(Way)
    requests = [request for act in plan.acts for request in act.requests]
    assert len(requests) > len(set(requests)) > len({(r.coupon_id, r.user_id) for r in requests})
    assert list(plan.acts) == sorted(plan.acts, key=lambda act: act.at_s)
    assert len({change.action for change in plan.changes}) > 2


def test_the_last_line_says_what_failed_and_how_to_see_it_again() -> None:
    good = Outcome("a", 1.0, 10, 0, None)
    bad = Outcome("b", 1.0, 10, 0, None, findings=("STOCK: wrong",))
    assert _last_line([good], 7, Path("/x")).startswith("CHAOS OK faults=1 histories=1 requests=10 oversold=0 ")
    failed = _last_line([good, bad], 7, Path("/x"))
    assert failed.startswith("CHAOS FAILED faults=2 ")
    assert failed.endswith("failed=b seed=7 kept=/x")


def test_the_matrix_is_as_large_as_promised_and_every_name_stands_once() -> None:
    assert len(FAULTS) >= 30
    assert all(name == fault.name and fault.what for name, fault in FAULTS.items())
