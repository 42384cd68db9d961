"""One family of errors, decoded from google.rpc.Status in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import grpc
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

DOMAIN = "firstcome"
_STATUS_KEY = "grpc-status-details-bin"
_Code = grpc.StatusCode


class Reason(StrEnum):
    """ErrorInfo.reason, as docs/clients.md explains them; a newer server may know more, so `reason` is a str."""

    ALREADY_ISSUED = "ALREADY_ISSUED"
    SOLD_OUT = "SOLD_OUT"
    NOT_OPEN = "NOT_OPEN"
    ENDED = "ENDED"
    PAUSED = "PAUSED"
    CLOSED = "CLOSED"
    INSUFFICIENT_STOCK = "INSUFFICIENT_STOCK"
    WRONG_STATE = "WRONG_STATE"
    COUPON_NOT_FOUND = "COUPON_NOT_FOUND"
    ISSUANCE_NOT_FOUND = "ISSUANCE_NOT_FOUND"
    DEAD_LETTER_NOT_FOUND = "DEAD_LETTER_NOT_FOUND"
    REPLAY_JOB_NOT_FOUND = "REPLAY_JOB_NOT_FOUND"
    COUPON_EXISTS = "COUPON_EXISTS"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    PARKED = "PARKED"
    INVALID_FIELD = "INVALID_FIELD"
    OVERLOADED = "OVERLOADED"
    RATE_LIMITED = "RATE_LIMITED"
    KAFKA_UNAVAILABLE = "KAFKA_UNAVAILABLE"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    ROLE_MISSING = "ROLE_MISSING"


@dataclass(frozen=True, slots=True)
class Violation:
    """A bad field by its path in the request, or the resource that a precondition speaks of, and what is wrong."""

    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An error as it was answered. `reason` is the code's name where the answer carries no ErrorInfo of ours."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str]
    violations: tuple[Violation, ...] = ()
    resource: str = ""
    retry_after_s: float | None = None


class FirstcomeError(Exception):
    """A call that was answered with an error, or not at all."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.reason}: {answer.message}")
        self.answer = answer

    @property
    def code(self) -> grpc.StatusCode:
        return self.answer.code

    @property
    def reason(self) -> str:
        """Compare it with `Reason`."""
        return self.answer.reason

    @property
    def message(self) -> str:
        return self.answer.message

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.answer.metadata

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Of a bad request every bad field; of a refusal the precondition that does not hold."""
        return self.answer.violations

    @property
    def resource(self) -> str:
        """The name of what is missing or in the way; "" if the error speaks of none."""
        return self.answer.resource

    @property
    def retry_after_s(self) -> float | None:
        """When calling again may work, if the server has said it."""
        return self.answer.retry_after_s

    @property
    def request_id(self) -> str:
        """With it the call can be repeated; "" for calls that change nothing."""
        return self.metadata.get("request_id", "")

    @property
    def ticket(self) -> str:
        """The place in the line, where the error is a verdict of the line; else ""."""
        return self.metadata.get("ticket", "")

    @property
    def retryable(self) -> bool:
        """Whether the same call with the same request_id may work later. Whether it already did is not known."""
        return isinstance(self, Unavailable | Overloaded)


class Refused(FirstcomeError):
    """A clear no, by the state of things: FAILED_PRECONDITION, ALREADY_EXISTS, ABORTED."""


class NotFound(FirstcomeError):
    """NOT_FOUND: there is no such coupon or issuance."""


class InvalidRequest(FirstcomeError):
    """INVALID_ARGUMENT: `violations` names every bad field."""


class Denied(FirstcomeError):
    """UNAUTHENTICATED or PERMISSION_DENIED."""


class Overloaded(FirstcomeError):
    """RESOURCE_EXHAUSTED: too much at once, of all callers or of this one. Nothing was done."""


class Unavailable(FirstcomeError):
    """UNAVAILABLE: no server, or something behind it is away. The request may or may not be in the line."""


class DeadlineExceeded(Unavailable):
    """DEADLINE_EXCEEDED: no answer in time. The request may or may not be in the line."""


class Unexpected(FirstcomeError):
    """Any other code: a fault of the server, or of this client."""


_CLASSES: Mapping[grpc.StatusCode, type[FirstcomeError]] = {
    _Code.FAILED_PRECONDITION: Refused,
    _Code.ALREADY_EXISTS: Refused,
    _Code.ABORTED: Refused,
    _Code.NOT_FOUND: NotFound,
    _Code.INVALID_ARGUMENT: InvalidRequest,
    _Code.UNAUTHENTICATED: Denied,
    _Code.PERMISSION_DENIED: Denied,
    _Code.RESOURCE_EXHAUSTED: Overloaded,
    _Code.UNAVAILABLE: Unavailable,
    # The other side cut the call off, as a server does that stops; a cancellation of ours is a CancelledError.
    _Code.CANCELLED: Unavailable,
    _Code.DEADLINE_EXCEEDED: DeadlineExceeded,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def error_of(answer: Answer) -> FirstcomeError:
    """The error of the class that fits the code."""
    return _CLASSES.get(answer.code, Unexpected)(answer)


def error_of_call(error: grpc.aio.AioRpcError, request_id: str = "") -> FirstcomeError:
    """What a failed call means. `request_id`: the one sent, for where the answer does not name it."""
    status = Status(code=error.code().value[0], message=error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_KEY:
            status.ParseFromString(value if isinstance(value, bytes) else value.encode())
    return error_of_status(status, request_id)


def error_of_status(status: Status, request_id: str = "") -> FirstcomeError:
    """What a google.rpc.Status means, as in the results of a batch."""
    code = _BY_NUMBER.get(status.code, _Code.UNKNOWN)
    answer = Answer(code, code.name, status.message, {"request_id": request_id} if request_id else {})
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            answer = replace(answer, reason=info.reason, metadata={**answer.metadata, **info.metadata})
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            violations = tuple(Violation(one.field, one.description) for one in bad.field_violations)
            answer = replace(answer, violations=violations)
        precondition = error_details_pb2.PreconditionFailure()
        if detail.Unpack(precondition):
            violations = tuple(Violation(one.subject, one.description) for one in precondition.violations)
            answer = replace(answer, violations=violations)
        resource = error_details_pb2.ResourceInfo()
        if detail.Unpack(resource):
            answer = replace(answer, resource=resource.resource_name)
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            answer = replace(answer, retry_after_s=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return error_of(answer)
