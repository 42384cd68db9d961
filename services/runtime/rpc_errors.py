"""The one error catalogue: situation → gRPC code, ErrorInfo.reason and the details that come with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

DOMAIN = "firstcome"
_Code = grpc.StatusCode


class Detail(Enum):
    """Which google.rpc detail stands beside ErrorInfo."""

    NONE = "none"
    FIELDS = "BadRequest"
    PRECONDITION = "PreconditionFailure"
    RESOURCE = "ResourceInfo"
    RETRY = "RetryInfo"


CATALOGUE: Mapping[str, tuple[grpc.StatusCode, Detail]] = {
    "ALREADY_ISSUED": (_Code.ALREADY_EXISTS, Detail.RESOURCE),
    "SOLD_OUT": (_Code.FAILED_PRECONDITION, Detail.PRECONDITION),
    "NOT_OPEN": (_Code.FAILED_PRECONDITION, Detail.PRECONDITION),
    "ENDED": (_Code.FAILED_PRECONDITION, Detail.PRECONDITION),
    "PAUSED": (_Code.FAILED_PRECONDITION, Detail.PRECONDITION),
    "CLOSED": (_Code.FAILED_PRECONDITION, Detail.PRECONDITION),
    "INSUFFICIENT_STOCK": (_Code.FAILED_PRECONDITION, Detail.PRECONDITION),
    "WRONG_STATE": (_Code.FAILED_PRECONDITION, Detail.PRECONDITION),
    "COUPON_NOT_FOUND": (_Code.NOT_FOUND, Detail.RESOURCE),
    "ISSUANCE_NOT_FOUND": (_Code.NOT_FOUND, Detail.RESOURCE),
    "DEAD_LETTER_NOT_FOUND": (_Code.NOT_FOUND, Detail.RESOURCE),
    "REPLAY_JOB_NOT_FOUND": (_Code.NOT_FOUND, Detail.RESOURCE),
    "COUPON_EXISTS": (_Code.ALREADY_EXISTS, Detail.RESOURCE),
    "ETAG_MISMATCH": (_Code.ABORTED, Detail.NONE),
    "PARKED": (_Code.ABORTED, Detail.NONE),
    "INVALID_FIELD": (_Code.INVALID_ARGUMENT, Detail.FIELDS),
    "OVERLOADED": (_Code.RESOURCE_EXHAUSTED, Detail.RETRY),
    "RATE_LIMITED": (_Code.RESOURCE_EXHAUSTED, Detail.RETRY),
    "KAFKA_UNAVAILABLE": (_Code.UNAVAILABLE, Detail.RETRY),
    "DATABASE_UNAVAILABLE": (_Code.UNAVAILABLE, Detail.RETRY),
    "LEDGER_UNAVAILABLE": (_Code.UNAVAILABLE, Detail.RETRY),
    "UNAUTHENTICATED": (_Code.UNAUTHENTICATED, Detail.NONE),
    "ROLE_MISSING": (_Code.PERMISSION_DENIED, Detail.NONE),
}
"""ErrorInfo.reason → code and detail: the error table of the contract."""

RETRY_AFTER_MS = 500


@dataclass(frozen=True, slots=True)
class Violation:
    """A bad field, by its path in the request, and what it must be."""

    field: str
    description: str


@dataclass(eq=False)
class Refusal(Exception):
    """An answer that is an error. `reason` is a key of CATALOGUE; `resource` is the name that the details speak of."""

    reason: str
    message: str
    resource: str = ""
    violations: Sequence[Violation] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_ms: int = RETRY_AFTER_MS

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def code(self) -> grpc.StatusCode:
        return CATALOGUE[self.reason][0]

    def status(self) -> Status:
        """google.rpc.Status with ErrorInfo and the catalogue's detail."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))
        details = [_packed(info), *(_packed(detail) for detail in self._details())]
        return Status(code=self.code.value[0], message=self.message, details=details)

    def _details(self) -> list[Message]:
        kind = CATALOGUE[self.reason][1]
        if kind is Detail.FIELDS:
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in self.violations
            ]
            return [error_details_pb2.BadRequest(field_violations=fields)] if fields else []
        if kind is Detail.PRECONDITION:
            violation = error_details_pb2.PreconditionFailure.Violation(
                type=self.reason, subject=self.resource, description=self.message
            )
            return [error_details_pb2.PreconditionFailure(violations=[violation])]
        if kind is Detail.RESOURCE:
            return [
                error_details_pb2.ResourceInfo(
                    resource_type=_RESOURCE_TYPES[self.reason], resource_name=self.resource, description=self.message
                )
            ]
        if kind is Detail.RETRY:
            delay = Duration(seconds=self.retry_after_ms // 1000, nanos=self.retry_after_ms % 1000 * 1_000_000)
            return [error_details_pb2.RetryInfo(retry_delay=delay)]
        return []


_RESOURCE_TYPES = {
    "ALREADY_ISSUED": "coupon.v1.Issuance",
    "COUPON_NOT_FOUND": "coupon.v1.Coupon",
    "ISSUANCE_NOT_FOUND": "coupon.v1.Issuance",
    "DEAD_LETTER_NOT_FOUND": "coupon.v1.DeadLetter",
    "REPLAY_JOB_NOT_FOUND": "coupon.v1.ReplayJob",
    "COUPON_EXISTS": "coupon.v1.Coupon",
}


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def invalid(violations: Sequence[Violation], request_id: str = "") -> Refusal:
    """INVALID_ARGUMENT that names every bad field."""
    message = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return Refusal("INVALID_FIELD", message, violations=violations, metadata=_request(request_id))


def unavailable(reason: str, message: str, request_id: str = "") -> Refusal:
    """One of the *_UNAVAILABLE reasons or OVERLOADED, with the time after which to call again."""
    return Refusal(reason, message, metadata=_request(request_id))


def _request(request_id: str) -> dict[str, str]:
    return {"request_id": request_id} if request_id else {}
