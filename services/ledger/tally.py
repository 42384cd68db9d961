"""Counting what was settled, a batch at a time: nothing is done for each record but what Counter does in C."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

from services.domain.model import Changed, Issued, Parked, Rejected, Verdict
from services.runtime import metrics

_time_us = attrgetter("time_us")


def count(verdicts: Sequence[Verdict], transaction_s: float) -> None:
    """A batch that has just been committed."""
    now_s = time.time()
    metrics.BATCH_RECORDS.record(len(verdicts))
    metrics.TRANSACTION_SECONDS.record(transaction_s)
    # The records of a batch of the log share one time, so these are few.
    for time_us, number in Counter(map(_time_us, verdicts)).items():
        metrics.SETTLE_SECONDS.record(max(0.0, now_s - time_us / 1_000_000), count=number)
    kinds = Counter(map(type, verdicts))
    if issued := kinds.pop(Issued, 0):
        metrics.VERDICTS.add(issued, "ISSUED", "")
    if kinds:
        for (verdict, reason), number in Counter(_named(v) for v in verdicts if type(v) is not Issued).items():
            metrics.VERDICTS.add(number, verdict, reason)


def _named(verdict: Verdict) -> tuple[str, str]:
    match verdict:
        case Rejected():
            return "REJECTED", verdict.reason.value
        case Parked():
            return "PARKED", verdict.reason.value
        case Changed():
            return "CHANGED", "REPEATED" if verdict.repeated else (verdict.outcome.reason or "APPLIED")
        case Issued():
            return "ISSUED", ""
