"""Token buckets by a clock of the test's own."""

from __future__ import annotations

import pytest

from services.runtime.rate import BUCKETS_MAX, CHARGE_MAX, CallerRates


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_passes_and_then_one_call_each_interval(clock: Clock) -> None:
    rates = CallerRates(10, 3, clock)
    assert [rates.charge("ann", 1) for _ in range(3)] == [0, 0, 0]
    assert rates.charge("ann", 1) == pytest.approx(0.1)
    clock.now_s += 0.101
    assert rates.charge("ann", 1) == 0
    assert rates.charge("ann", 1) > 0


def test_after_the_time_that_it_tells_the_call_passes(clock: Clock) -> None:
    rates = CallerRates(7, 20, clock)
    rates.charge("ann", 20)
    for calls in (1, 5, 20, 100):
        wait_s = rates.charge("ann", calls)
        assert wait_s > 0
        clock.now_s += wait_s - 0.001
        assert rates.charge("ann", calls) > 0
        clock.now_s += 0.002
        assert rates.charge("ann", calls) == 0


def test_a_refused_call_costs_nothing(clock: Clock) -> None:
    rates = CallerRates(10, 1, clock)
    rates.charge("ann", 1)
    assert [rates.charge("ann", 1) for _ in range(100)] == [pytest.approx(0.1)] * 100


def test_a_batch_counts_as_its_requests(clock: Clock) -> None:
    rates = CallerRates(10, 100, clock)
    assert rates.charge("ann", 90) == 0
    assert rates.charge("ann", 11) == pytest.approx(0.1)
    assert rates.charge("ann", 10) == 0


def test_a_batch_larger_than_the_burst_passes_and_is_paid_for_afterwards(clock: Clock) -> None:
    rates = CallerRates(10, 5, clock)
    assert rates.charge("ann", 25) == 0
    assert rates.charge("ann", 1) == pytest.approx(2.1)


def test_a_batch_larger_than_any_may_be_does_not_lock_its_caller_out(clock: Clock) -> None:
    rates = CallerRates(CHARGE_MAX, 1, clock)
    assert rates.charge("ann", 1_000_000) == 0
    assert rates.charge("ann", 1) <= 1.01


def test_callers_do_not_share_a_bucket(clock: Clock) -> None:
    rates = CallerRates(1, 1, clock)
    assert rates.charge("ann", 1) == 0
    assert rates.charge("bob", 1) == 0
    assert rates.charge("ann", 1) > 0


def test_buckets_are_bounded_and_the_least_recent_goes(clock: Clock) -> None:
    rates = CallerRates(1, 1, clock)
    for number in range(BUCKETS_MAX):
        rates.charge(f"caller{number}", 1)
    rates.charge("caller0", 1)
    rates.charge("new", 1)
    assert len(rates) == BUCKETS_MAX
    assert rates.charge("caller0", 1) > 0
    assert rates.charge("caller1", 1) == 0  # forgotten
