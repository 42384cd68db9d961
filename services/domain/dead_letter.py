"""The dead letter's states and what moves it between them. Time and randomness are arguments.

    a failure ──► RETRYING ──redrive──► REDRIVEN ──a verdict──► RESOLVED
        │            ▲ │                    │
        │            │ └──too often, old──┐ │ the redrive's own failure: RETRYING or PARKED
        └──► PARKED ◄┴────────────────────┴─┘

An operator's word: retry or correct leads from PARKED to RETRYING, discard from either to DISCARDED. What they have
decided stays: a failure that is told again, or late, changes no state behind RETRYING.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from services.domain.model import ParkReason, Ticket
from services.domain.retry import Backoff

RETRYABLE = frozenset({ParkReason.INTERNAL})
"""What may pass by itself; everything else fails again until someone changes something."""
_MINUTE_US = 60_000_000


class DeadLetterState(StrEnum):
    """Named as in dead_letter.proto."""

    RETRYING = "RETRYING"
    PARKED = "PARKED"
    REDRIVEN = "REDRIVEN"
    RESOLVED = "RESOLVED"
    DISCARDED = "DISCARDED"


class WrongState(Exception):
    """This can't be done with a dead letter in its state; the message says why, for the caller."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One record that was parked: the original, or a redrive of it.

    `failed_us`: when its dead letter came into the DLQ. `redrivable`: whether the line would take it once more.
    """

    original: Ticket
    failed: Ticket
    reason: ParkReason
    message: str
    failed_us: int
    redrivable: bool = True


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """All failures of one original record. `redrive` is the record that redrove it last.

    `publishing`: a redrive may be in the line that is not noted in `redrive`: its publication was begun, and how it
    ended is not known.
    """

    original: Ticket
    state: DeadLetterState
    reason: ParkReason
    message: str
    attempt_count: int
    redrive: Ticket | None
    first_failed_us: int
    last_failed_us: int
    next_attempt_us: int | None
    publishing: bool = False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a record may fail before it is parked, how long to wait in between, and which failures are too old.

    Too old are those that lie back further than `age_us_max` when they are stored: they may be known from before a
    database was restored, and what an operator has decided since must not be revived.
    """

    attempts_max: int
    backoff: Backoff
    age_us_max: int


@dataclass(frozen=True, slots=True)
class Filed:
    """A dead letter with one more failure; `why` it is in its state now, or None where the state is as it was."""

    letter: DeadLetter
    why: str | None


def file(letter: DeadLetter | None, failure: Failure, policy: RetryPolicy, *, now_us: int, random01: float) -> Filed:
    """Count a failure that has not been counted yet, and say what comes of it. `random01` is uniform in [0, 1)."""
    if letter is None:
        counted = DeadLetter(
            original=failure.original,
            state=DeadLetterState.PARKED,
            reason=failure.reason,
            message=failure.message,
            attempt_count=1,
            redrive=None if failure.failed == failure.original else failure.failed,
            first_failed_us=failure.failed_us,
            last_failed_us=failure.failed_us,
            next_attempt_us=None,
        )
    else:
        counted = replace(
            letter,
            attempt_count=letter.attempt_count + 1,
            first_failed_us=min(letter.first_failed_us, failure.failed_us),
            last_failed_us=max(letter.last_failed_us, failure.failed_us),
        )
        if not _awaits(letter, failure):
            return Filed(counted, None)
    failed = replace(counted, reason=failure.reason, message=failure.message, next_attempt_us=None)
    fault = _why_parked(failed.attempt_count, failure, policy, now_us)
    if fault is not None:
        return Filed(replace(failed, state=DeadLetterState.PARKED), fault)
    retrying = replace(
        failed,
        state=DeadLetterState.RETRYING,
        next_attempt_us=_next_attempt_us(failed.attempt_count, policy.backoff, now_us, random01),
    )
    return Filed(retrying, f"failure {failed.attempt_count} of {policy.attempts_max}")


