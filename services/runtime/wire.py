"""Records of the topics to values of the domain, and back. Nothing else knows the protobuf events and the headers."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from coupon.v1 import coupon_pb2, events_pb2
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from services.domain.model import (
    ID_LENGTH_MAX,
    Action,
    Changed,
    ChangeOutcome,
    ChangeRequest,
    Coupon,
    CouponId,
    CouponState,
    Issued,
    LineRecord,
    Parked,
    ParkReason,
    Reason,
    Redrive,
    Rejected,
    RequestId,
    Switch,
    Ticket,
    Unprocessable,
    UserId,
    Verdict,
    are_ids,
    are_request_ids,
    is_id,
    is_request_id,
    make_issue_request,
    maker,
    printable,
)
from services.runtime import kafka
from services.runtime.fetching import LogRecord
from services.runtime.kafka import Message, Record, make_message, to_records

RECORD_BYTES_MAX = 65_536
"""Key, value and headers of a record of the line; larger ones are parked as TOO_LARGE."""
ISSUE_REQUESTED = "coupon.v1.CouponIssueRequestedEvent"
CHANGE_REQUESTED = "coupon.v1.CouponChangeRequestedEvent"
ISSUED = "coupon.v1.CouponIssuedEvent"
REJECTED = "coupon.v1.CouponRejectedEvent"
CHANGED = "coupon.v1.CouponChangedEvent"
CONTENT_TYPE = b"application/protobuf"
ISSUER_SOURCE = b"/firstcome/issuer"
LEDGER_SOURCE = b"/firstcome/ledger"
DLQ_SOURCE = b"/firstcome/dlq"
SPEC_VERSION = b"1.0"
_CE_TIME = "ce_time"

_PLAIN_SIZE_MAX = 8_192
"""Of a plain request's value and headers. A character is one to four bytes, so it is far below RECORD_BYTES_MAX."""
_AWAITED = kafka.AWAITED, b""
_ISSUE_REQUESTED = ISSUE_REQUESTED.encode()
_CHANGE_REQUESTED = CHANGE_REQUESTED.encode()
_REDRIVE_HEADERS = frozenset({kafka.REDRIVE_OF, kafka.REDRIVE_ORIGINAL_TIMESTAMP, kafka.REDRIVE_ATTEMPT})
_TELLING_HEADERS = _REDRIVE_HEADERS | {kafka.CE_TYPE, kafka.TRACEPARENT}
"""What a request's decoding looks at."""
_ACTIONS = {events_pb2.CouponChangeRequestedEvent.Action.Value(action.value): action for action in Action}
_TIMESTAMP_DIGITS_MAX = 15


# Times


def to_timestamp(time_us: int) -> Timestamp:
    """Microseconds since the epoch as protobuf's Timestamp."""
    seconds, micros = divmod(time_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def from_timestamp(timestamp: Timestamp) -> int:
    """Protobuf's Timestamp as microseconds since the epoch; what is below a microsecond is cut off."""
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1_000


@lru_cache(maxsize=4096)
def rfc3339(time_us: int) -> bytes:
    """The time as CloudEvents' `ce_time`; a batch of the log shares one time, hence the cache."""
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).isoformat(timespec="milliseconds").encode()


def parse_rfc3339(text: bytes) -> int:
    """`ce_time` as microseconds since the epoch; 0 where it is no time."""
    try:
        return round(datetime.fromisoformat(text.decode()).timestamp() * 1000) * 1000
    except ValueError:
        return 0


# Coupons


def coupon_message(coupon: Coupon, state: CouponState) -> coupon_pb2.Coupon:
    """The coupon as the contract shows it, in the state judged by the caller."""
    message = coupon_pb2.Coupon(
        name=f"coupons/{coupon.coupon_id}",
        display_name=coupon.display_name,
        total_quantity=coupon.total,
        issued_count=coupon.issued,
        remaining_count=coupon.remaining,
        state=state.value,
        etag=coupon.etag,
        create_time=to_timestamp(coupon.create_us),
        update_time=to_timestamp(coupon.update_us),
    )
    if coupon.start_us is not None:
        message.start_time.CopyFrom(to_timestamp(coupon.start_us))
    if coupon.end_us is not None:
        message.end_time.CopyFrom(to_timestamp(coupon.end_us))
    return message


