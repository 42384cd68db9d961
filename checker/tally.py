"""What the tables say of each coupon, summed up while their rows pass by in offset order."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from checker.findings import Check, Findings
from checker.model import CouponView
from checker.records import ChangeRow, CouponRow, IssuedRow, Ticket, VerdictRow


@dataclass(slots=True)
class _Coupon:
    # Sequences and tickets apart from the users, as plain numbers: there may be a million of them.
    sequences: array[int] = field(default_factory=lambda: array("q"))
    ticket_of_user: dict[str, Ticket] = field(default_factory=dict)
    sold_out_since: Ticket | None = None
    changes: int = 0


class Tally:
    """Sums over the verdict rows of all partitions; what it finds goes to `findings`."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._coupons: dict[str, _Coupon] = {}
        self.issued = 0
        self.parked = 0
        self.changes = 0
        self.rejected: Counter[str] = Counter()
        self.oversold = 0
        self.duplicates = 0
        self.first_settled_us: int | None = None
        self.last_settled_us: int | None = None

    def add(self, row: VerdictRow) -> None:
        """Take in the next row of its partition."""
        if isinstance(row, ChangeRow):
            self.changes += 1
            if row.result == "APPLIED":
                coupon = self._of(row.coupon_id)
                coupon.changes += 1
                coupon.sold_out_since = None
            return
        settled_us = row.settled_us
        if self.first_settled_us is None or settled_us < self.first_settled_us:
            self.first_settled_us = settled_us
        if self.last_settled_us is None or settled_us > self.last_settled_us:
            self.last_settled_us = settled_us
        if isinstance(row, IssuedRow):
            self._issued(row)
        elif row.reason == "PARKED":
            self.parked += 1
        else:
            self.rejected[row.reason] += 1
            if row.reason == "SOLD_OUT" and row.coupon_id is not None:
                coupon = self._of(row.coupon_id)
                coupon.sold_out_since = coupon.sold_out_since or row.ticket

    def grant_of(self, coupon_id: str, user_id: str) -> Ticket | None:
        """The ticket of the user's (first) grant in the tables."""
        coupon = self._coupons.get(coupon_id)
        return None if coupon is None else coupon.ticket_of_user.get(user_id)

    def changes_of(self, coupon_id: str) -> int:
        """How many changes of the coupon have been applied up to here."""
        return self._of(coupon_id).changes

    def compare_stock(self, rows: Sequence[CouponRow]) -> None:
        """Compare the sums with the coupon rows; to be called once, behind the last verdict row."""
        by_id = {row.coupon_id: row for row in rows}
        for row in by_id.values():
            self._stock(row)
        for coupon_id in sorted(self._coupons.keys() - by_id.keys()):
            granted = len(self._coupons[coupon_id].sequences)
            if granted:
                self.oversold += granted
                self._findings.add(
                    Check.OVERSOLD, f"{granted} grants of a coupon that is in no row", coupon_id=coupon_id
                )

    def _issued(self, row: IssuedRow) -> None:
        self.issued += 1
        coupon = self._of(row.coupon_id)
        coupon.sequences.append(row.sequence)
        first = coupon.ticket_of_user.setdefault(row.user_id, row.ticket)
        if first is not row.ticket:
            self.duplicates += 1
            self._findings.add(
                Check.TWICE_IN_TABLES, f"{row.user_id} has {row.coupon_id} by {first} already", ticket=row.ticket
            )
        if coupon.sold_out_since is not None:
            self._findings.add(
                Check.GRANT_BEHIND_SOLD_OUT,
                f"{row.coupon_id} granted, though {coupon.sold_out_since} ahead of it was told SOLD_OUT",
                ticket=row.ticket,
            )

    def _stock(self, row: CouponRow) -> None:
        coupon_id = row.coupon_id
        sequences = self._of(coupon_id).sequences
        granted = len(sequences)
        if granted > row.total:
            self.oversold += granted - row.total
            self._findings.add(Check.OVERSOLD, f"{granted} grants of {row.total}", coupon_id=coupon_id)
        if granted + row.remaining != row.total or row.remaining < 0:
            self._findings.add(
                Check.STOCK_SUM,
                f"{granted} granted and {row.remaining} remaining are not the total {row.total}",
                coupon_id=coupon_id,
            )
        if row.issued != granted:
            self._findings.add(
                Check.ISSUED_COUNT, f"issued_count is {row.issued}, rows are {granted}", coupon_id=coupon_id
            )
        for place, sequence in enumerate(sorted(sequences), start=1):
            if place != sequence:
                self._findings.add(
                    Check.SEQUENCE,
                    f"sequences are not 1 to {granted}: {sequence} stands where {place} belongs",
                    coupon_id=coupon_id,
                )
                break

    def _of(self, coupon_id: str) -> _Coupon:
        coupon = self._coupons.get(coupon_id)
        if coupon is None:
            coupon = self._coupons[coupon_id] = _Coupon()
        return coupon


def compare_coupons(findings: Findings, rows: Sequence[CouponRow], model: Mapping[tuple[int, str], CouponView]) -> None:
    """Compare the coupon rows with the model's coupons, which are keyed by partition and id."""
    left = dict(model)
    for row in rows:
        view = left.pop((row.partition, row.coupon_id), None)
        if view is None:
            message = f"no record of partition {row.partition} created it"
            findings.add(Check.COUPON_DIFFERS, message, coupon_id=row.coupon_id)
            continue
        expected = CouponRow(
            view.coupon_id,
            row.partition,
            view.display_name,
            view.total,
            view.remaining,
            view.issued,
            view.start_us,
            view.end_us,
            view.switch,
            view.etag,
            view.create_us,
            view.update_us,
        )
        if row != expected:
            findings.add(Check.COUPON_DIFFERS, f"{row}, expected {expected}", coupon_id=row.coupon_id)
    for partition, coupon_id in left:
        findings.add(
            Check.COUPON_DIFFERS, f"created in partition {partition}, but there is no row", coupon_id=coupon_id
        )
