"""The dead letter's state machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.domain.dead_letter import (
    DeadLetter,
    DeadLetterState,
    Failure,
    RetryPolicy,
    WrongState,
    correct,
    discard,
    file,
    postpone,
    redrive,
    resolve,
    retry,
    shelve,
)
from services.domain.model import ParkReason, Ticket
from services.domain.retry import Backoff

ORIGINAL, FIRST, SECOND = Ticket(1, 10), Ticket(1, 20), Ticket(1, 30)
NOW_US = 1_000_000_000_000
MINUTE_US = 60_000_000
POLICY = RetryPolicy(attempts_max=3, backoff=Backoff(base_s=1, cap_s=60), age_us_max=10 * MINUTE_US)


def failure(failed: Ticket = ORIGINAL, **fields: Any) -> Failure:
    return replace(Failure(ORIGINAL, failed, ParkReason.INTERNAL, "boom", NOW_US - 1), **fields)


def filed(letter: DeadLetter | None, of: Failure, random01: float = 0.5) -> DeadLetter:
    return file(letter, of, POLICY, now_us=NOW_US, random01=random01).letter


def retrying() -> DeadLetter:
    return filed(None, failure())


def redriven() -> DeadLetter:
    return redrive(retrying(), FIRST)


def in_state(state: DeadLetterState) -> DeadLetter:
    return replace(redriven(), state=state)


def test_an_internal_failure_is_retried_after_a_jittered_wait() -> None:
    letter = filed(None, failure(), random01=0.25)
    assert (letter.state, letter.attempt_count) == (DeadLetterState.RETRYING, 1)
    assert letter.next_attempt_us == NOW_US + 250_000


@pytest.mark.parametrize("reason", [reason for reason in ParkReason if reason is not ParkReason.INTERNAL])
def test_every_other_failure_is_parked(reason: ParkReason) -> None:
    letter = filed(None, failure(reason=reason))
    assert (letter.state, letter.next_attempt_us) == (DeadLetterState.PARKED, None)


@pytest.mark.parametrize(
    ("age_us", "state"),
    [
        (10 * MINUTE_US, DeadLetterState.RETRYING),
        (10 * MINUTE_US + 1, DeadLetterState.PARKED),
        (-MINUTE_US, DeadLetterState.RETRYING),
    ],
)
def test_an_old_failure_is_never_retried(age_us: int, state: DeadLetterState) -> None:
    old = failure(failed_us=NOW_US - age_us)
    assert filed(None, old).state is state
    assert filed(redriven(), replace(old, failed=FIRST)).state is state


def test_what_the_line_would_not_take_is_parked() -> None:
    assert filed(None, failure(redrivable=False)).state is DeadLetterState.PARKED


def test_a_redrives_failure_counts_and_is_retried_until_there_were_too_many() -> None:
    second = filed(redriven(), failure(FIRST), random01=1)
    assert (second.state, second.attempt_count) == (DeadLetterState.RETRYING, 2)
    assert second.next_attempt_us == NOW_US + 2_000_000
    third = filed(redrive(second, SECOND), failure(SECOND))
    assert (third.state, third.attempt_count, third.next_attempt_us) == (DeadLetterState.PARKED, 3, None)


def test_a_redrives_permanent_failure_parks_it_with_the_new_reason() -> None:
    letter = filed(redriven(), failure(FIRST, reason=ParkReason.UNSTORABLE, message="no"))
    assert (letter.state, letter.reason, letter.message) == (DeadLetterState.PARKED, ParkReason.UNSTORABLE, "no")


def test_the_failure_of_a_redrive_that_was_published_but_not_noted_keeps_it_retrying() -> None:
    assert filed(retrying(), failure(FIRST)).state is DeadLetterState.RETRYING


def test_only_the_failure_of_the_noted_redrive_ends_the_wait_for_its_verdict() -> None:
    decided = file(redriven(), failure(SECOND), POLICY, now_us=NOW_US, random01=0.5)
    assert (decided.letter.state, decided.letter.redrive, decided.letter.attempt_count, decided.why) == (
        DeadLetterState.REDRIVEN,
        FIRST,
        2,
        None,
    )


@pytest.mark.parametrize("state", [DeadLetterState.PARKED, DeadLetterState.RESOLVED, DeadLetterState.DISCARDED])
def test_a_late_failure_undoes_no_decision(state: DeadLetterState) -> None:
    before = in_state(state)
    after = filed(before, failure(FIRST, reason=ParkReason.BAD_ID, message="late"))
    assert after == replace(before, attempt_count=2)


def test_a_redrives_failure_without_its_dead_letter_makes_one() -> None:
    letter = filed(None, failure(FIRST))
    assert (letter.original, letter.redrive, letter.state) == (ORIGINAL, FIRST, DeadLetterState.RETRYING)


def test_failures_keep_their_first_and_last_time() -> None:
    letter = filed(retrying(), failure(FIRST, failed_us=5))
    assert (letter.first_failed_us, letter.last_failed_us) == (5, NOW_US - 1)


def test_a_redrive_waits_for_its_verdict_and_is_resolved_by_it() -> None:
    letter = redriven()
    assert (letter.state, letter.redrive, letter.next_attempt_us) == (DeadLetterState.REDRIVEN, FIRST, None)
    assert resolve(letter, FIRST).state is DeadLetterState.RESOLVED


def test_a_verdict_of_a_redrive_that_was_not_noted_resolves_too() -> None:
    for state in (DeadLetterState.PARKED, DeadLetterState.RETRYING):
        letter = resolve(replace(retrying(), state=state, publishing=True), SECOND)
        assert (letter.state, letter.redrive, letter.next_attempt_us) == (DeadLetterState.RESOLVED, SECOND, None)
        assert not letter.publishing
    assert resolve(redriven(), SECOND).redrive == FIRST


def test_an_operator_has_it_tried_again_now_though_it_failed_too_often() -> None:
    for before in (retrying(), replace(retrying(), state=DeadLetterState.PARKED, attempt_count=9)):
        letter = retry(before, now_us=NOW_US)
        assert (letter.state, letter.next_attempt_us) == (DeadLetterState.RETRYING, NOW_US)
        assert letter.attempt_count == before.attempt_count
    exhausted = redrive(letter, SECOND)
    assert filed(exhausted, failure(SECOND)).state is DeadLetterState.PARKED


def test_only_a_parked_one_that_cannot_be_in_the_line_is_corrected() -> None:
    parked = replace(retrying(), state=DeadLetterState.PARKED, next_attempt_us=None)
    assert correct(parked, now_us=NOW_US) == replace(parked, state=DeadLetterState.RETRYING, next_attempt_us=NOW_US)
    with pytest.raises(WrongState, match="may be in the line"):
        correct(replace(parked, publishing=True), now_us=NOW_US)
    with pytest.raises(WrongState, match="is RETRYING, not PARKED"):
        correct(retrying(), now_us=NOW_US)


def test_what_waits_can_be_discarded() -> None:
    for state in (DeadLetterState.PARKED, DeadLetterState.RETRYING):
        letter = discard(replace(retrying(), state=state))
        assert (letter.state, letter.next_attempt_us) == (DeadLetterState.DISCARDED, None)


@pytest.mark.parametrize("state", [DeadLetterState.REDRIVEN, DeadLetterState.RESOLVED, DeadLetterState.DISCARDED])
def test_what_is_under_way_or_done_is_no_operators_to_change(state: DeadLetterState) -> None:
    for change in (lambda x: retry(x, now_us=NOW_US), lambda x: correct(x, now_us=NOW_US), discard):
        with pytest.raises(WrongState):
            change(in_state(state))


def test_what_was_due_long_ago_is_parked() -> None:
    assert (shelve(retrying()).state, shelve(retrying()).next_attempt_us) == (DeadLetterState.PARKED, None)


def test_what_could_not_be_published_waits_again_without_another_failure() -> None:
    letter = postpone(retrying(), POLICY.backoff, now_us=NOW_US + 7, random01=0)
    assert (letter.state, letter.attempt_count, letter.next_attempt_us) == (DeadLetterState.RETRYING, 1, NOW_US + 7)


@pytest.mark.parametrize("state", [s for s in DeadLetterState if s is not DeadLetterState.RETRYING])
def test_only_a_retrying_one_is_redriven(state: DeadLetterState) -> None:
    with pytest.raises(WrongState):
        redrive(in_state(state), SECOND)
    with pytest.raises(WrongState):
        postpone(in_state(state), POLICY.backoff, now_us=NOW_US, random01=0)


@pytest.mark.parametrize("state", [DeadLetterState.RESOLVED, DeadLetterState.DISCARDED])
def test_what_is_resolved_or_discarded_stays_so(state: DeadLetterState) -> None:
    with pytest.raises(WrongState):
        resolve(in_state(state), FIRST)
