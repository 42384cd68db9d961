"""Requests to values: every bad field is found and named at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from coupon.v1 import coupon_pb2, events_pb2, issuer_pb2

from services.domain.decide import UPDATE_PATHS
from services.domain.model import (
    ID_LENGTH_MAX,
    TOTAL_QUANTITY_MAX,
    CouponId,
    CouponState,
    RequestId,
    Ticket,
    UserId,
    are_ids,
    are_request_ids,
    is_id,
    is_request_id,
    maker,
    printable,
)
from services.runtime.fields import ID_RULE, Fields, coupon_id_in, new_request_id
from services.runtime.rpc_errors import Refusal

BATCH_REQUESTS_MAX = 1_000
_COUPON_NAME_LENGTH_MAX = len("coupons/") + ID_LENGTH_MAX
_SEQUENCE_DIGITS_MAX = 18
_Change = events_pb2.CouponChangeRequestedEvent


class IssueCall(NamedTuple):
    """A checked IssueCouponRequest."""

    coupon_id: CouponId
    user_id: UserId
    request_id: RequestId
    wait: bool


_make_issue_call = maker(IssueCall)


@dataclass(frozen=True, slots=True)
class IssuanceList:
    """A checked ListIssuancesRequest: the issuances of a coupon, of a user, or the one of both.

    `filter_key` binds page tokens to the list; `after` is the key of the row behind which the page begins.
    """

    coupon_id: CouponId | None
    user_id: UserId | None
    page_size: int
    filter_key: str
    after: str


class _Fields(Fields):
    """With what is particular to coupons."""

    def window(self, prefix: str, coupon: coupon_pb2.Coupon, *, both_count: bool = True) -> None:
        start = self.time(f"{prefix}start_time", coupon.start_time)
        end = self.time(f"{prefix}end_time", coupon.end_time)
        if both_count and coupon.HasField("start_time") and coupon.HasField("end_time") and end <= start:
            self.bad(f"{prefix}end_time", "must be after start_time")


def issue_call(request: issuer_pb2.IssueCouponRequest) -> IssueCall:
    """Raises Refusal."""
    name, user_id, given = request.coupon, request.user_id, request.request_id
    request_id = given or new_request_id()
    coupon_id = _coupon_of(name)
    if coupon_id is None or not is_id(user_id) or (given and not is_request_id(given)):
        fields = _Fields()
        coupon_id = fields.coupon_name("coupon", name)
        fields.identifier("user_id", user_id)
        fields.request_id(request_id)
        fields.finish(request_id)
    return _make_issue_call((coupon_id, user_id, request_id, request.wait))


_coupon_id = lru_cache(maxsize=4_096)(coupon_id_in)
"""Cached, for a rush is about a few coupons."""


def _coupon_of(name: str) -> CouponId | None:
    return _coupon_id(name) if len(name) <= _COUPON_NAME_LENGTH_MAX else None


def batch(request: issuer_pb2.BatchIssueCouponsRequest) -> Sequence[IssueCall | Refusal]:
    """The requests of a batch; one that is bad is its own Refusal. Raises Refusal for their number."""
    fields = _Fields()
    if not 1 <= len(request.requests) <= BATCH_REQUESTS_MAX:
        fields.bad("requests", f"must be 1 to {BATCH_REQUESTS_MAX} requests, not {len(request.requests)}")
    fields.finish()
    calls = [
        _make_issue_call((_coupon_of(one.coupon), one.user_id, one.request_id or new_request_id(), one.wait))
        for one in request.requests
    ]
    coupon_ids, user_ids, request_ids, _ = zip(*calls, strict=True)
    if all(coupon_ids) and are_ids(user_ids) and are_request_ids(request_ids):
        return calls
    return [_checked(one) for one in request.requests]


def _checked(request: issuer_pb2.IssueCouponRequest) -> IssueCall | Refusal:
    try:
        return issue_call(request)
    except Refusal as refusal:
        return refusal


def issuance(name: str, ticket: str) -> tuple[CouponId, UserId, Ticket | None]:
    """The coupon and user of an issuance's name, and the ticket if one is given. Raises Refusal."""
    fields = _Fields()
    parts = name.split("/")
    coupon_id = user_id = ""
    if len(parts) == 4 and parts[0] == "coupons" and parts[2] == "issuances":
        _, coupon_id, _, user_id = parts
    if not (is_id(coupon_id) and is_id(user_id)):
        fields.bad("name", f"must be coupons/{{coupon_id}}/issuances/{{user_id}}, where each id {ID_RULE}")
    parsed = Ticket.parse(ticket) if ticket else None
    if ticket and parsed is None:
        fields.bad("ticket", 'must be "<partition>-<offset>"')
    fields.finish()
    return CouponId(coupon_id), UserId(user_id), parsed


def coupon_name(name: str) -> CouponId:
    """The id in coupons/{coupon_id}. Raises Refusal."""
    fields = _Fields()
    coupon_id = fields.coupon_name("name", name)
    fields.finish()
    return coupon_id


@dataclass(frozen=True, slots=True)
class CouponList:
    """A checked ListCouponsRequest; `filter_key` and `after` as in IssuanceList."""

    state: CouponState | None
    page_size: int
    filter_key: str
    after: str


def coupon_list(request: coupon_pb2.ListCouponsRequest) -> CouponList:
    """Raises Refusal."""
    fields = _Fields()
    size = fields.page_size(request.page_size)
    state = None
    if request.state:
        try:
            state = CouponState(coupon_pb2.Coupon.State.Name(request.state))
        except ValueError:
            fields.bad("state", "must be a state of Coupon")
    filter_key = f"coupons {request.state}"
    after = fields.page_token(filter_key, request.page_token, is_id)
    fields.finish()
    return CouponList(state, size, filter_key, after)