# Writing to the line


def request_headers(
    ce_type: str, ce_id: str, ce_time: bytes, traceparent: bytes | None, *, awaited: bool = False
) -> list[tuple[str, bytes | None]]:
    """CloudEvents' headers of a record that the issuer puts on the line; `awaited`: somebody waits for its verdict."""
    headers = _headers(ce_type, ce_id.encode(), ISSUER_SOURCE, ce_time, traceparent)
    if awaited:
        headers.append(_AWAITED)
    return headers


Asked: TypeAlias = tuple[CouponId, UserId, RequestId, bytes | None, bool]
"""What a request's record is made of: ids, traceparent, and whether somebody waits for the verdict."""


def line_messages(asked: Iterable[Asked | Message], time_us: int) -> Iterator[Message]:
    """The records of requests that go into the line at that time; a change's is made already.

    Each is made when it is taken: what it consists of is still in the processor's nearest memory when it is sent, and
    when it is let go of.
    """
    fixed, ce_time = _fixed_headers(ISSUE_REQUESTED, ISSUER_SOURCE), (_CE_TIME, rfc3339(time_us))
    event = events_pb2.CouponIssueRequestedEvent()  # filled again for each: to make one would cost more
    for one in asked:
        if isinstance(one, Message):
            yield one
            continue
        coupon_id, user_id, request_id, traceparent, awaited = one
        event.coupon_id, event.user_id, event.request_id = coupon_id, user_id, request_id
        ce_id = f"{coupon_id}/{user_id}/{request_id}".encode()
        headers: list[tuple[str, bytes | None]] = [*fixed, (kafka.CE_ID, ce_id), ce_time]
        if traceparent:
            headers.append((kafka.TRACEPARENT, traceparent))
        if awaited:
            headers.append(_AWAITED)
        yield make_message((coupon_id.encode(), event.SerializeToString(), headers))


def corrected_headers(
    ce_type: str, ce_id: str, time_us: int, traceparent: bytes | None
) -> list[tuple[str, bytes | None]]:
    """CloudEvents' headers of a record that is put on the line in place of a dead letter's."""
    return _headers(ce_type, ce_id.encode(), DLQ_SOURCE, rfc3339(time_us), traceparent)


@lru_cache(maxsize=16)
def _fixed_headers(ce_type: str, source: bytes) -> tuple[tuple[str, bytes | None], ...]:
    return (
        ("ce_specversion", SPEC_VERSION),
        ("ce_type", ce_type.encode()),
        ("ce_source", source),
        ("content-type", CONTENT_TYPE),
    )


def _headers(
    ce_type: str, ce_id: bytes, source: bytes, ce_time: bytes, traceparent: bytes | None
) -> list[tuple[str, bytes | None]]:
    headers = [*_fixed_headers(ce_type, source), (kafka.CE_ID, ce_id), (_CE_TIME, ce_time)]
    if traceparent:
        headers.append((kafka.TRACEPARENT, traceparent))
    return headers


# Reading the line


