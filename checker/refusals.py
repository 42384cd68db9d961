"""Refusals without a ticket: the issuer's own word, outside the line. Each must have been true a moment before.

A verdict takes effect somewhere between the moment when the line takes its record and the moment when its outcome is
published, and who asks the tables in between may be told the old state or the new one. Both count as true here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from checker.findings import Check, Findings
from checker.history import History, Told
from checker.model import CouponView, ExpectChanged, Expected, ExpectIssued, SequentialModel
from checker.published import Published
from checker.records import Record, VerdictRow

WITHIN_US = 1_000_000
"""How long before the answer, at most, a refusal must have been true; and the answer lies between call and return."""
CLOCKS_APART_US = 100_000
"""How far the clocks of callers, broker and database may be apart."""


@dataclass(slots=True)
class _Era:
    """A coupon from one change, creation or sell-out until the next; no `view` before its creation."""

    from_us: float
    view: CouponView | None
    until_us: float = math.inf

    def reasons(self, earliest_us: float, latest_us: float) -> set[str | None]:
        """What a newcomer may have been told in this era between the two."""
        begin, end = max(self.from_us, earliest_us), min(self.until_us, latest_us)
        if begin > end:
            return set()
        view = self.view
        if view is None:
            return {"COUPON_NOT_FOUND"}
        edges = (edge for bound in (view.start_us, view.end_us) if bound is not None for edge in (bound - 1, bound))
        times = (begin, end, *(edge for edge in edges if begin <= edge <= end))
        return {view.shut(int(time_us)) for time_us in times}


@dataclass(slots=True)
class _Grant:
    request_id: str
    from_us: float
    known_us: float = math.inf


class Refusals:
    """Follows the line for what a history's refusals without a ticket speak of; what is found goes to `findings`."""

    def __init__(self, findings: Findings, history: History) -> None:
        self._findings = findings
        self._told = history.told_without_ticket
        self._asked = history.asked
        self._users = {answer.asked.user_id for answer in self._told}
        self._eras: dict[str, list[_Era]] = {}
        self._grants: dict[tuple[str, str], _Grant] = {}
        # What waits for the partition's outcomes: the record's offset, when it was settled, and who wants to know.
        self._open: list[tuple[int, float, _Era | _Grant]] = []
        self.count = len(self._told)

    def settle(self, record: Record, expected: Expected, row: VerdictRow | None, model: SequentialModel) -> None:
        """The next record of the line: what the model has made of it, and its row."""
        if not self._told:
            return
        settled_us = math.inf if row is None else row.settled_us
        from_us = record.timestamp_ms * 1000
        if isinstance(expected, ExpectChanged):
            if expected.result == "APPLIED":
                self._new_era(record.offset, from_us, settled_us, model.coupon(expected.coupon_id))
            return
        if expected.redrive_of is None:
            asked = self._asked.get((expected.coupon_id or "", expected.user_id or "", expected.request_id or ""))
            if asked is not None:
                asked.in_line += 1
        if isinstance(expected, ExpectIssued):
            if expected.user_id in self._users:
                grant = _Grant(expected.request_id, from_us)
                self._grants[expected.coupon_id, expected.user_id] = grant
                self._open.append((record.offset, settled_us, grant))
            view = model.coupon(expected.coupon_id)
            if view is not None and view.remaining <= 0:
                self._new_era(record.offset, from_us, settled_us, view)

    def finish_partition(self, published: Published) -> None:
        """To be called behind the last outcome of the partition."""
        for offset, settled_us, wants in self._open:
            known_us = max(settled_us, published.told_us(offset) + 1000)
            if isinstance(wants, _Grant):
                wants.known_us = known_us
            else:
                wants.until_us = known_us
        self._open.clear()

    def finish(self) -> None:
        """To be called behind the last record of all."""
        for eras in self._eras.values():
            latest_us = -math.inf
            for era in eras:
                latest_us = era.until_us = max(era.until_us, latest_us)
        for answer in self._told:
            asked = answer.asked
            if answer.state != "REJECTED":
                message = f"{asked.user_id} was told {answer.state} without a ticket"
                self._findings.add(Check.TOLD_OTHERWISE, message, coupon_id=asked.coupon_id)
            elif (fault := self._fault(answer)) is not None:
                message = f"{asked.user_id} was told {answer.reason} without a ticket, but {fault}"
                self._findings.add(Check.REFUSAL_NOT_TRUE, message, coupon_id=asked.coupon_id)
        for asked in self._asked.values():
            # Whoever was refused without a ticket has no place: only the other calls may have put a record each.
            if asked.refused_without_ticket and asked.in_line + asked.refused_without_ticket > asked.calls:
                message = (
                    f"{asked.user_id} by {asked.request_id}: {asked.calls} calls, {asked.refused_without_ticket} of "
                    f"them refused without a ticket, and yet {asked.in_line} records"
                )
                self._findings.add(Check.REFUSED_BUT_IN_LINE, message, coupon_id=asked.coupon_id)

    def _new_era(self, offset: int, from_us: int, settled_us: float, view: CouponView | None) -> None:
        if view is None:
            return
        eras = self._eras.setdefault(view.coupon_id, [_Era(-math.inf, None)])
        # Who reads the old state may do so until this verdict is known.
        self._open.append((offset, settled_us, eras[-1]))
        eras.append(_Era(from_us, view))

    def _fault(self, answer: Told) -> str | None:
        """Why it was not true at any moment that counts, or None."""
        asked = answer.asked
        earliest_us = answer.sent_ns / 1000 - WITHIN_US - CLOCKS_APART_US
        latest_us = answer.ended_ns / 1000 + CLOCKS_APART_US
        grant = self._grants.get((asked.coupon_id, asked.user_id))
        if answer.reason == "ALREADY_ISSUED":
            if grant is None or grant.from_us > latest_us:
                return "had no grant by then"
            return "that very request had won" if grant.request_id == asked.request_id else None
        if grant is not None and grant.known_us < earliest_us:
            return "had a grant for more than a second"
        said = self._reasons(asked.coupon_id, earliest_us, latest_us)
        if answer.reason in said:
            return None
        words = " or ".join(sorted(reason or "open" for reason in said))
        return f"in the second before that the coupon was {words}"

    def _reasons(self, coupon_id: str, earliest_us: float, latest_us: float) -> set[str | None]:
        eras = self._eras.get(coupon_id)
        if eras is None:
            return {"COUPON_NOT_FOUND"}
        said: set[str | None] = set()
        at = bisect_right(eras, latest_us, key=lambda era: era.from_us) - 1
        while at >= 0 and eras[at].until_us >= earliest_us:
            said |= eras[at].reasons(earliest_us, latest_us)
            at -= 1
        return said