def retry(letter: DeadLetter, *, now_us: int) -> DeadLetter:
    """An operator wants it tried again now, with the bytes that it has. Raises WrongState."""
    _require(letter, DeadLetterState.PARKED, DeadLetterState.RETRYING)
    return replace(letter, state=DeadLetterState.RETRYING, next_attempt_us=now_us)


def correct(letter: DeadLetter, *, now_us: int) -> DeadLetter:
    """An operator wants it tried again now, with other bytes. Raises WrongState.

    Only while no redrive of it can be on its way: another partition of the line would not know that it had been
    settled, and the person would be given both what was asked and what was corrected.
    """
    _require(letter, DeadLetterState.PARKED)
    if letter.publishing:
        raise WrongState(f"a redrive of dead letter {letter.original} may be in the line: retry it as it is")
    return replace(letter, state=DeadLetterState.RETRYING, next_attempt_us=now_us)


def discard(letter: DeadLetter) -> DeadLetter:
    """An operator gives it up. A redrive that may be in the line gets its verdict all the same. Raises WrongState."""
    _require(letter, DeadLetterState.PARKED, DeadLetterState.RETRYING)
    return replace(letter, state=DeadLetterState.DISCARDED, next_attempt_us=None)


def shelve(letter: DeadLetter) -> DeadLetter:
    """It has been due for so long that an operator may have decided otherwise since. Raises WrongState."""
    _require(letter, DeadLetterState.RETRYING)
    return replace(letter, state=DeadLetterState.PARKED, next_attempt_us=None)


def redrive(letter: DeadLetter, ticket: Ticket) -> DeadLetter:
    """It is in the line again, as the record of that ticket. Raises WrongState."""
    _require(letter, DeadLetterState.RETRYING)
    return replace(letter, state=DeadLetterState.REDRIVEN, redrive=ticket, next_attempt_us=None, publishing=False)


def postpone(letter: DeadLetter, backoff: Backoff, *, now_us: int, random01: float) -> DeadLetter:
    """It could not be put into the line, which is no failure of its own. Raises WrongState."""
    _require(letter, DeadLetterState.RETRYING)
    return replace(letter, next_attempt_us=_next_attempt_us(letter.attempt_count, backoff, now_us, random01))


def resolve(letter: DeadLetter, settled: Ticket) -> DeadLetter:
    """A redrive of it has a verdict, the record `settled`; in an older database also one that was not noted.

    What is DISCARDED stays so. Raises WrongState.
    """
    _require(letter, DeadLetterState.REDRIVEN, DeadLetterState.PARKED, DeadLetterState.RETRYING)
    redriven = letter.redrive or settled
    return replace(letter, state=DeadLetterState.RESOLVED, redrive=redriven, next_attempt_us=None, publishing=False)


def _awaits(letter: DeadLetter, failure: Failure) -> bool:
    """Whether it is this failure that says how the dead letter goes on.

    While it is REDRIVEN only the failure of that very redrive does: another is of a publication that was not known to
    have worked, and the verdict of the known one is still to come.
    """
    if letter.state is DeadLetterState.REDRIVEN:
        return failure.failed == letter.redrive
    return letter.state is DeadLetterState.RETRYING


def _why_parked(attempt_count: int, failure: Failure, policy: RetryPolicy, now_us: int) -> str | None:
    if failure.reason not in RETRYABLE:
        return f"{failure.reason} does not pass by itself"
    if not failure.redrivable:
        return "the line would not take it once more"
    if now_us - failure.failed_us > policy.age_us_max:
        return f"it failed more than {policy.age_us_max // _MINUTE_US} min before it was stored"
    if attempt_count >= policy.attempts_max:
        return f"failure {attempt_count} of {policy.attempts_max}"
    return None


def _next_attempt_us(attempt_count: int, backoff: Backoff, now_us: int, random01: float) -> int:
    return now_us + round(backoff.wait_s(attempt_count, random01) * 1_000_000)


def _require(letter: DeadLetter, *states: DeadLetterState) -> None:
    if letter.state not in states:
        raise WrongState(f"dead letter {letter.original} is {letter.state}, not {' or '.join(states)}")
