"""DeadLetterService: what operators do about records that could not be processed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import grpc
from coupon.v1 import dead_letter_pb2, dead_letter_pb2_grpc

from firstcome.calls import PAGE_SIZE_DEFAULT, Calls, pages
from firstcome.values import new_request_id, optional_time, timestamp


class DeadLetterState(StrEnum):
    """Where a dead letter stands."""

    UNSPECIFIED = "UNSPECIFIED"  # also a state that this client is too old to know
    RETRYING = "RETRYING"  # is sent through the line again by itself
    PARKED = "PARKED"  # waits for an operator
    REDRIVEN = "REDRIVEN"  # in the line again, no verdict yet
    RESOLVED = "RESOLVED"  # its redrive has a verdict
    DISCARDED = "DISCARDED"


@dataclass(frozen=True, slots=True)
class DeadLetterAction:
    """What was done about a dead letter, and by whom."""

    action: str
    caller: str
    comment: str
    time: datetime | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the line that could not be processed. A list leaves out key, value, headers and actions.

    `ticket`: its place in the line, "<partition>-<offset>". `redrive_ticket`: of the record that redrove it last. Ids
    are empty where they could not be read.
    """

    ticket: str
    state: DeadLetterState
    reason: str
    error_message: str
    coupon_id: str
    user_id: str
    request_id: str
    redrive_ticket: str
    attempt_count: int
    trace_id: str
    record_time: datetime | None
    first_failed_time: datetime | None
    last_failed_time: datetime | None
    next_attempt_time: datetime | None
    etag: str
    key: bytes = b""
    value: bytes = field(default=b"", repr=False)
    headers: Mapping[str, bytes] = field(default_factory=dict)
    actions: tuple[DeadLetterAction, ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters; None and "": any. `failed_after` <= last failure < `failed_before`."""

    state: DeadLetterState | None = None
    reason: str = ""
    coupon_id: str = ""
    user_id: str = ""
    failed_after: datetime | None = None
    failed_before: datetime | None = None

    def message(self) -> dead_letter_pb2.DeadLetterFilter:
        """Raises ValueError for a time without a zone."""
        return dead_letter_pb2.DeadLetterFilter(
            state=self.state.value if self.state is not None else None,
            reason=self.reason,
            coupon_id=self.coupon_id,
            user_id=self.user_id,
            failed_after=timestamp(self.failed_after) if self.failed_after else None,
            failed_before=timestamp(self.failed_before) if self.failed_before else None,
        )


ANY = DeadLetterFilter()


class DeadLetters:
    """The dead letters of one system. Every method raises FirstcomeError.

    A change carries a `request_id`, made here unless given: after Unavailable repeat it with the error's, and it is
    made once. `etag`: change it only if it still has this one. `timeout_s`: the deadline of the call, retries included;
    None: the connection's.
    """

    def __init__(self, channel: grpc.aio.Channel, calls: Calls) -> None:
        stub: Any = dead_letter_pb2_grpc.DeadLetterServiceStub
        self._stub: Any = stub(channel)
        self._calls = calls

    async def get(self, ticket: str, *, timeout_s: float | None = None) -> DeadLetter:
        """The dead letter, whole."""
        request = dead_letter_pb2.GetDeadLetterRequest(name=_name(ticket))
        return dead_letter_from(await self._calls.unary(self._stub.GetDeadLetter, request, timeout_s))

    def list(
        self, wanted: DeadLetterFilter = ANY, *, page_size: int = PAGE_SIZE_DEFAULT, timeout_s: float | None = None
    ) -> AsyncGenerator[DeadLetter, None]:
        """The dead letters of a filter by ticket, in short; a page at a time, each with the deadline."""

        async def fetch(token: str) -> tuple[Sequence[DeadLetter], str]:
            request = dead_letter_pb2.ListDeadLettersRequest(
                filter=wanted.message(), page_size=page_size, page_token=token
            )
            answer = await self._calls.unary(self._stub.ListDeadLetters, request, timeout_s)
            return [dead_letter_from(one) for one in answer.dead_letters], answer.next_page_token

        return pages(fetch)

    async def retry(
        self,
        ticket: str,
        *,
        corrected_value: bytes = b"",
        corrected_type: str = "",
        comment: str = "",
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> DeadLetter:
        """Sends it through the line again now, as it was, or with a corrected value of that type
        ("coupon.v1.CouponIssueRequestedEvent"). Its verdict comes later: it is RESOLVED then."""
        request = dead_letter_pb2.RetryDeadLetterRequest(
            name=_name(ticket),
            request_id=request_id or new_request_id(),
            comment=comment,
            etag=etag,
            corrected_value=corrected_value,
            corrected_type=corrected_type,
        )
        return dead_letter_from(await self._calls.unary(self._stub.RetryDeadLetter, request, timeout_s))

    async def discard(
        self,
        ticket: str,
        comment: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> DeadLetter:
        """Decides that nothing more is done about it; the comment says why."""
        request = dead_letter_pb2.DiscardDeadLetterRequest(
            name=_name(ticket), request_id=request_id or new_request_id(), comment=comment, etag=etag
        )
        return dead_letter_from(await self._calls.unary(self._stub.DiscardDeadLetter, request, timeout_s))


def dead_letter_from(message: dead_letter_pb2.DeadLetter) -> DeadLetter:
    """The value of coupon.v1.DeadLetter."""
    return DeadLetter(
        ticket=message.ticket,
        state=_state(message.state),
        reason=message.reason,
        error_message=message.error_message,
        coupon_id=message.coupon_id,
        user_id=message.user_id,
        request_id=message.request_id,
        redrive_ticket=message.redrive_ticket,
        attempt_count=message.attempt_count,
        trace_id=message.trace_id,
        record_time=optional_time(message, "record_time"),
        first_failed_time=optional_time(message, "first_failed_time"),
        last_failed_time=optional_time(message, "last_failed_time"),
        next_attempt_time=optional_time(message, "next_attempt_time"),
        etag=message.etag,
        key=message.key,
        value=message.value,
        headers=dict(message.headers),
        actions=tuple(
            DeadLetterAction(one.action, one.caller, one.comment, optional_time(one, "time")) for one in message.actions
        ),
    )


def _name(ticket: str) -> str:
    return f"deadLetters/{ticket}"


def _state(number: int) -> DeadLetterState:
    states = dead_letter_pb2.DeadLetter.State
    name = states.Name(number) if number in states.values() else ""
    return DeadLetterState(name) if name in DeadLetterState.__members__ else DeadLetterState.UNSPECIFIED