def decode_all(records: Sequence[LogRecord]) -> tuple[list[LineRecord], dict[int, bytes]]:
    """What each record decodes to, and the traceparents of those that have one, by offset.

    Almost every record is a plain request. They are decoded in one loop here, which keeps nothing of the record, and
    their ids are checked together; all others go to `decode`, and to it alone falls what is wrong with them.
    """
    decoded: list[LineRecord] = []
    traces: dict[int, bytes] = {}
    user_ids: list[str] = []
    request_ids: list[str] = []
    event = events_pb2.CouponIssueRequestedEvent()  # filled again for each: to make one would cost more
    coupon_id, key = "", None
    for record in records:
        try:
            offset = record.offset
            value = record.value or b""
            size = len(value)
            ce_type = None
            redriven = False
            for name, header in record.headers:
                size += len(name) + len(header or b"")
                if name not in _TELLING_HEADERS:
                    continue
                if name == kafka.TRACEPARENT:
                    traces.setdefault(offset, header or b"")
                elif name != kafka.CE_TYPE:
                    redriven = True
                elif ce_type is None:
                    ce_type = header
            if ce_type == _ISSUE_REQUESTED and not redriven and size <= _PLAIN_SIZE_MAX:
                event.ParseFromString(value)
                user_id, request_id = event.user_id, event.request_id
                if event.coupon_id != coupon_id:
                    coupon_id, key = _coupon(event.coupon_id)
                if key is not None and key == record.key:
                    time_us = record.timestamp * 1000
                    decoded.append(make_issue_request((offset, time_us, coupon_id, user_id, request_id, None)))
                    user_ids.append(user_id)
                    request_ids.append(request_id)
                    continue
        except Exception:  # whatever it is, `decode` says it
            pass
        decoded += map(decode, to_records([record]))
    if not are_ids(user_ids) or not are_request_ids(request_ids):
        return [decode(record) for record in to_records(records)], traces
    return decoded, traces


def decode(record: Record) -> LineRecord:
    """The record as a value of the domain; one that can't be decoded or is impossible is `Unprocessable`."""
    try:
        return _decode(record)
    except Exception as error:  # an unexpected one on one record: park it, the retryable way
        lost = _unprocessable(record, ParkReason.INTERNAL, printable(f"{type(error).__name__}: {error}"))
        with contextlib.suppress(Exception):
            # As a release has them that can read the record, and finds it on the DLQ.
            coupon_id, user_id, request_id = ids_of(record.headers, record.value)
            return replace(lost, coupon_id=coupon_id, user_id=user_id, request_id=request_id)
        return lost


def _decode(record: Record) -> LineRecord:
    if (size := record.size()) > RECORD_BYTES_MAX:
        return _unprocessable(record, ParkReason.TOO_LARGE, f"{size} bytes where {RECORD_BYTES_MAX} are allowed")
    if not record.value:
        return _unprocessable(record, ParkReason.EMPTY, "the record has no value")
    ce_type = next((value for name, value in record.headers if name == kafka.CE_TYPE and value is not None), None)
    if ce_type == _ISSUE_REQUESTED:
        return _decode_issue(record, record.value)
    if ce_type == _CHANGE_REQUESTED:
        return _decode_change(record, record.value)
    return _unprocessable(record, ParkReason.WRONG_TYPE, f"header {kafka.CE_TYPE} names no message of the line")


def _coupon(coupon_id: str) -> tuple[str, bytes | None]:
    """The coupon's id and its record key, None for what is no id."""
    return _known_coupon(coupon_id) if len(coupon_id) <= ID_LENGTH_MAX else (coupon_id, None)


@lru_cache(maxsize=1024)
def _known_coupon(coupon_id: str) -> tuple[str, bytes | None]:
    """Cached, for a rush is about a few coupons; and so each has one id, which is looked up faster than equal ones."""
    return coupon_id, coupon_id.encode() if is_id(coupon_id) else None


def _decode_issue(record: Record, value: bytes) -> LineRecord:
    try:
        event = events_pb2.CouponIssueRequestedEvent.FromString(value)
        redrive = _redrive(record)
    except (DecodeError, ValueError):
        return _undecodable(record)
    coupon_id, user_id, request_id = event.coupon_id, event.user_id, event.request_id
    if not is_id(coupon_id) or not is_id(user_id) or not is_request_id(request_id):
        return _bad_ids(record, redrive, coupon_id=coupon_id, user_id=user_id, request_id=request_id)
    if record.key != coupon_id.encode():
        return _key_mismatch(record, coupon_id, user_id, request_id, redrive)
    return make_issue_request((record.offset, record.timestamp_ms * 1000, coupon_id, user_id, request_id, redrive))


