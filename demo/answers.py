"""gRPC answers as values: a ticket, a verdict, a refusal, or nothing certain."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from coupon.v1 import issuer_pb2
from google.rpc import error_details_pb2, status_pb2

RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
UNCERTAIN = RETRYABLE | {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
"""After these the request may or may not be in the line; calling again with its request_id is harmless."""
VERDICTS = frozenset(
    {"COUPON_NOT_FOUND", "ALREADY_ISSUED", "CLOSED", "NOT_OPEN", "ENDED", "PAUSED", "SOLD_OUT", "PARKED"}
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}
RETRY_DELAY_S = 0.5
"""Where the answer names no delay."""


@dataclass(frozen=True, slots=True)
class Answer:
    """ACCEPTED or a verdict. `ticket` is "" where a refusal was the issuer's own. `reason` only with REJECTED."""

    state: str
    ticket: str
    reason: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer that says what became of the request."""

    code: grpc.StatusCode
    reason: str
    message: str
    retry_after_s: float

    @property
    def uncertain(self) -> bool:
        return self.code in UNCERTAIN


def answer_of(issuance: issuer_pb2.Issuance) -> Answer:
    """An OK answer."""
    state = issuer_pb2.Issuance.State.Name(issuance.state)
    return Answer(state, issuance.ticket, issuance.reject_reason, issuance.sequence)


def answer_of_error(error: grpc.aio.AioRpcError) -> Answer | Failure:
    """An error: a refusal that says what holds is an answer too."""
    return _answer(error.code(), _status(error), error.details() or "")


def answer_of_status(status: status_pb2.Status) -> Answer | Failure:
    """One error of a batch."""
    return _answer(_CODES[status.code], status, status.message)


def _answer(code: grpc.StatusCode, status: status_pb2.Status, message: str) -> Answer | Failure:
    info, delay_s = error_details_pb2.ErrorInfo(), RETRY_DELAY_S
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            delay_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        detail.Unpack(info)
    if code not in UNCERTAIN and info.domain == "firstcome" and info.reason in VERDICTS:
        return Answer("REJECTED", info.metadata.get("ticket", ""), info.reason, 0)
    return Failure(code, info.reason or code.name, message, delay_s)


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value if isinstance(value, bytes) else value.encode())
    return status
