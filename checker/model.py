"""The sequential model: one partition of the line, one record after the other, by the rules of the contract.

A second writing of the ledger's decision that shares nothing with the first. The tests compare the two; the audit
compares the tables with this one. Times are microseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from checker.classify import Change, Garbage, Issue, classify, home_partition
from checker.records import Record, Ticket

TOTAL_MAX = 1_000_000_000
TIMESTAMP_US_MIN = -62_135_596_800_000_000
TIMESTAMP_US_MAX = 253_402_300_799_999_999
UPDATABLE = frozenset({"display_name", "start_time", "end_time"})
TAKEN_FROM_DLQ = frozenset({"INTERNAL", "UNSTORABLE"})
"""Reasons that lie in the service and not in the record: only the DLQ can tell them."""


class Granted(NamedTuple):
    """What the model remembers of a grant."""

    request_id: str
    sequence: int
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class CouponView:
    """A coupon at one place of the line. `state` is what people see there, named as in coupon.proto."""

    coupon_id: str
    display_name: str
    total: int
    remaining: int
    issued: int
    start_us: int | None
    end_us: int | None
    state: str
    switch: str
    etag: str
    create_us: int
    update_us: int

    def shut(self, time_us: int) -> str | None:
        """Why a newcomer is refused at that time, or None."""
        return _shut(self.switch, self.start_us, self.end_us, self.remaining, time_us)


class ExpectIssued(NamedTuple):
    coupon_id: str
    user_id: str
    request_id: str
    sequence: int
    redrive_of: Ticket | None


class ExpectRejected(NamedTuple):
    """`grant` is what a REPEATED one repeats, where that is a grant."""

    coupon_id: str
    user_id: str
    request_id: str
    reason: str
    grant: Granted | None
    redrive_of: Ticket | None


@dataclass(frozen=True, slots=True)
class ExpectParked:
    reason: str
    coupon_id: str | None
    user_id: str | None
    request_id: str | None
    redrive_of: Ticket | None
    ids_known: bool


@dataclass(frozen=True, slots=True)
class ExpectChanged:
    """`result` as the table has it; `reason` and `coupon` as the outcome has them ("" means applied)."""

    coupon_id: str
    request_id: str
    result: str
    reason: str
    coupon: CouponView | None
    caller: str
    redrive_of: Ticket | None


Expected: TypeAlias = ExpectIssued | ExpectRejected | ExpectParked | ExpectChanged


@dataclass(slots=True)
class _Coupon:
    coupon_id: str
    display_name: str
    total: int
    start_us: int | None
    end_us: int | None
    etag: str
    create_us: int
    update_us: int
    switch: str = "ACTIVE"
    issued: int = 0
    grants: dict[str, Granted] = field(default_factory=dict)

    def shut(self, time_us: int) -> str | None:
        """Why a newcomer is refused at that time, or None."""
        return _shut(self.switch, self.start_us, self.end_us, self.total - self.issued, time_us)

    def view(self, time_us: int) -> CouponView:
        shut = self.shut(time_us)
        return CouponView(
            self.coupon_id,
            self.display_name,
            self.total,
            self.total - self.issued,
            self.issued,
            self.start_us,
            self.end_us,
            "SCHEDULED" if shut == "NOT_OPEN" else shut or "ACTIVE",
            self.switch,
            self.etag,
            self.create_us,
            self.update_us,
        )


@dataclass(frozen=True, slots=True)
class _FirstChange:
    payload: bytes
    reason: str
    coupon: CouponView | None


class SequentialModel:
    """One partition from its first record on. Feed it every record in offset order."""

    def __init__(self, partition: int, partition_count: int) -> None:
        self._partition = partition
        self._partition_count = partition_count
        self._coupons: dict[str, _Coupon] = {}
        self._changes: dict[tuple[str, str], _FirstChange] = {}
        # Only what a redrive came to: what its original came to is PARKED, else nobody could have redriven it.
        self._redriven: dict[Ticket, Granted | None] = {}

    def settle(self, record: Record, dlq_reason: str | None = None) -> Expected:
        """The verdict of the next record. `dlq_reason`: what the DLQ says of it, heard for TAKEN_FROM_DLQ alone."""
        request = classify(record)
        if isinstance(request, Garbage):
            return ExpectParked(
                request.reason,
                request.coupon_id,
                request.user_id,
                request.request_id,
                request.redrive_of,
                request.ids_known,
            )
        known_here = request.coupon_id in self._coupons
        if not known_here and home_partition(request.coupon_id, self._partition_count) != self._partition:
            return _parked("WRONG_PARTITION", request)
        if dlq_reason in TAKEN_FROM_DLQ:
            return _parked(dlq_reason, request)
        if isinstance(request, Issue):
            return self._issue(record, request)
        return self._change(record, request)

    def coupon(self, coupon_id: str) -> CouponView | None:
        """The coupon as it is behind the last record; judge it by `shut`, not by its `state`."""
        return self._view(coupon_id, 0)

    def coupons(self) -> Mapping[str, CouponView]:
        """All coupons as they are behind the last record; their `state` is judged as if long ago: do not use it."""
        return {coupon_id: coupon.view(0) for coupon_id, coupon in self._coupons.items()}

    def _issue(self, record: Record, request: Issue) -> ExpectIssued | ExpectRejected:
        original = request.redrive.original if request.redrive else None
        reason, grant = self._refused(record, request)
        if reason is not None:
            if original is not None and original not in self._redriven:
                self._redriven[original] = grant
            return ExpectRejected(request.coupon_id, request.user_id, request.request_id, reason, grant, original)
        coupon = self._coupons[request.coupon_id]
        coupon.issued += 1
        won = Granted(request.request_id, coupon.issued, Ticket(record.partition, record.offset))
        coupon.grants[request.user_id] = won
        if original is not None:
            self._redriven[original] = won
        return ExpectIssued(request.coupon_id, request.user_id, request.request_id, won.sequence, original)

    def _refused(self, record: Record, request: Issue) -> tuple[str | None, Granted | None]:
        """The first reason that holds, and with REPEATED the grant that is repeated."""
        coupon = self._coupons.get(request.coupon_id)
        if coupon is None:
            return "COUPON_NOT_FOUND", None
        if request.redrive is not None and request.redrive.original in self._redriven:
            return "REPEATED", self._redriven[request.redrive.original]
        grant = coupon.grants.get(request.user_id)
        if grant is not None:
            return ("REPEATED", grant) if grant.request_id == request.request_id else ("ALREADY_ISSUED", None)
        return coupon.shut(request.redrive.original_us if request.redrive else record.timestamp_ms * 1000), None

    def _change(self, record: Record, request: Change) -> ExpectChanged:
        time_us = record.timestamp_ms * 1000
        key = (request.coupon_id, request.request_id)
        first = self._changes.get(key)
        if first is None:
            reason = self._apply(request, time_us, Ticket(record.partition, record.offset))
            first = self._changes[key] = _FirstChange(request.payload, reason, self._view(request.coupon_id, time_us))
            result = reason or "APPLIED"
        else:
            result = "REPEATED"
            if first.payload != request.payload:
                first = _FirstChange(b"", "INVALID_FIELD", self._view(request.coupon_id, time_us))
        original = request.redrive.original if request.redrive else None
        return ExpectChanged(
            request.coupon_id, request.request_id, result, first.reason, first.coupon, request.caller, original
        )

    def _view(self, coupon_id: str, time_us: int) -> CouponView | None:
        coupon = self._coupons.get(coupon_id)
        return None if coupon is None else coupon.view(time_us)

    def _apply(self, request: Change, time_us: int, ticket: Ticket) -> str:
        """Does what is asked and returns "", or does nothing and returns the reason."""
        coupon = self._coupons.get(request.coupon_id)
        if request.action == "CREATE":
            return self._create(request, time_us, ticket) if coupon is None else "COUPON_EXISTS"
        if coupon is None:
            return "COUPON_NOT_FOUND"
        if coupon.switch == "CLOSED":
            return "CLOSED"
        if request.etag not in ("", coupon.etag):
            return "ETAG_MISMATCH"
        if request.action == "UPDATE":
            reason = _update(coupon, request)
        elif request.action == "ADJUST_STOCK":
            reason = _adjust(coupon, request.stock_delta)
        else:
            coupon.switch = {"PAUSE": "PAUSED", "RESUME": "ACTIVE", "CLOSE": "CLOSED"}[request.action]
            reason = ""
        if not reason:
            coupon.etag, coupon.update_us = str(ticket), time_us
        return reason

    def _create(self, request: Change, time_us: int, ticket: Ticket) -> str:
        if not 1 <= request.total <= TOTAL_MAX or not _is_window(request.start_us, request.end_us):
            return "INVALID_FIELD"
        self._coupons[request.coupon_id] = _Coupon(
            request.coupon_id,
            request.display_name,
            request.total,
            request.start_us,
            request.end_us,
            str(ticket),
            time_us,
            time_us,
        )
        return ""


def _shut(switch: str, start_us: int | None, end_us: int | None, remaining: int, time_us: int) -> str | None:
    if switch == "CLOSED":
        return "CLOSED"
    if start_us is not None and time_us < start_us:
        return "NOT_OPEN"
    if end_us is not None and time_us >= end_us:
        return "ENDED"
    if switch == "PAUSED":
        return "PAUSED"
    return "SOLD_OUT" if remaining <= 0 else None


def _parked(reason: str, request: Issue | Change) -> ExpectParked:
    return ExpectParked(
        reason,
        request.coupon_id,
        request.user_id if isinstance(request, Issue) else None,
        request.request_id,
        request.redrive.original if request.redrive else None,
        ids_known=True,
    )


def _update(coupon: _Coupon, request: Change) -> str:
    paths = set(request.update_paths)
    start_us = request.start_us if "start_time" in paths else coupon.start_us
    end_us = request.end_us if "end_time" in paths else coupon.end_us
    if not paths or not paths <= UPDATABLE or not _is_window(start_us, end_us):
        return "INVALID_FIELD"
    if "display_name" in paths:
        coupon.display_name = request.display_name
    coupon.start_us, coupon.end_us = start_us, end_us
    return ""


def _adjust(coupon: _Coupon, delta: int) -> str:
    if delta == 0 or coupon.total + delta > TOTAL_MAX:
        return "INVALID_FIELD"
    if coupon.issued > coupon.total + delta:
        return "INSUFFICIENT_STOCK"
    coupon.total += delta
    return ""


def _is_window(start_us: int | None, end_us: int | None) -> bool:
    for time_us in (start_us, end_us):
        if time_us is not None and not TIMESTAMP_US_MIN <= time_us <= TIMESTAMP_US_MAX:
            return False
    return start_us is None or end_us is None or start_us < end_us