def _decode_change(record: Record, value: bytes) -> LineRecord:
    try:
        event = events_pb2.CouponChangeRequestedEvent.FromString(value)
        redrive = _redrive(record)
    except (DecodeError, ValueError):
        return _undecodable(record)
    action = _ACTIONS.get(event.action)
    if action is None:
        return _undecodable(record)
    coupon_id, request_id = event.coupon_id, event.request_id
    if not (is_id(coupon_id) and is_request_id(request_id)):
        return _bad_ids(record, redrive, coupon_id=coupon_id, request_id=request_id)
    if record.key != coupon_id.encode():
        return _key_mismatch(record, coupon_id, None, request_id, redrive)
    return ChangeRequest(
        offset=record.offset,
        time_us=record.timestamp_ms * 1000,
        coupon_id=CouponId(coupon_id),
        request_id=RequestId(request_id),
        action=action,
        display_name=event.coupon.display_name,
        total=event.coupon.total_quantity,
        start_us=from_timestamp(event.coupon.start_time) if event.coupon.HasField("start_time") else None,
        end_us=from_timestamp(event.coupon.end_time) if event.coupon.HasField("end_time") else None,
        update_paths=tuple(event.update_paths),
        stock_delta=event.stock_delta,
        etag=event.etag,
        caller=event.caller,
        payload_hash=change_payload_hash(event),
        redrive=redrive,
    )


def change_payload_hash(event: events_pb2.CouponChangeRequestedEvent) -> bytes:
    """SHA-256 of what a change asks for; who asks is no part of it."""
    payload = events_pb2.CouponChangeRequestedEvent()
    payload.CopyFrom(event)
    payload.ClearField("caller")
    return hashlib.sha256(payload.SerializeToString(deterministic=True)).digest()


def _redrive(record: Record) -> Redrive | None:
    original, timestamp = record.header(kafka.REDRIVE_OF), record.header(kafka.REDRIVE_ORIGINAL_TIMESTAMP)
    if original is None and timestamp is None:
        return None
    ticket = Ticket.parse((original or b"").decode())
    digits = (timestamp or b"").decode()
    if ticket is None or not (digits.isascii() and digits.isdecimal()) or len(digits) > _TIMESTAMP_DIGITS_MAX:
        raise ValueError("redrive headers")
    return Redrive(ticket, int(digits) * 1000)


def _unprocessable(record: Record, reason: ParkReason, message: str) -> Unprocessable:
    try:
        redrive = _redrive(record)
    except ValueError:
        redrive = None
    return Unprocessable(record.offset, record.timestamp_ms * 1000, reason, message, redrive=redrive)


def _undecodable(record: Record) -> Unprocessable:
    return _unprocessable(record, ParkReason.UNDECODABLE, "value, action or redrive headers do not parse")


def _bad_ids(record: Record, redrive: Redrive | None, **ids: str) -> Unprocessable:
    missing = [name for name, text in ids.items() if not text]
    rules = {name: is_request_id if name == "request_id" else is_id for name in ids}
    kept = {name: text if rules[name](text) else None for name, text in ids.items()}
    if missing:
        reason, message = ParkReason.MISSING_FIELD, f"empty: {', '.join(missing)}"
    else:
        reason = ParkReason.BAD_ID
        message = f"against the id rule: {', '.join(name for name, text in kept.items() if text is None)}"
    return _with_ids(record, reason, message, kept["coupon_id"], kept.get("user_id"), kept["request_id"], redrive)


def _key_mismatch(
    record: Record, coupon_id: str, user_id: str | None, request_id: str, redrive: Redrive | None
) -> Unprocessable:
    message = "the record's key is not its coupon_id"
    return _with_ids(record, ParkReason.KEY_MISMATCH, message, coupon_id, user_id, request_id, redrive)


def _with_ids(
    record: Record,
    reason: ParkReason,
    message: str,
    coupon_id: str | None,
    user_id: str | None,
    request_id: str | None,
    redrive: Redrive | None,
) -> Unprocessable:
    return Unprocessable(
        record.offset,
        record.timestamp_ms * 1000,
        reason,
        message,
        None if coupon_id is None else CouponId(coupon_id),
        None if user_id is None else UserId(user_id),
        None if request_id is None else RequestId(request_id),
        redrive,
    )


# Outcomes


