"""The typed client of firstcome's gRPC contract: `async with connect("issuer:50051") as client: …`."""

from firstcome.channel import Connection, SettingsError, Tls, token_file
from firstcome.client import Client, connect
from firstcome.coupons import UNCHANGED, Coupons
from firstcome.dead_letters import DeadLetter, DeadLetterAction, DeadLetterFilter, DeadLetters, DeadLetterState
from firstcome.errors import (
    DeadlineExceeded,
    Denied,
    FirstcomeError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Reason,
    Refused,
    Unavailable,
    Unexpected,
    Violation,
)
from firstcome.replays import Difference, LogRange, ReplayJob, ReplayKind, Replays, ReplayState
from firstcome.values import (
    Coupon,
    CouponState,
    Issuance,
    IssuanceState,
    IssueRequest,
    IssueResult,
    new_request_id,
)

__all__ = [
    "UNCHANGED",
    "Client",
    "Connection",
    "Coupon",
    "CouponState",
    "Coupons",
    "DeadLetter",
    "DeadLetterAction",
    "DeadLetterFilter",
    "DeadLetterState",
    "DeadLetters",
    "DeadlineExceeded",
    "Denied",
    "Difference",
    "FirstcomeError",
    "InvalidRequest",
    "Issuance",
    "IssuanceState",
    "IssueRequest",
    "IssueResult",
    "LogRange",
    "NotFound",
    "Overloaded",
    "Reason",
    "Refused",
    "ReplayJob",
    "ReplayKind",
    "ReplayState",
    "Replays",
    "SettingsError",
    "Tls",
    "Unavailable",
    "Unexpected",
    "Violation",
    "connect",
    "new_request_id",
    "token_file",
]