def issuance_list(request: issuer_pb2.ListIssuancesRequest) -> IssuanceList:
    """Raises Refusal."""
    fields = _Fields()
    any_coupon = request.parent == "coupons/-"
    coupon_id = None if any_coupon else fields.coupon_name("parent", request.parent)
    if any_coupon and not request.user_id:
        fields.bad("user_id", "is required with parent coupons/-")
    elif request.user_id:
        fields.identifier("user_id", request.user_id)
    size = fields.page_size(request.page_size)
    filter_key = f"issuances {coupon_id or '-'} {request.user_id or '-'}"
    after = fields.page_token(filter_key, request.page_token, is_id if any_coupon else _is_sequence)
    fields.finish()
    return IssuanceList(coupon_id, UserId(request.user_id) if request.user_id else None, size, filter_key, after)


def create(request: coupon_pb2.CreateCouponRequest) -> events_pb2.CouponChangeRequestedEvent:
    """The change that CreateCoupon asks for. Raises Refusal."""
    fields = _Fields()
    coupon_id = fields.identifier("coupon_id", request.coupon_id)
    request_id = fields.request_id(request.request_id)
    coupon = request.coupon
    if not request.HasField("coupon"):
        fields.bad("coupon", "is required")
    elif not 1 <= coupon.total_quantity <= TOTAL_QUANTITY_MAX:
        fields.bad("coupon.total_quantity", f"must be from 1 to {TOTAL_QUANTITY_MAX}")
    fields.display_name("coupon.display_name", coupon.display_name)
    fields.window("coupon.", coupon)
    fields.finish(request_id)
    wanted = _written(coupon, ("display_name", "start_time", "end_time"))
    wanted.total_quantity = coupon.total_quantity
    return _Change(coupon_id=coupon_id, request_id=request_id, action=_Change.CREATE, coupon=wanted)


def update(request: coupon_pb2.UpdateCouponRequest) -> events_pb2.CouponChangeRequestedEvent:
    """The change that UpdateCoupon asks for; without a mask, all that is set. Raises Refusal."""
    fields = _Fields()
    request_id = fields.request_id(request.request_id)
    coupon = request.coupon
    coupon_id = fields.coupon_name("coupon.name", coupon.name)
    paths = sorted(set(request.update_mask.paths))
    if "*" in paths:
        paths = sorted(UPDATE_PATHS)
    if not request.HasField("update_mask"):
        paths = sorted(name for name in UPDATE_PATHS if _is_set(coupon, name))
    unknown = [path for path in paths if path not in UPDATE_PATHS]
    if unknown:
        named = printable(", ".join(unknown), ID_LENGTH_MAX)
        fields.bad("update_mask", f"may name {', '.join(sorted(UPDATE_PATHS))}, not {named}")
    elif not paths:
        fields.bad("update_mask", f"must name at least one of {', '.join(sorted(UPDATE_PATHS))}")
    fields.display_name("coupon.display_name", coupon.display_name)
    # What the mask leaves alone may be anything; how the rest fits the coupon is for the ledger to say.
    fields.window("coupon.", coupon, both_count={"start_time", "end_time"}.issubset(paths))
    if coupon.etag and Ticket.parse(coupon.etag) is None:
        fields.bad("coupon.etag", "must be an etag that the service gave")
    fields.finish(request_id)
    return _Change(
        coupon_id=coupon_id,
        request_id=request_id,
        action=_Change.UPDATE,
        coupon=_written(coupon, paths),
        update_paths=paths,
        etag=coupon.etag,
    )


def adjust_stock(request: coupon_pb2.AdjustStockRequest) -> events_pb2.CouponChangeRequestedEvent:
    """The change that AdjustStock asks for. Raises Refusal."""
    fields = _Fields()
    coupon_id = fields.coupon_name("name", request.name)
    request_id = fields.request_id(request.request_id)
    if request.delta == 0 or abs(request.delta) > TOTAL_QUANTITY_MAX:
        fields.bad("delta", f"must not be 0, and at most {TOTAL_QUANTITY_MAX} either way")
    fields.finish(request_id)
    return _Change(coupon_id=coupon_id, request_id=request_id, action=_Change.ADJUST_STOCK, stock_delta=request.delta)


def switch(name: str, request_id: str, action: events_pb2.CouponChangeRequestedEvent.Action) -> _Change:
    """The change that PauseCoupon, ResumeCoupon or CloseCoupon asks for. Raises Refusal."""
    fields = _Fields()
    coupon_id = fields.coupon_name("name", name)
    checked = fields.request_id(request_id)
    fields.finish(checked)
    return _Change(coupon_id=coupon_id, request_id=checked, action=action)


def _is_sequence(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _SEQUENCE_DIGITS_MAX


def _is_set(coupon: coupon_pb2.Coupon, path: str) -> bool:
    return bool(coupon.display_name) if path == "display_name" else coupon.HasField(path)


def _written(coupon: coupon_pb2.Coupon, paths: Sequence[str]) -> coupon_pb2.Coupon:
    """Only what the paths name: the record must not carry what it does not ask for."""
    kept = coupon_pb2.Coupon()
    if "display_name" in paths:
        kept.display_name = coupon.display_name
    if "start_time" in paths and coupon.HasField("start_time"):
        kept.start_time.CopyFrom(coupon.start_time)
    if "end_time" in paths and coupon.HasField("end_time"):
        kept.end_time.CopyFrom(coupon.end_time)
    return kept