class Outcome(NamedTuple):
    """What is published of one verdict, apart from what the log record itself adds (id, trace)."""

    offset: int
    time_us: int
    key: bytes | None
    ce_type: str
    value: bytes


_make_outcome = maker(Outcome)


def outcome(partition: int, verdict: Verdict) -> Outcome:
    """The outcome event of a verdict."""
    ticket = f"{partition}-{verdict.offset}"
    if isinstance(verdict, Issued):
        ce_type = ISSUED
        value = events_pb2.CouponIssuedEvent(
            coupon_id=verdict.coupon_id,
            user_id=verdict.user_id,
            request_id=verdict.request_id,
            ticket=ticket,
            sequence=verdict.sequence,
            redrive_of=_text(verdict.redrive_of),
        ).SerializeToString()
    elif isinstance(verdict, Rejected):
        ce_type = REJECTED
        value = events_pb2.CouponRejectedEvent(
            coupon_id=verdict.coupon_id,
            user_id=verdict.user_id,
            request_id=verdict.request_id,
            ticket=ticket,
            reason=verdict.reason,
            issued_ticket=str(verdict.grant.ticket) if verdict.grant else "",
            issued_sequence=verdict.grant.sequence if verdict.grant else 0,
            redrive_of=_text(verdict.redrive_of),
        ).SerializeToString()
    elif isinstance(verdict, Parked):
        ce_type = REJECTED
        value = events_pb2.CouponRejectedEvent(
            coupon_id=verdict.coupon_id or "",
            user_id=verdict.user_id or "",
            request_id=verdict.request_id or "",
            ticket=ticket,
            reason=Reason.PARKED,
            redrive_of=_text(verdict.redrive_of),
        ).SerializeToString()
    else:
        ce_type, value = CHANGED, change_outcome(partition, verdict)
    key = verdict.coupon_id.encode() if verdict.coupon_id is not None else None
    return _make_outcome((verdict.offset, verdict.time_us, key, ce_type, value))


def change_outcome(partition: int, changed: Changed) -> bytes:
    """The CouponChangedEvent of a change, as it is stored and published."""
    told = changed.outcome
    return events_pb2.CouponChangedEvent(
        coupon_id=changed.coupon_id,
        request_id=changed.request_id,
        ticket=f"{partition}-{changed.offset}",
        reason=told.reason or "",
        coupon=coupon_message(told.coupon, told.state) if told.coupon and told.state else None,
    ).SerializeToString()


def parse_change_outcome(value: bytes) -> tuple[events_pb2.CouponChangedEvent, ChangeOutcome]:
    """A stored or published CouponChangedEvent, and the domain's view of it."""
    event = events_pb2.CouponChangedEvent.FromString(value)
    reason = Reason(event.reason) if event.reason else None
    if not event.HasField("coupon"):
        return event, ChangeOutcome(reason, None, None)
    message = event.coupon
    state = CouponState(coupon_pb2.Coupon.State.Name(message.state))
    etag = Ticket.parse(message.etag)
    coupon = Coupon(
        coupon_id=CouponId(event.coupon_id),
        partition=etag.partition if etag else -1,
        display_name=message.display_name,
        total=message.total_quantity,
        remaining=message.remaining_count,
        issued=message.issued_count,
        start_us=from_timestamp(message.start_time) if message.HasField("start_time") else None,
        end_us=from_timestamp(message.end_time) if message.HasField("end_time") else None,
        # A window that is not open hides the switch; whoever reads this as PAUSED or not asks the line in doubt.
        switch=Switch(state) if state in (CouponState.CLOSED, CouponState.PAUSED) else Switch.ACTIVE,
        etag=message.etag,
        create_us=from_timestamp(message.create_time),
        update_us=from_timestamp(message.update_time),
    )
    return event, ChangeOutcome(reason, coupon, state)


def outcome_message(line_topic: str, partition: int, told: Outcome, traceparent: bytes | None) -> Message:
    """The record of the outcomes topic; `ce_id` is that of the record that decided."""
    ce_id = f"{line_topic}/{partition}/{told.offset}".encode()
    headers = _headers(told.ce_type, ce_id, LEDGER_SOURCE, rfc3339(told.time_us), traceparent)
    return make_message((told.key, told.value, headers))


