"""The one error catalogue: situation → gRPC code, ErrorInfo.reason and the details that come with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import grpc
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


class Row(NamedTuple):
    """An error: its code and detail, the situation that it stands for, and what the caller should do."""

    code: grpc.StatusCode
    detail: Detail
    situation: str
    advice: str


CATALOGUE: Mapping[str, Row] = {
    "ALREADY_ISSUED": Row(
        _Code.ALREADY_EXISTS,
        Detail.RESOURCE,
        "the user has the coupon by another request_id",
        "Nothing; they have it. ResourceInfo names the issuance.",
    ),
    "SOLD_OUT": Row(
        _Code.FAILED_PRECONDITION,
        Detail.PRECONDITION,
        "the stock is given away",
        "Tell the user. Stock may be added: a later call takes a new place.",
    ),
    "NOT_OPEN": Row(
        _Code.FAILED_PRECONDITION,
        Detail.PRECONDITION,
        "the sale has not begun",
        "Call again after the coupon's start_time.",
    ),
    "ENDED": Row(
        _Code.FAILED_PRECONDITION,
        Detail.PRECONDITION,
        "the sale is over",
        "Tell the user.",
    ),
    "PAUSED": Row(
        _Code.FAILED_PRECONDITION,
        Detail.PRECONDITION,
        "an operator has paused the coupon",
        "Call again later.",
    ),
    "CLOSED": Row(
        _Code.FAILED_PRECONDITION,
        Detail.PRECONDITION,
        "the coupon has been ended for good",
        "Tell the user.",
    ),
    "INSUFFICIENT_STOCK": Row(
        _Code.FAILED_PRECONDITION,
        Detail.PRECONDITION,
        "more stock would be taken than is left",
        "Take less.",
    ),
    "WRONG_STATE": Row(
        _Code.FAILED_PRECONDITION,
        Detail.PRECONDITION,
        "the dead letter or job is in another state than the call needs",
        "Get it, then decide.",
    ),
    "COUPON_NOT_FOUND": Row(
        _Code.NOT_FOUND,
        Detail.RESOURCE,
        "there is no such coupon",
        "Check the name.",
    ),
    "ISSUANCE_NOT_FOUND": Row(
        _Code.NOT_FOUND,
        Detail.RESOURCE,
        "the user does not have the coupon, or the ticket is none of the line",
        "Check name and ticket.",
    ),
    "DEAD_LETTER_NOT_FOUND": Row(
        _Code.NOT_FOUND,
        Detail.RESOURCE,
        "there is no such dead letter",
        "Check the name.",
    ),
    "REPLAY_JOB_NOT_FOUND": Row(
        _Code.NOT_FOUND,
        Detail.RESOURCE,
        "there is no such job",
        "Check the name.",
    ),
    "COUPON_EXISTS": Row(
        _Code.ALREADY_EXISTS,
        Detail.RESOURCE,
        "the coupon id is taken",
        "Choose another id.",
    ),
    "ETAG_MISMATCH": Row(
        _Code.ABORTED,
        Detail.NONE,
        "the coupon or dead letter has been changed since its etag was read",
        "Get it and try again with its etag.",
    ),
    "PARKED": Row(
        _Code.ABORTED,
        Detail.NONE,
        "the change could not be processed and waits for an operator",
        "Ask an operator; the ticket names it.",
    ),
    "INVALID_FIELD": Row(
        _Code.INVALID_ARGUMENT,
        Detail.FIELDS,
        "a field is bad, a request_id was used for something else, or a ticket is another issuance's",
        "Mend every field that BadRequest names.",
    ),
    "OVERLOADED": Row(
        _Code.RESOURCE_EXHAUSTED,
        Detail.RETRY,
        "more calls or unsettled requests than the limits allow",
        "Call again after RetryInfo's delay, with the same request_id.",
    ),
    "RATE_LIMITED": Row(
        _Code.RESOURCE_EXHAUSTED,
        Detail.RETRY,
        "the caller is over their rate",
        "Call again after RetryInfo's delay.",
    ),
    "KAFKA_UNAVAILABLE": Row(
        _Code.UNAVAILABLE,
        Detail.RETRY,
        "the log does not answer; the request may be in the line or not",
        "Call again with the same request_id: harmless.",
    ),
    "DATABASE_UNAVAILABLE": Row(
        _Code.UNAVAILABLE,
        Detail.RETRY,
        "the database does not answer",
        "Call again with the same request_id: harmless.",
    ),
    "LEDGER_UNAVAILABLE": Row(
        _Code.UNAVAILABLE,
        Detail.RETRY,
        "a verdict did not come in time, or the tables are older than the log",
        "Call again with the same request_id: harmless.",
    ),
    "UNAUTHENTICATED": Row(
        _Code.UNAUTHENTICATED,
        Detail.NONE,
        "no credentials, or none that are known",
        "Send a valid token or certificate.",
    ),
    "ROLE_MISSING": Row(
        _Code.PERMISSION_DENIED,
        Detail.NONE,
        "the caller lacks the role that the method needs",
        "Ask for the role that the metadata names.",
    ),
}
"""ErrorInfo.reason → the error: the error table of the contract. docs/errors.md is made from it."""

RETRY_AFTER_MS = 500
DETAILS = "grpc-status-details-bin"
"""The trailing metadata in which gRPC has the serialized status."""


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
        return CATALOGUE[self.reason].code

    def status(self) -> Status:
        """google.rpc.Status with ErrorInfo and the catalogue's detail."""
        return Status.FromString(self.serialized())

    def write(self, status: Status) -> None:
        """The same, into an empty one: of a batch's, each where it stays."""
        status.ParseFromString(self.serialized())

    def serialized(self) -> bytes:
        """The same as bytes: of most refusals all but the ErrorInfo's metadata are made once."""
        detail = CATALOGUE[self.reason].detail
        if detail is Detail.PRECONDITION:
            rest = _precondition(self.reason, self.resource, self.message)
        else:
            rest = _rest(self.reason, self.message, self._detail(detail))
        return _with_info(self.reason, self.metadata) + rest

    def _detail(self, kind: Detail) -> Message | None:
        detail: Message | None = None
        if kind is Detail.FIELDS and self.violations:
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in self.violations
            ]
            detail = error_details_pb2.BadRequest(field_violations=fields)
        elif kind is Detail.RESOURCE:
            detail = error_details_pb2.ResourceInfo(
                resource_type=_RESOURCE_TYPES[self.reason], resource_name=self.resource, description=self.message
            )
        elif kind is Detail.RETRY:
            delay = Duration(seconds=self.retry_after_ms // 1000, nanos=self.retry_after_ms % 1000 * 1_000_000)
            detail = error_details_pb2.RetryInfo(retry_delay=delay)
        return detail


_SOME_REQUEST = b"?" * 36
"""In the place of a request_id in bytes made for all: a UUID is as long."""


def _with_info(reason: str, metadata: Mapping[str, str]) -> bytes:
    """A Status with the ErrorInfo alone. Most differ by their request_id only."""
    if len(metadata) == 1:
        request_id = metadata.get("request_id", "").encode()
        if len(request_id) == len(_SOME_REQUEST):
            return _of_some_request(reason).replace(_SOME_REQUEST, request_id)
    return _info(reason, metadata)


@lru_cache(maxsize=len(CATALOGUE))
def _of_some_request(reason: str) -> bytes:
    return _info(reason, {"request_id": _SOME_REQUEST.decode()})


def _info(reason: str, metadata: Mapping[str, str]) -> bytes:
    status = Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    about: bytes = status.SerializeToString()
    return about


def _rest(reason: str, message: str, detail: Message | None) -> bytes:
    """What stands in a Status beside the ErrorInfo. Messages are merged where their bytes follow each other."""
    status = Status(code=CATALOGUE[reason].code.value[0], message=message)
    if detail is not None:
        status.details.add().Pack(detail)
    rest: bytes = status.SerializeToString()
    return rest


@lru_cache(maxsize=1_024)
def _precondition(reason: str, resource: str, message: str) -> bytes:
    """Cached, for after a sell-out all are told the same."""
    violation = error_details_pb2.PreconditionFailure.Violation(type=reason, subject=resource, description=message)
    return _rest(reason, message, error_details_pb2.PreconditionFailure(violations=[violation]))


_RESOURCE_TYPES = {
    "ALREADY_ISSUED": "coupon.v1.Issuance",
    "COUPON_NOT_FOUND": "coupon.v1.Coupon",
    "ISSUANCE_NOT_FOUND": "coupon.v1.Issuance",
    "DEAD_LETTER_NOT_FOUND": "coupon.v1.DeadLetter",
    "REPLAY_JOB_NOT_FOUND": "coupon.v1.ReplayJob",
    "COUPON_EXISTS": "coupon.v1.Coupon",
}


def invalid(violations: Sequence[Violation], request_id: str = "") -> Refusal:
    """INVALID_ARGUMENT that names every bad field."""
    message = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return Refusal("INVALID_FIELD", message, violations=violations, metadata=_request(request_id))


def unavailable(reason: str, message: str, request_id: str = "") -> Refusal:
    """One of the *_UNAVAILABLE reasons or OVERLOADED, with the time after which to call again."""
    return Refusal(reason, message, metadata=_request(request_id))


def _request(request_id: str) -> dict[str, str]:
    return {"request_id": request_id} if request_id else {}


def catalogue_page() -> str:
    """docs/errors.md."""
    lines = [
        "# Errors",
        "",
        f"Every error has `google.rpc.ErrorInfo` with domain `{DOMAIN}` and one of these reasons. Its metadata has the",
        "`request_id` used, and the `ticket` where the refusal is a verdict. Made by `make docs/errors.md`.",
        "",
        "| reason | code | detail | when | what to do |",
        "|---|---|---|---|---|",
    ]
    for reason, row in CATALOGUE.items():
        detail = "" if row.detail is Detail.NONE else row.detail.value
        lines.append(f"| `{reason}` | {row.code.name} | {detail} | {row.situation} | {row.advice} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(catalogue_page(), end="")
