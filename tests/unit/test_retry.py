"""How long a failed attempt is followed by a wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.domain.retry import Backoff, backoff_s

POLICY = Backoff(base_s=0.5, cap_s=30.0)
ALMOST_ONE = 0.9999999


@pytest.mark.parametrize(("attempt", "longest_s"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (6, 16), (7, 30), (8, 30)])
def test_the_longest_wait_doubles_up_to_the_cap(attempt: int, longest_s: float) -> None:
    assert POLICY.wait_s(attempt, 1.0) == longest_s


def test_jitter_is_full_so_a_wait_may_be_anything_down_to_nothing() -> None:
    assert [POLICY.wait_s(3, random01) for random01 in (0.0, 0.25, 0.5)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("attempt", [1_024, 1_025, 10_000, 10**400])
def test_huge_attempts_wait_up_to_the_cap_without_overflow(attempt: int) -> None:
    assert POLICY.wait_s(attempt, 1.0) == 30.0
    assert backoff_s(attempt, 1.0, base_s=1e300, cap_s=7.0) == 7.0


def test_a_base_above_the_cap_waits_up_to_the_cap() -> None:
    assert backoff_s(1, 1.0, base_s=10, cap_s=3) == 3


def test_a_base_of_nothing_never_waits() -> None:
    assert backoff_s(10**6, 1.0, base_s=0.0, cap_s=3.0) == 0.0


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(attempt: int) -> None:
    with pytest.raises(ValueError, match="from 1"):
        backoff_s(attempt, 0.5, base_s=1, cap_s=2)


@pytest.mark.parametrize("random01", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_outside_0_to_1_is_refused(random01: float) -> None:
    with pytest.raises(ValueError, match="random01"):
        backoff_s(1, random01, base_s=1, cap_s=2)


@pytest.mark.parametrize(("base_s", "cap_s"), [(-1, 2), (1, -2), (float("nan"), 1), (1, float("nan"))])
def test_negative_or_undefined_times_are_refused(base_s: float, cap_s: float) -> None:
    with pytest.raises(ValueError, match="base_s and cap_s"):
        backoff_s(1, 0.5, base_s=base_s, cap_s=cap_s)


@given(
    attempt=st.integers(1, 10**30),
    random01=st.floats(0, ALMOST_ONE),
    base_s=st.floats(0, 1e308),
    cap_s=st.floats(0, 1e308),
)
def test_every_wait_lies_between_nothing_and_the_cap(
    attempt: int, random01: float, base_s: float, cap_s: float
) -> None:
    assert 0 <= backoff_s(attempt, random01, base_s=base_s, cap_s=cap_s) <= cap_s


@given(attempt=st.integers(1, 3_000), random01=st.floats(0, 1))
def test_with_the_same_share_a_later_wait_is_never_shorter(attempt: int, random01: float) -> None:
    assert POLICY.wait_s(attempt, random01) <= POLICY.wait_s(attempt + 1, random01)