def outcome_messages(
    line_topic: str, partition: int, verdicts: Iterable[Verdict], traces: Mapping[int, bytes]
) -> Iterator[Message]:
    """As `outcome` and `outcome_message` make them; what grants have in common is made once, for there is one for
    almost every request. `traces`: the traceparents by offset."""
    fixed = _fixed_headers(ISSUED, LEDGER_SOURCE)
    ticket, ce_id = f"{partition}-", f"{line_topic}/{partition}/".encode()  # both before the offset
    event = events_pb2.CouponIssuedEvent()  # filled again for each: to make one would cost more
    last_us: int | None = None
    ce_time = _CE_TIME, b""
    last_coupon_id, key = "", b""
    for verdict in verdicts:
        traceparent = traces.get(verdict.offset) if traces else None
        if type(verdict) is not Issued:
            yield outcome_message(line_topic, partition, outcome(partition, verdict), traceparent)
            continue
        offset, time_us, coupon_id, event.user_id, event.request_id, event.sequence, redrive_of = verdict
        digits = str(offset)
        if coupon_id != last_coupon_id:
            event.coupon_id = last_coupon_id = coupon_id
            key = coupon_id.encode()
        event.ticket = ticket + digits
        event.redrive_of = "" if redrive_of is None else str(redrive_of)
        if time_us != last_us:
            last_us = time_us
            ce_time = _CE_TIME, rfc3339(time_us)
        headers: list[tuple[str, bytes | None]] = [*fixed, (kafka.CE_ID, ce_id + digits.encode()), ce_time]
        if traceparent:
            headers.append((kafka.TRACEPARENT, traceparent))
        yield make_message((key, event.SerializeToString(), headers))


# Dead letters


def dead_letter_message(line_topic: str, partition: int, record: Record, reason: ParkReason, message: str) -> Message:
    """The record of the DLQ topic: key, value and headers as they are on the line, and why beside them."""
    redriven = record.header(kafka.REDRIVE_OF) is not None
    first_failed_ms = (record.header(kafka.REDRIVE_ORIGINAL_TIMESTAMP) if redriven else None) or b""
    added = {
        kafka.DLQ_ORIGINAL_TOPIC: line_topic,
        kafka.DLQ_ORIGINAL_PARTITION: str(partition),
        kafka.DLQ_ORIGINAL_OFFSET: str(record.offset),
        kafka.DLQ_ORIGINAL_TIMESTAMP: str(record.timestamp_ms),
        kafka.DLQ_REASON: reason.value,
        kafka.DLQ_ERROR_MESSAGE: message,
        kafka.DLQ_ATTEMPT: str(_redrive_attempt(record) + 1),
        kafka.DLQ_FIRST_FAILED_AT: first_failed_ms.decode(errors="ignore") or str(record.timestamp_ms),
    }
    return Message(
        record.key, record.value, [*record.headers, *((name, text.encode()) for name, text in added.items())]
    )


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """A record of the DLQ topic taken apart. `headers` are those of the line."""

    failed: Ticket
    failed_timestamp_ms: int
    line_topic: str
    reason: ParkReason
    message: str
    redrive_of: Ticket | None
    redrive_original_timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def original(self) -> Ticket:
        """The ticket under which it is filed: a redrive's failure belongs to the record that failed first."""
        return self.redrive_of or self.failed

    @property
    def record_timestamp_ms(self) -> int:
        """When the original record came into the line, and so when it first failed."""
        if self.redrive_original_timestamp_ms is not None:
            return self.redrive_original_timestamp_ms
        return self.failed_timestamp_ms

    @property
    def original_headers(self) -> tuple[tuple[str, bytes | None], ...]:
        """The headers of the record that failed first: those that a redrive adds are not its own."""
        if self.redrive_of is None:
            return self.headers
        return tuple(header for header in self.headers if header[0] not in _REDRIVE_HEADERS)


