"""The one place where verdicts are made: `decide(state, records) -> verdicts`, in offset order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.domain.model import (
    TIME_US_MAX,
    TIME_US_MIN,
    TOTAL_QUANTITY_MAX,
    Action,
    Changed,
    ChangeOutcome,
    ChangeRequest,
    Coupon,
    CouponId,
    CouponState,
    Decision,
    Grant,
    Issued,
    IssueRequest,
    LineRecord,
    LineState,
    Parked,
    ParkReason,
    PastChange,
    Reason,
    Rejected,
    RequestId,
    Switch,
    Ticket,
    Unprocessable,
    UserId,
    Verdict,
    make_issued,
    printable,
)

UPDATE_PATHS = frozenset({"display_name", "start_time", "end_time"})


def refusal(
    coupon: Coupon | None, remaining: int, grant: Grant | None, request_id: RequestId, time_us: int
) -> Reason | None:
    """Why a request is not granted, or None: the precedence of all refusals, for ledger and issuer alike.

    `remaining` stands beside the coupon because it changes with every grant of a batch.
    """
    if coupon is None:
        return Reason.COUPON_NOT_FOUND
    if grant is not None:
        return Reason.REPEATED if grant.request_id == request_id else Reason.ALREADY_ISSUED
    if coupon.switch is Switch.CLOSED:
        return Reason.CLOSED
    if coupon.start_us is not None and time_us < coupon.start_us:
        return Reason.NOT_OPEN
    if coupon.end_us is not None and time_us >= coupon.end_us:
        return Reason.ENDED
    if coupon.switch is Switch.PAUSED:
        return Reason.PAUSED
    if remaining <= 0:
        return Reason.SOLD_OUT
    return None


_STATE_OF_REFUSAL = {
    Reason.CLOSED: CouponState.CLOSED,
    Reason.NOT_OPEN: CouponState.SCHEDULED,
    Reason.ENDED: CouponState.ENDED,
    Reason.PAUSED: CouponState.PAUSED,
    Reason.SOLD_OUT: CouponState.SOLD_OUT,
    None: CouponState.ACTIVE,
}
_NO_REQUEST = RequestId("")


def state_at(coupon: Coupon, time_us: int) -> CouponState:
    """The state that people see: what a newcomer's request would be told at that time."""
    return _STATE_OF_REFUSAL[refusal(coupon, coupon.remaining, None, _NO_REQUEST, time_us)]


def decide(state: LineState, records: Sequence[LineRecord]) -> Decision:
    """Give each record its verdict, in offset order; a change takes effect for the records behind it.

    A record that raises is parked as INTERNAL and leaves no trace in what its neighbours see.
    """
    line = _Line(state)
    verdicts: list[Verdict] = []
    for record in records:
        try:
            verdicts.append(line.settle(record))
        except Exception as error:
            message = printable(f"{type(error).__name__}: {error}")
            verdicts.append(line.park(record, ParkReason.INTERNAL, message))
    return Decision(tuple(verdicts), line.changed_coupons())


def park(record: LineRecord, reason: ParkReason, message: str, *, known: bool = False) -> Unprocessable:
    """The same record as one that gets the verdict PARKED; what is already unprocessable keeps its first reason."""
    if isinstance(record, Unprocessable):
        return replace(record, known=known) if known else record
    user_id = record.user_id if isinstance(record, IssueRequest) else None
    return Unprocessable(
        record.offset,
        record.time_us,
        reason,
        message,
        record.coupon_id,
        user_id,
        record.request_id,
        record.redrive,
        known,
    )


def park_known(record: LineRecord, reason: ParkReason, message: str) -> Unprocessable:
    """The record as its dead letter on the DLQ topic tells it, which decides whatever the record decodes to."""
    message = printable(message)  # the DLQ may hold what no ledger wrote, and no table takes
    if isinstance(record, Unprocessable):
        return replace(record, reason=reason, message=message, known=True)
    return park(record, reason, message, known=True)


