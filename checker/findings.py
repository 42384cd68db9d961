"""What the checker has to say: promises, the checks behind each, findings as values, and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from checker.records import Ticket

EXAMPLES_MAX = 10
"""How many findings of one check are kept in full; the rest are counted."""


class Promise(Enum):
    """What the product promises, in the order in which it is reported."""

    DRAINED = "the line is settled to its end"
    STOCK = "not oversold"
    ONCE = "nobody twice"
    SETTLED = "every accepted ticket settled exactly once"
    ORDER = "first come, first served by offset"
    PARKED = "garbage parked and nothing else"
    OUTCOMES = "outcomes equal the tables"
    TOLD = "callers were told what holds"


class Check(StrEnum):
    """One thing that is looked at. Each belongs to one promise."""

    NOT_DRAINED = "NOT_DRAINED"
    NOT_QUIET = "NOT_QUIET"
    LOG_BEGINS_LATE = "LOG_BEGINS_LATE"
    DRAINED_LATE = "DRAINED_LATE"
    STANDSTILL = "STANDSTILL"
    OVERSOLD = "OVERSOLD"
    STOCK_SUM = "STOCK_SUM"
    ISSUED_COUNT = "ISSUED_COUNT"
    SEQUENCE = "SEQUENCE"
    TWICE_IN_TABLES = "TWICE_IN_TABLES"
    TWICE_IN_OUTCOMES = "TWICE_IN_OUTCOMES"
    NO_ROW = "NO_ROW"
    MANY_ROWS = "MANY_ROWS"
    ROW_WITHOUT_RECORD = "ROW_WITHOUT_RECORD"
    TICKET_NOT_IN_LINE = "TICKET_NOT_IN_LINE"
    WRONG_VERDICT = "WRONG_VERDICT"
    GRANT_BEHIND_SOLD_OUT = "GRANT_BEHIND_SOLD_OUT"
    COUPON_DIFFERS = "COUPON_DIFFERS"
    INVERSION = "INVERSION"
    WRONGLY_PARKED = "WRONGLY_PARKED"
    NOT_PARKED = "NOT_PARKED"
    PARK_REASON = "PARK_REASON"
    PARKED_ROW = "PARKED_ROW"
    DEAD_LETTER_MISSING = "DEAD_LETTER_MISSING"
    DEAD_LETTER_DIFFERS = "DEAD_LETTER_DIFFERS"
    DEAD_LETTER_WITHOUT_ROW = "DEAD_LETTER_WITHOUT_ROW"
    DEAD_LETTER_NOT_STORED = "DEAD_LETTER_NOT_STORED"
    TOO_MANY_BELIEVED = "TOO_MANY_BELIEVED"
    OUTCOME_MISSING = "OUTCOME_MISSING"
    OUTCOME_DIFFERS = "OUTCOME_DIFFERS"
    OUTCOME_CONTRADICTORY = "OUTCOME_CONTRADICTORY"
    OUTCOME_WITHOUT_ROW = "OUTCOME_WITHOUT_ROW"
    TICKET_OF_ANOTHER = "TICKET_OF_ANOTHER"
    TOLD_OTHERWISE = "TOLD_OTHERWISE"
    REFUSAL_NOT_TRUE = "REFUSAL_NOT_TRUE"
    REFUSED_BUT_IN_LINE = "REFUSED_BUT_IN_LINE"

    @property
    def promise(self) -> Promise:
        return _PROMISE_OF[self]


_CHECKS_OF: Mapping[Promise, tuple[Check, ...]] = {
    Promise.DRAINED: (
        Check.NOT_DRAINED,
        Check.NOT_QUIET,
        Check.LOG_BEGINS_LATE,
        Check.DRAINED_LATE,
        Check.STANDSTILL,
    ),
    Promise.STOCK: (Check.OVERSOLD, Check.STOCK_SUM, Check.ISSUED_COUNT, Check.SEQUENCE),
    Promise.ONCE: (Check.TWICE_IN_TABLES, Check.TWICE_IN_OUTCOMES),
    Promise.SETTLED: (Check.NO_ROW, Check.MANY_ROWS, Check.ROW_WITHOUT_RECORD, Check.TICKET_NOT_IN_LINE),
    Promise.ORDER: (Check.WRONG_VERDICT, Check.GRANT_BEHIND_SOLD_OUT, Check.COUPON_DIFFERS, Check.INVERSION),
    Promise.PARKED: (
        Check.WRONGLY_PARKED,
        Check.NOT_PARKED,
        Check.PARK_REASON,
        Check.PARKED_ROW,
        Check.DEAD_LETTER_MISSING,
        Check.DEAD_LETTER_DIFFERS,
        Check.DEAD_LETTER_WITHOUT_ROW,
        Check.DEAD_LETTER_NOT_STORED,
        Check.TOO_MANY_BELIEVED,
    ),
    Promise.OUTCOMES: (
        Check.OUTCOME_MISSING,
        Check.OUTCOME_DIFFERS,
        Check.OUTCOME_CONTRADICTORY,
        Check.OUTCOME_WITHOUT_ROW,
    ),
    Promise.TOLD: (
        Check.TICKET_OF_ANOTHER,
        Check.TOLD_OTHERWISE,
        Check.REFUSAL_NOT_TRUE,
        Check.REFUSED_BUT_IN_LINE,
    ),
}
_PROMISE_OF = {check: promise for promise, checks in _CHECKS_OF.items() for check in checks}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as promised, at a ticket or a coupon."""

    check: Check
    message: str
    ticket: Ticket | None = None
    coupon_id: str | None = None

    def __str__(self) -> str:
        place = f" {self.ticket}" if self.ticket else f" {self.coupon_id}" if self.coupon_id else ""
        return f"{self.check}{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted. Times are microseconds since the epoch; None where there was nothing.

    `lost`: records without a verdict and acknowledged tickets that are not in the line. `duplicates`: grants beyond a
    user's first of a coupon, in the tables or in the outcomes. `oversold`: grants beyond a coupon's total.
    `inversions`: grants that somebody who was refused as SOLD_OUT came before. `settled`, `first_settled_us` and
    `last_settled_us` are of issue requests and garbage, not of changes. `believed`: records that were parked for a
    reason that the DLQ alone can tell. `standstill_s`: how long the head of a partition's line waited at most, with its
    ticket. `drained_after_s`: how long after healing all that was in the line by then was settled and published.
    """

    records: int = 0
    coupons: int = 0
    issued: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    changes: int = 0
    parked: int = 0
    dead_letters: int = 0
    outcomes: int = 0
    outcomes_repeated: int = 0
    calls: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    refusals_without_ticket: int = 0
    overtaking_compared: int = 0
    oversold: int = 0
    duplicates: int = 0
    lost: int = 0
    inversions: int = 0
    believed: Mapping[str, int] = field(default_factory=dict)
    settled: int = 0
    first_settled_us: int | None = None
    last_settled_us: int | None = None
    standstill_s: float = 0.0
    standstill_ticket: str | None = None
    drained_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class PromiseResult:
    """Whether a promise held, what was looked at, how often it was broken, and the first findings of each check."""

    promise: Promise
    counted: str
    broken_count: int
    examples: tuple[Finding, ...]

    @property
    def held(self) -> bool:
        return self.broken_count == 0


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on the system: one result for each promise, in the order of `Promise`."""

    results: tuple[PromiseResult, ...]
    counts: Counts

    @property
    def held(self) -> bool:
        return all(result.held for result in self.results)

    @property
    def broken(self) -> tuple[PromiseResult, ...]:
        return tuple(result for result in self.results if not result.held)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The kept findings of all promises."""
        return tuple(finding for result in self.results for finding in result.examples)

    @property
    def checks(self) -> frozenset[Check]:
        """The checks that found something."""
        return frozenset(finding.check for finding in self.findings)


class Findings:
    """Collects findings, bounded: of each check the first EXAMPLES_MAX are kept and the rest counted."""

    def __init__(self) -> None:
        self._count: Counter[Check] = Counter()
        self._examples: dict[Check, list[Finding]] = {}

    def add(self, check: Check, message: str, *, ticket: Ticket | None = None, coupon_id: str | None = None) -> None:
        self._count[check] += 1
        kept = self._examples.setdefault(check, [])
        if len(kept) < EXAMPLES_MAX:
            kept.append(Finding(check, message, ticket, coupon_id))

    def count(self, check: Check) -> int:
        return self._count[check]

    @property
    def examples(self) -> tuple[Finding, ...]:
        """Those that are kept."""
        return tuple(finding for found in self._examples.values() for finding in found)

    def report(self, counts: Counts) -> Report:
        counted = _counted(counts)
        return Report(
            tuple(
                PromiseResult(
                    promise,
                    counted[promise],
                    sum(self._count[check] for check in checks),
                    tuple(finding for check in checks for finding in self._examples.get(check, ())),
                )
                for promise, checks in _CHECKS_OF.items()
            ),
            counts,
        )


def _counted(counts: Counts) -> Mapping[Promise, str]:
    refused = sum(counts.rejected.values())
    order = f"{counts.records:,} verdicts beside the model's"
    settled = f"{counts.records:,} records, {counts.records - counts.lost:,} with a verdict"
    told = "no history of callers"
    if counts.calls:
        order += f"; {counts.overtaking_compared:,} calls compared in time"
        settled += f"; {counts.acknowledged:,} tickets told"
        told = (
            f"{counts.calls:,} calls, {counts.unanswered:,} of them without an answer; {counts.acknowledged:,} tickets "
            f"and {counts.refusals_without_ticket:,} refusals without one"
        )
    drained = f"{counts.records:,} records; at most {counts.standstill_s:.1f} s without progress"
    if counts.drained_after_s is not None:
        drained += f"; drained {counts.drained_after_s:.1f} s after healing"
    parked = f"{counts.parked:,} parked, {counts.dead_letters:,} dead letters"
    if counts.believed:
        parked += "; believed: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.believed.items())
    return {
        Promise.DRAINED: drained,
        Promise.STOCK: f"{counts.issued:,} grants of {counts.coupons:,} coupons",
        Promise.ONCE: f"{counts.issued:,} grants, {counts.outcomes - counts.outcomes_repeated:,} outcomes",
        Promise.SETTLED: settled,
        Promise.ORDER: f"{order} ({counts.issued:,} granted, {refused:,} refused, {counts.changes:,} changes)",
        Promise.PARKED: parked,
        Promise.OUTCOMES: f"{counts.outcomes:,} outcomes, {counts.outcomes_repeated:,} of them repetitions",
        Promise.TOLD: told,
    }