_DLQ_HEADERS = frozenset(
    {
        kafka.DLQ_ORIGINAL_TOPIC,
        kafka.DLQ_ORIGINAL_PARTITION,
        kafka.DLQ_ORIGINAL_OFFSET,
        kafka.DLQ_ORIGINAL_TIMESTAMP,
        kafka.DLQ_REASON,
        kafka.DLQ_ERROR_MESSAGE,
        kafka.DLQ_ATTEMPT,
        kafka.DLQ_FIRST_FAILED_AT,
    }
)


def parse_dead_letter(record: Record) -> DeadLetterRecord | None:
    """The DLQ record taken apart, or None where it is none that the ledger writes."""
    # The last of a name counts: the ledger's stand behind whatever the line's record brought.
    added = {name: (value or b"").decode(errors="replace") for name, value in record.headers if name in _DLQ_HEADERS}
    try:
        failed = Ticket.parse(f"{added[kafka.DLQ_ORIGINAL_PARTITION]}-{added[kafka.DLQ_ORIGINAL_OFFSET]}")
        timestamp_ms = int(added[kafka.DLQ_ORIGINAL_TIMESTAMP])
        reason = ParkReason(added[kafka.DLQ_REASON])
        line_topic, message = added[kafka.DLQ_ORIGINAL_TOPIC], added[kafka.DLQ_ERROR_MESSAGE]
    except (KeyError, ValueError):
        return None
    if failed is None:
        return None
    try:
        redrive = _redrive(record)
    except ValueError:
        redrive = None
    return DeadLetterRecord(
        failed=failed,
        failed_timestamp_ms=timestamp_ms,
        line_topic=line_topic,
        reason=reason,
        message=message,
        redrive_of=redrive.original if redrive else None,
        redrive_original_timestamp_ms=redrive.original_time_us // 1000 if redrive else None,
        key=record.key,
        value=record.value,
        headers=record.headers[: len(record.headers) - len(_DLQ_HEADERS)],
    )


def ids_of(
    headers: Sequence[tuple[str, bytes | None]], value: bytes | None
) -> tuple[CouponId | None, UserId | None, RequestId | None]:
    """The ids in a dead letter's value, as far as it decodes and they pass the id rule."""
    ce_type = next((header[1] for header in headers if header[0] == kafka.CE_TYPE), None)
    event: events_pb2.CouponIssueRequestedEvent | events_pb2.CouponChangeRequestedEvent
    try:
        if ce_type == ISSUE_REQUESTED.encode():
            issue = events_pb2.CouponIssueRequestedEvent.FromString(value or b"")
            event, user_id = issue, issue.user_id
        elif ce_type == CHANGE_REQUESTED.encode():
            event, user_id = events_pb2.CouponChangeRequestedEvent.FromString(value or b""), ""
        else:
            return None, None, None
    except DecodeError:
        return None, None, None
    return (
        CouponId(event.coupon_id) if is_id(event.coupon_id) else None,
        UserId(user_id) if is_id(user_id) else None,
        RequestId(event.request_id) if is_request_id(event.request_id) else None,
    )


def fits_line(message: Message) -> bool:
    """Whether the ledger would take a record of this size, rather than park it as TOO_LARGE."""
    return Record(0, 0, message.key, message.value, tuple(message.headers)).size() <= RECORD_BYTES_MAX


def redrive_message(
    original: Ticket,
    original_timestamp_ms: int,
    attempt: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> Message:
    """A dead letter as a new record of the line: the same bytes, and whose redrive it is."""
    kept = [header for header in headers if header[0] not in _REDRIVE_HEADERS]
    return Message(
        key,
        value,
        [
            *kept,
            (kafka.REDRIVE_OF, str(original).encode()),
            (kafka.REDRIVE_ORIGINAL_TIMESTAMP, str(original_timestamp_ms).encode()),
            (kafka.REDRIVE_ATTEMPT, str(attempt).encode()),
        ],
    )


def _redrive_attempt(record: Record) -> int:
    digits = (record.header(kafka.REDRIVE_ATTEMPT) or b"").decode(errors="ignore")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 9 else 0


def _text(ticket: Ticket | None) -> str:
    return "" if ticket is None else str(ticket)
