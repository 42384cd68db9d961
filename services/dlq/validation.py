"""Requests to values: every bad field is found and named at once."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any

from coupon.v1 import dead_letter_pb2

from services.dlq.correction import Corrected, corrected
from services.dlq.operator_store import LetterFilter
from services.dlq.rows import FIRST, Call
from services.domain.dead_letter import DeadLetterState
from services.domain.model import ParkReason, RequestId, Ticket
from services.runtime import wire
from services.runtime.fields import Fields

COLLECTION = "deadLetters"
COMMENT_BYTES_MAX = 1_024
_ETAG_DIGITS_MAX = 18


@dataclass(frozen=True, slots=True)
class Operation:
    """A checked retry or discard. `version` is the etag's, None for none; `correction` None for the bytes it has."""

    ticket: Ticket
    call: Call
    comment: str
    version: int | None
    correction: Corrected | None = None


@dataclass(frozen=True, slots=True)
class LetterList:
    """A checked ListDeadLettersRequest. `filter_key` binds page tokens to the list."""

    wanted: LetterFilter
    page_size: int
    filter_key: str
    after: Ticket


def name_of(ticket: Ticket) -> str:
    return f"{COLLECTION}/{ticket}"


def letter_name(name: str) -> Ticket:
    """The ticket in deadLetters/{ticket}. Raises Refusal."""
    fields = Fields()
    ticket = _ticket(fields, name)
    fields.finish()
    return ticket


def letter_list(request: dead_letter_pb2.ListDeadLettersRequest) -> LetterList:
    """Raises Refusal."""
    fields = Fields()
    wanted = letter_filter(fields, "filter.", request.filter)
    size = fields.page_size(request.page_size)
    filter_key = f"dead letters {request.filter.SerializeToString(deterministic=True).hex()}"
    after = fields.page_token(filter_key, request.page_token, lambda text: Ticket.parse(text) is not None)
    fields.finish()
    return LetterList(wanted, size, filter_key, Ticket.parse(after) or FIRST)


def letter_filter(fields: Fields, prefix: str, message: dead_letter_pb2.DeadLetterFilter) -> LetterFilter:
    """The filter; what is wrong with it goes to `fields`, its fields named behind `prefix`."""
    state = reason = None
    if message.state:
        try:
            state = DeadLetterState(dead_letter_pb2.DeadLetter.State.Name(message.state))
        except ValueError:
            fields.bad(f"{prefix}state", "must be a state of DeadLetter")
    if message.reason:
        try:
            reason = ParkReason(message.reason)
        except ValueError:
            fields.bad(f"{prefix}reason", f"must be one of {', '.join(ParkReason)}")
    for field in ("coupon_id", "user_id"):
        if text := getattr(message, field):
            fields.identifier(f"{prefix}{field}", text)
    times: dict[str, int | None] = {}
    for field in ("failed_after", "failed_before"):
        given = message.HasField(field)
        if given:
            fields.time(f"{prefix}{field}", getattr(message, field))
        times[field] = wire.from_timestamp(getattr(message, field)) if given else None
    after_us, before_us = times["failed_after"], times["failed_before"]
    if after_us is not None and before_us is not None and before_us <= after_us:
        fields.bad(f"{prefix}failed_before", "must be after failed_after")
    return LetterFilter(state, reason, message.coupon_id or None, message.user_id or None, after_us, before_us)


def retry(request: dead_letter_pb2.RetryDeadLetterRequest, caller: str, now_us: int) -> Operation:
    """Raises Refusal."""
    fields = Fields()
    ticket = _ticket(fields, request.name)
    request_id = fields.request_id(request.request_id)
    _comment(fields, request.comment)
    version = _version(fields, request.etag)
    correction = corrected(
        fields,
        request.corrected_value,
        request.corrected_type,
        caller=caller,
        request_id=request_id,
        time_us=now_us,
    )
    fields.finish(request_id)
    return Operation(ticket, _call(request, request_id), request.comment, version, correction)


def discard(request: dead_letter_pb2.DiscardDeadLetterRequest) -> Operation:
    """Raises Refusal."""
    fields = Fields()
    ticket = _ticket(fields, request.name)
    request_id = fields.request_id(request.request_id)
    if not request.comment.strip():
        fields.bad("comment", "is required: say why")
    _comment(fields, request.comment)
    version = _version(fields, request.etag)
    fields.finish(request_id)
    return Operation(ticket, _call(request, request_id), request.comment, version)


def _ticket(fields: Fields, name: str) -> Ticket:
    collection, _, text = name.partition("/")
    ticket = Ticket.parse(text)
    if collection != COLLECTION or ticket is None:
        fields.bad("name", f'must be {COLLECTION}/{{ticket}}, where the ticket is "<partition>-<offset>"')
    return ticket or FIRST


def _comment(fields: Fields, text: str) -> None:
    if len(text.encode()) > COMMENT_BYTES_MAX:
        fields.bad("comment", f"must be at most {COMMENT_BYTES_MAX} bytes")
    elif any(unicodedata.category(c) == "Cc" for c in text):
        fields.bad("comment", "must have no control characters")


def _version(fields: Fields, etag: str) -> int | None:
    if not etag:
        return None
    if not (etag.isascii() and etag.isdecimal() and len(etag) <= _ETAG_DIGITS_MAX):
        fields.bad("etag", "must be an etag that the service gave")
        return None
    return int(etag)


def _call(
    request: dead_letter_pb2.RetryDeadLetterRequest | dead_letter_pb2.DiscardDeadLetterRequest, request_id: RequestId
) -> Call:
    """By all that it asks for, and what of; who asks is no part of it."""
    payload: Any = type(request)()
    payload.CopyFrom(request)
    payload.ClearField("request_id")
    asked = payload.DESCRIPTOR.full_name.encode() + b"\0" + payload.SerializeToString(deterministic=True)
    return Call(request_id, hashlib.sha256(asked).digest())
