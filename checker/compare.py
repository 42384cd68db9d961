"""One row of the tables against what the model expects of its record."""

from __future__ import annotations

from coupon.v1 import events_pb2
from google.protobuf.message import DecodeError

from checker.findings import Check, Findings
from checker.model import ExpectChanged, Expected, ExpectIssued, ExpectParked, ExpectRejected
from checker.outcomes import change_event, describe
from checker.records import ChangeRow, IssuedRow, Record, RejectedRow, Ticket, VerdictRow


def compare(findings: Findings, record: Record, expected: Expected, row: VerdictRow) -> None:
    """Adds a finding for each way in which the row is not as expected."""
    parked = isinstance(row, RejectedRow) and row.reason == "PARKED"
    if isinstance(expected, ExpectParked) and isinstance(row, RejectedRow) and parked:
        _compare_parked(findings, record, expected, row)
    elif isinstance(expected, ExpectParked):
        findings.add(Check.NOT_PARKED, f"{describe(row)}, expected PARKED {expected.reason}", ticket=row.ticket)
    elif parked and isinstance(row, RejectedRow):
        findings.add(Check.WRONGLY_PARKED, f"{row.detail}, expected {_words(expected)}", ticket=row.ticket)
    elif not _equal(record, expected, row):
        findings.add(Check.WRONG_VERDICT, f"{describe(row)}, expected {_words(expected)}", ticket=row.ticket)


def park_reason(row: RejectedRow) -> str:
    """The dead letter's reason, from the detail ``<REASON>: <message>`` of a PARKED row."""
    return (row.detail or "").partition(":")[0]


def _compare_parked(findings: Findings, record: Record, expected: ExpectParked, row: RejectedRow) -> None:
    reason = park_reason(row)
    if reason != expected.reason:
        findings.add(Check.PARK_REASON, f"parked as {row.detail!r}, expected {expected.reason}", ticket=row.ticket)
        return
    ids = (row.coupon_id, row.user_id, row.request_id)
    expected_ids = (expected.coupon_id, expected.user_id, expected.request_id)
    # Where nobody has to look for ids, those that are there must still be the right ones.
    fit = all(
        id_ == wanted or (id_ is None and not expected.ids_known) for id_, wanted in zip(ids, expected_ids, strict=True)
    )
    as_rejected = (row.issued_ticket, row.issued_sequence, row.redrive_of, row.accepted_us)
    if not fit or as_rejected != (None, None, _text(expected.redrive_of), record.timestamp_ms * 1000):
        findings.add(Check.PARKED_ROW, f"{row}, expected {expected}", ticket=row.ticket)


def _equal(record: Record, expected: Expected, row: VerdictRow) -> bool:
    accepted_us = record.timestamp_ms * 1000
    ticket = row.ticket
    if isinstance(expected, ExpectIssued):
        wanted: VerdictRow = IssuedRow(
            ticket,
            expected.coupon_id,
            expected.user_id,
            expected.request_id,
            expected.sequence,
            _text(expected.redrive_of),
            accepted_us,
            row.settled_us,
        )
    elif isinstance(expected, ExpectRejected):
        wanted = RejectedRow(
            ticket,
            expected.coupon_id,
            expected.user_id,
            expected.request_id,
            expected.reason,
            row.detail if isinstance(row, RejectedRow) else None,
            str(expected.grant.ticket) if expected.grant else None,
            expected.grant.sequence if expected.grant else None,
            _text(expected.redrive_of),
            accepted_us,
            row.settled_us,
        )
    elif isinstance(expected, ExpectChanged) and isinstance(row, ChangeRow):
        wanted = ChangeRow(
            ticket,
            expected.coupon_id,
            expected.request_id,
            expected.result,
            row.outcome,
            expected.caller,
            _text(expected.redrive_of),
            accepted_us,
            row.settled_us,
        )
        return row == wanted and _outcome_equal(ticket, expected, row.outcome)
    else:
        return False
    return row == wanted


def _outcome_equal(ticket: Ticket, expected: ExpectChanged, outcome: bytes) -> bool:
    stored = events_pb2.CouponChangedEvent()
    try:
        stored.ParseFromString(outcome)
    except DecodeError:
        return False
    return stored == change_event(ticket, expected)


def _words(expected: Expected) -> str:
    if isinstance(expected, ExpectIssued):
        return f"ISSUED #{expected.sequence} {expected.user_id} {expected.request_id}"
    if isinstance(expected, ExpectRejected):
        of = f" of {expected.grant.ticket} #{expected.grant.sequence}" if expected.grant else ""
        return f"{expected.reason}{of} {expected.user_id} {expected.request_id}"
    if isinstance(expected, ExpectChanged):
        return f"change {expected.result} with the outcome {expected.reason or 'APPLIED'} of {expected.coupon}"
    return f"PARKED {expected.reason}"


def _text(ticket: Ticket | None) -> str | None:
    return None if ticket is None else str(ticket)
