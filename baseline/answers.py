"""Requests to values and back, and the contract's errors as far as the Redis system gives them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence

from coupon.v1 import coupon_pb2, issuer_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from baseline.stock import Granted, Wish

BATCH_REQUESTS_MAX = 1_000
TOTAL_QUANTITY_MAX = 10_000_000
_ID = re.compile(r"[A-Za-z0-9._~@:+-]{1,128}")
_ID_RULE = "must be 1 to 128 of A-Z a-z 0-9 . _ ~ @ : + -"
_RETRY_DELAY_NS = 500_000_000
_SENTENCES = {
    "ALREADY_ISSUED": "{user} has asked for coupon {coupon} before",
    "SOLD_OUT": "coupon {coupon} is sold out",
    "COUPON_NOT_FOUND": "there is no coupon {coupon}",
    "COUPON_EXISTS": "there is a coupon {coupon} already",
    "ISSUANCE_NOT_FOUND": "{user} has no stored coupon {coupon}",
}
_CODES = {
    "ALREADY_ISSUED": Code.ALREADY_EXISTS,
    "SOLD_OUT": Code.FAILED_PRECONDITION,
    "COUPON_NOT_FOUND": Code.NOT_FOUND,
    "COUPON_EXISTS": Code.ALREADY_EXISTS,
    "ISSUANCE_NOT_FOUND": Code.NOT_FOUND,
}


class Refused(Exception):
    """A call or a request that ends with an error."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


def wish(request: issuer_pb2.IssueCouponRequest) -> Wish:
    """Raises Refused, with every bad field."""
    collection, _, coupon_id = request.coupon.partition("/")
    bad: dict[str, str] = {}
    if collection != "coupons" or not _ID.fullmatch(coupon_id):
        bad["coupon"] = f"must be coupons/{{coupon_id}}, where the id {_ID_RULE}"
    if not _ID.fullmatch(request.user_id):
        bad["user_id"] = _ID_RULE
    if request.request_id and not _is_uuid(request.request_id):
        bad["request_id"] = "must be a UUID"
    if bad:
        raise invalid(bad)
    return Wish(coupon_id, request.user_id, request.request_id or str(uuid.uuid4()))


def batch(request: issuer_pb2.BatchIssueCouponsRequest) -> Sequence[issuer_pb2.IssueCouponRequest]:
    """Raises Refused for their number."""
    if not 1 <= len(request.requests) <= BATCH_REQUESTS_MAX:
        raise invalid({"requests": f"must be 1 to {BATCH_REQUESTS_MAX} requests, not {len(request.requests)}"})
    return request.requests


def coupon(request: coupon_pb2.CreateCouponRequest) -> tuple[str, str, int]:
    """Id, display name and stock. Raises Refused."""
    bad: dict[str, str] = {}
    if not _ID.fullmatch(request.coupon_id):
        bad["coupon_id"] = _ID_RULE
    if not 1 <= request.coupon.total_quantity <= TOTAL_QUANTITY_MAX:
        bad["coupon.total_quantity"] = f"must be from 1 to {TOTAL_QUANTITY_MAX}"
    if request.coupon.HasField("start_time") or request.coupon.HasField("end_time"):
        bad["coupon.start_time"] = "the Redis system has no sale window"
    if bad:
        raise invalid(bad)
    return request.coupon_id, request.coupon.display_name, request.coupon.total_quantity


def issuance_name(name: str) -> tuple[str, str]:
    """Coupon and user. Raises Refused."""
    parts = name.split("/")
    if len(parts) == 4 and parts[0] == "coupons" and parts[2] == "issuances":
        _, coupon_id, _, user_id = parts
        if _ID.fullmatch(coupon_id) and _ID.fullmatch(user_id):
            return coupon_id, user_id
    raise invalid({"name": f"must be coupons/{{coupon_id}}/issuances/{{user_id}}, where each id {_ID_RULE}"})


def issuance(coupon_id: str, user_id: str, request_id: str, sequence: int) -> issuer_pb2.Issuance:
    """ISSUED: the Redis system says so before anything is stored. It has no line, hence no ticket."""
    return issuer_pb2.Issuance(
        name=f"coupons/{coupon_id}/issuances/{user_id}",
        coupon=f"coupons/{coupon_id}",
        user_id=user_id,
        request_id=request_id,
        state=issuer_pb2.Issuance.ISSUED,
        sequence=sequence,
    )


def granted(grant: Granted) -> issuer_pb2.Issuance:
    return issuance(grant.coupon_id, grant.user_id, grant.request_id, grant.sequence)


def refused(reason: str, coupon_id: str, user_id: str = "", request_id: str = "") -> Refused:
    """A refusal by its reason."""
    message = _SENTENCES[reason].format(coupon=coupon_id, user=user_id)
    resource = f"coupons/{coupon_id}"
    if reason in ("ALREADY_ISSUED", "ISSUANCE_NOT_FOUND"):
        resource += f"/issuances/{user_id}"
    detail: Message
    if reason == "SOLD_OUT":
        violation = error_details_pb2.PreconditionFailure.Violation(type=reason, subject=resource, description=message)
        detail = error_details_pb2.PreconditionFailure(violations=[violation])
    else:
        detail = error_details_pb2.ResourceInfo(resource_name=resource, description=message)
    metadata = {"request_id": request_id} if request_id else {}
    return _refused(_CODES[reason], reason, message, detail, metadata)


def unavailable(reason: str, request_id: str = "") -> Refused:
    """REDIS_UNAVAILABLE or DATABASE_UNAVAILABLE. Calling again is not harmless: it may be refused as a duplicate."""
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.nanos = _RETRY_DELAY_NS
    metadata = {"request_id": request_id} if request_id else {}
    return _refused(Code.UNAVAILABLE, reason, "what became of the call is unknown", retry, metadata)


def invalid(bad: Mapping[str, str]) -> Refused:
    violations = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in bad.items()]
    message = "; ".join(f"{field}: {description}" for field, description in bad.items())
    detail = error_details_pb2.BadRequest(field_violations=violations)
    return _refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", message, detail, {})


def _refused(code: int, reason: str, message: str, detail: Message, metadata: Mapping[str, str]) -> Refused:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="firstcome", metadata=dict(metadata))
    return Refused(Status(code=code, message=message, details=[_packed(info), _packed(detail)]))


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