class _Working:
    """A coupon while a batch is decided. Its stock stands apart, for a frozen copy a grant would cost too much."""

    __slots__ = ("coupon", "remaining")

    def __init__(self, coupon: Coupon) -> None:
        self.coupon = coupon
        self.remaining = coupon.remaining

    def differs(self, before: Coupon | None) -> bool:
        return self.coupon is not before or self.remaining != self.coupon.remaining

    def now(self) -> Coupon:
        """The coupon with the stock as it is by now."""
        return replace(self.coupon, remaining=self.remaining, issued=self.coupon.total - self.remaining)


class _Line:
    """The working copy of a partition's state while one batch is decided."""

    def __init__(self, state: LineState) -> None:
        self._state = state
        self._partition = state.partition
        self._coupons = {coupon_id: _Working(coupon) for coupon_id, coupon in state.coupons.items()}
        self._grants = state.grants
        self._won: dict[tuple[CouponId, UserId], Issued] = {}
        self._changes = dict(state.changes)
        self._redriven = dict(state.redriven)

    def settle(self, record: LineRecord) -> Verdict:
        if isinstance(record, IssueRequest):
            return self._issue(record)
        if isinstance(record, ChangeRequest):
            if record.coupon_id in self._state.foreign:
                return self._wrong_partition(record)
            return self._change(record)
        return self.park(record, record.reason, record.message)

    def park(self, record: LineRecord, reason: ParkReason, message: str) -> Parked:
        lost = park(record, reason, message)
        return Parked(
            lost.offset,
            lost.time_us,
            lost.reason,
            lost.message,
            lost.coupon_id,
            lost.user_id,
            lost.request_id,
            lost.redrive.original if lost.redrive else None,
            lost.known,
        )

    def changed_coupons(self) -> tuple[Coupon, ...]:
        was = self._state.coupons
        return tuple(one.now() for coupon_id, one in sorted(self._coupons.items()) if one.differs(was.get(coupon_id)))

    def _wrong_partition(self, record: IssueRequest | ChangeRequest) -> Parked:
        return self.park(
            record,
            ParkReason.WRONG_PARTITION,
            f"coupon {record.coupon_id} does not belong to partition {self._partition}",
        )

    def _issue(self, request: IssueRequest) -> Verdict:
        offset, time_us, coupon_id, user_id, request_id, redrive = request
        working = self._coupons.get(coupon_id)
        if working is None:
            if coupon_id in self._state.foreign:
                return self._wrong_partition(request)
            coupon, remaining = None, 0
        else:
            coupon, remaining = working.coupon, working.remaining
        key = (coupon_id, user_id)
        won = self._won.get(key)
        grant = self._grants.get(key) if won is None else self._granted(won)
        original = None
        if redrive is None:
            reason = refusal(coupon, remaining, grant, request_id, time_us)
        else:
            original = redrive.original
            reason = refusal(coupon, remaining, grant, request_id, redrive.original_time_us)
            if reason is not Reason.COUPON_NOT_FOUND and original in self._redriven:
                reason, grant = Reason.REPEATED, self._redriven[original]
        if working is None or reason is not None:
            repeated = grant if reason is Reason.REPEATED else None
            if original is not None:
                self._redriven.setdefault(original, repeated)
            reason = reason or Reason.COUPON_NOT_FOUND
            return Rejected(offset, time_us, coupon_id, user_id, request_id, reason, repeated, original)
        sequence = working.coupon.total - remaining + 1
        issued = make_issued((offset, time_us, coupon_id, user_id, request_id, sequence, original))
        working.remaining = remaining - 1
        self._won[key] = issued
        if original is not None:
            self._redriven[original] = self._granted(issued)
        return issued

    def _granted(self, issued: Issued) -> Grant:
        return Grant(issued.request_id, issued.sequence, Ticket(self._partition, issued.offset))

    def _current(self, coupon_id: CouponId) -> Coupon | None:
        working = self._coupons.get(coupon_id)
        return None if working is None else working.now()

    def _change(self, request: ChangeRequest) -> Changed:
        key = (request.coupon_id, request.request_id)
        past = self._changes.get(key)
        after = None
        if past is None:
            outcome, after = self._apply(request)
        elif past.payload_hash == request.payload_hash:
            outcome = past.outcome
        else:
            outcome = self._outcome(request, Reason.INVALID_FIELD, self._current(request.coupon_id))
        verdict = Changed(
            request.offset,
            request.time_us,
            request.coupon_id,
            request.request_id,
            request.payload_hash,
            past is not None,
            outcome,
            request.caller,
            request.redrive.original if request.redrive else None,
        )
        # Only now, when nothing more can raise: a record that is parked leaves no trace.
        self._changes.setdefault(key, PastChange(request.payload_hash, outcome))
        if after is not None:
            self._coupons[request.coupon_id] = _Working(after)
        return verdict

    def _apply(self, request: ChangeRequest) -> tuple[ChangeOutcome, Coupon | None]:
        """What the change comes to, and the coupon as it leaves it, if it applies."""
        before = self._current(request.coupon_id)
        reason: Reason | None
        if request.action is Action.CREATE:
            reason = Reason.COUPON_EXISTS if before is not None else _create_fault(request)
        elif before is None:
            reason = Reason.COUPON_NOT_FOUND
        else:
            reason = _change_fault(before, request)
        if reason is not None:
            return self._outcome(request, reason, before), None
        after = self._created(request) if before is None else self._updated(before, request)
        return self._outcome(request, None, after), after

    def _outcome(self, request: ChangeRequest, reason: Reason | None, coupon: Coupon | None) -> ChangeOutcome:
        return ChangeOutcome(reason, coupon, state_at(coupon, request.time_us) if coupon is not None else None)

    def _etag(self, request: ChangeRequest) -> str:
        return str(Ticket(self._partition, request.offset))

    def _created(self, request: ChangeRequest) -> Coupon:
        return Coupon(
            request.coupon_id,
            self._partition,
            request.display_name,
            request.total,
            request.total,
            0,
            request.start_us,
            request.end_us,
            Switch.ACTIVE,
            self._etag(request),
            request.time_us,
            request.time_us,
        )

    def _updated(self, before: Coupon, request: ChangeRequest) -> Coupon:
        coupon = replace(before, etag=self._etag(request), update_us=request.time_us)
        if request.action is Action.UPDATE:
            return _with_update(coupon, request)
        if request.action is Action.ADJUST_STOCK:
            delta = request.stock_delta
            return replace(coupon, total=coupon.total + delta, remaining=coupon.remaining + delta)
        return replace(coupon, switch=_SWITCH_OF_ACTION[request.action])


