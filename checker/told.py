"""What clients were told, against the line and the tables; and who overtook whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from checker.findings import Check, Findings
from checker.history import History, Told
from checker.model import ExpectChanged, Expected
from checker.outcomes import describe
from checker.records import IssuedRow, RejectedRow, Ticket, VerdictRow
from checker.tally import Tally


@dataclass(slots=True)
class _Stretch:
    """A coupon between two of its changes. Times by the history's clock."""

    # The earliest acknowledgement of a request that was then told SOLD_OUT.
    refused_ack_ns: int | None = None
    refused: Ticket | None = None
    granted: list[tuple[int, Ticket]] = field(default_factory=list)


class Clients:
    """One history, followed along the line; what is found goes to `findings`."""

    def __init__(self, findings: Findings, history: History) -> None:
        self._findings = findings
        self._history = history
        self._told = history.told
        self._stretches: dict[tuple[str, int], _Stretch] = {}
        self.acknowledged = len(history.told)
        self.lost = 0
        self.compared = 0

    def settle(self, ticket: Ticket, expected: Expected, row: VerdictRow | None, tally: Tally) -> None:
        """The next record of the line: what the model reads in it, and its row."""
        told = self._told.pop(ticket, ())
        for answer in told:
            self._compare(ticket, answer, expected, row)
        if row is not None and row.coupon_id is not None:
            self._remember(row, told, tally)

    def finish(self) -> None:
        """To be called behind the last record of the line."""
        for ticket, told in self._told.items():
            self.lost += 1
            who = f"{told[0].asked.user_id} for {told[0].asked.coupon_id}"
            self._findings.add(Check.TICKET_NOT_IN_LINE, f"told to {who}, but not in the line", ticket=ticket)
        for stretch in self._stretches.values():
            self._inversions(stretch)

    def _compare(self, ticket: Ticket, answer: Told, expected: Expected, row: VerdictRow | None) -> None:
        asked = answer.asked.key
        if isinstance(expected, ExpectChanged) or asked != (
            expected.coupon_id,
            expected.user_id,
            expected.request_id,
        ):
            self._findings.add(Check.TICKET_OF_ANOTHER, f"told to {asked}; the record is {expected}", ticket=ticket)
            return
        if row is None or answer.state == "ACCEPTED":
            return
        if not _is_true(answer, row):
            said = f"{answer.state} {answer.reason or ''} {answer.sequence or ''}".strip()
            self._findings.add(
                Check.TOLD_OTHERWISE,
                f"{answer.asked.user_id} was told {said}; the row is {describe(row)}",
                ticket=ticket,
            )

    def _remember(self, row: VerdictRow, told: list[Told] | tuple[()], tally: Tally) -> None:
        if isinstance(row, IssuedRow):
            asked = self._history.asked.get((row.coupon_id, row.user_id, row.request_id))
            if asked is not None:
                self.compared += 1
                self._stretch(row.coupon_id, tally).granted.append((asked.first_sent_ns, row.ticket))
        elif isinstance(row, RejectedRow) and row.reason == "SOLD_OUT" and row.coupon_id is not None and told:
            self.compared += 1
            stretch = self._stretch(row.coupon_id, tally)
            ack_ns = min(answer.ended_ns for answer in told)
            if stretch.refused_ack_ns is None or ack_ns < stretch.refused_ack_ns:
                stretch.refused_ack_ns, stretch.refused = ack_ns, row.ticket

    def _stretch(self, coupon_id: str, tally: Tally) -> _Stretch:
        return self._stretches.setdefault((coupon_id, tally.changes_of(coupon_id)), _Stretch())

    def _inversions(self, stretch: _Stretch) -> None:
        ack_ns = stretch.refused_ack_ns
        if ack_ns is None:
            return
        for sent_ns, ticket in stretch.granted:
            if sent_ns > ack_ns:
                self._findings.add(
                    Check.INVERSION,
                    f"granted, though sent {(sent_ns - ack_ns) / 1e6:.3f} ms after {stretch.refused} was acknowledged, "
                    "which was told SOLD_OUT",
                    ticket=ticket,
                )


def _is_true(answer: Told, row: VerdictRow) -> bool:
    if answer.state == "ISSUED":
        if isinstance(row, IssuedRow):
            return answer.sequence in (None, row.sequence)
        if not isinstance(row, RejectedRow) or row.reason != "REPEATED" or row.issued_sequence is None:
            return False
        return answer.sequence in (None, row.issued_sequence)
    if not isinstance(row, RejectedRow):
        return False
    if answer.state == "PARKED":
        return row.reason == "PARKED"
    return answer.state == "REJECTED" and row.reason == answer.reason
