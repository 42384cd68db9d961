"""The demo's last line."""

from __future__ import annotations

from dataclasses import dataclass

from checker import Report
from demo.rush import Answers


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the last line says. `broken` names what went wrong; empty: all is well."""

    line: str
    broken: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.broken


def judge(answers: Answers, report: Report, *, grants_expected: int, garbage_sent: int) -> Verdict:
    """From what the callers heard and what the checker counted."""
    counts = report.counts
    broken = [result.promise.name for result in report.broken]
    if counts.issued != grants_expected:
        broken.append("NOT_SOLD_OUT")
    if counts.parked != garbage_sent:
        broken.append("GARBAGE_COUNT")
    if answers.unanswered or answers.answered != answers.calls:
        broken.append("UNANSWERED")
    fields = (
        f"requested={answers.calls} accepted={answers.with_ticket} issued={counts.issued} oversold={counts.oversold} "
        f"duplicates={counts.duplicates} lost={counts.lost} parked={counts.parked} "
        f"settled_per_s={settled_per_s(report)}"
    )
    return Verdict(_line(fields, broken), tuple(broken))


def unverified(answers: Answers, why: str) -> Verdict:
    """The rush did not come to its verification."""
    fields = (
        f"requested={answers.calls} accepted={answers.with_ticket} issued=unknown oversold=unknown duplicates=unknown "
        "lost=unknown parked=unknown settled_per_s=unknown"
    )
    return Verdict(_line(fields, [why]), (why,))


def settled_per_s(report: Report) -> int:
    """Verdict rows by the time from the first to the last of them."""
    counts = report.counts
    if counts.first_settled_us is None or counts.last_settled_us is None:
        return 0
    seconds = max(counts.last_settled_us - counts.first_settled_us, 1) / 1e6
    return round(counts.settled / seconds)


def _line(fields: str, broken: list[str]) -> str:
    return f"DEMO FAILED {fields} broken={','.join(broken)}" if broken else f"DEMO OK {fields}"