_SWITCH_OF_ACTION = {Action.PAUSE: Switch.PAUSED, Action.RESUME: Switch.ACTIVE, Action.CLOSE: Switch.CLOSED}


def _with_update(coupon: Coupon, request: ChangeRequest) -> Coupon:
    paths = request.update_paths
    return replace(
        coupon,
        display_name=request.display_name if "display_name" in paths else coupon.display_name,
        start_us=request.start_us if "start_time" in paths else coupon.start_us,
        end_us=request.end_us if "end_time" in paths else coupon.end_us,
    )


def _create_fault(request: ChangeRequest) -> Reason | None:
    fits = 1 <= request.total <= TOTAL_QUANTITY_MAX and _window_fits(request.start_us, request.end_us)
    return None if fits else Reason.INVALID_FIELD


def _change_fault(coupon: Coupon, request: ChangeRequest) -> Reason | None:
    if coupon.switch is Switch.CLOSED:
        return Reason.CLOSED
    if request.etag and request.etag != coupon.etag:
        return Reason.ETAG_MISMATCH
    if request.action is Action.UPDATE:
        after = _with_update(coupon, request)
        known_paths = bool(request.update_paths) and UPDATE_PATHS.issuperset(request.update_paths)
        return None if known_paths and _window_fits(after.start_us, after.end_us) else Reason.INVALID_FIELD
    if request.action is Action.ADJUST_STOCK:
        if request.stock_delta == 0 or coupon.total + request.stock_delta > TOTAL_QUANTITY_MAX:
            return Reason.INVALID_FIELD
        if coupon.remaining + request.stock_delta < 0:
            return Reason.INSUFFICIENT_STOCK
    return None


def _window_fits(start_us: int | None, end_us: int | None) -> bool:
    if any(time is not None and not TIME_US_MIN <= time <= TIME_US_MAX for time in (start_us, end_us)):
        return False
    return start_us is None or end_us is None or start_us < end_us
