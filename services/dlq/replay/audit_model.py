"""The sequential model of one partition: what the log alone makes of each record, and where the rows say otherwise.

The model's memory of grants is the table itself, as far as it has been checked. Everything before the present offset
has been compared row by row, so a row there is the model's own verdict, and where it is not, `_corrected` has what the
model says instead. So the memory that an audit needs grows with what is wrong, not with what was issued.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from services.dlq.replay.audit_rows import CHANGED, COLUMNS, ISSUED, REJECTED, Row, Rows
from services.domain.decide import decide
from services.domain.model import (
    TIME_US_MAX,
    TIME_US_MIN,
    Changed,
    ChangeRequest,
    Coupon,
    CouponId,
    Grant,
    Issued,
    IssueRequest,
    LineRecord,
    LineState,
    Parked,
    PastChange,
    Reason,
    Rejected,
    RequestId,
    Ticket,
    UserId,
    Verdict,
    printable,
)
from services.runtime import wire
from services.runtime.kafka import home_partition

NO_ROW = "no row"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXT_BYTES_MAX = 512
"""Of what was expected or found."""
_USER = {table: columns.index("user_id") for table, columns in COLUMNS.items() if "user_id" in columns}
_COUPON = {table: columns.index("coupon_id") for table, columns in COLUMNS.items()}

_COUPON_COLUMNS = {
    "partition": "topic_partition",
    "display_name": "display_name",
    "total": "total",
    "remaining": "remaining",
    "issued": "issued_count",
    "start_us": "start_time",
    "end_us": "end_time",
    "switch": "state",
    "etag": "etag",
    "create_us": "create_time",
    "update_us": "update_time",
}
"""The attributes of a coupon as its row has them."""

Key = tuple[CouponId, UserId]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the log and the tables disagree. `ticket` is empty where no record is concerned."""

    ticket: Ticket | None
    coupon_id: str
    user_id: str
    expected: str
    found: str


class PartitionModel:
    """One partition from its first record on. For each piece of the log: `unknown`, `lookups`, then `compare`."""

    def __init__(self, partition: int, partition_count: int) -> None:
        self._partition = partition
        self._partition_count = partition_count
        self._coupons: dict[CouponId, Coupon] = {}
        self._changes: dict[tuple[CouponId, RequestId], PastChange] = {}
        self._redriven: dict[Ticket, Grant | None] = {}
        self._corrected: dict[Key, Grant | None] = {}

    @property
    def corrected_count(self) -> int:
        """For how many users the table is no memory."""
        return len(self._corrected)

    def unknown(self, records: Iterable[LineRecord]) -> list[CouponId]:
        """Coupons that are asked for, would belong here, and were not created here: they may belong elsewhere."""
        asked = {r.coupon_id for r in records if isinstance(r, IssueRequest | ChangeRequest)}
        return [c for c in asked if c not in self._coupons and self._home(c) == self._partition]

    def lookups(self, records: Iterable[LineRecord], rows: Rows) -> list[Key]:
        """Whose earlier grants decide: not of those who have their only row in this very piece."""
        user, coupon = _USER[ISSUED], _COUPON[ISSUED]
        granted = {(row[coupon], row[user]) for row in rows.of[ISSUED]}
        asked = {(r[2], r[3]) for r in records if isinstance(r, IssueRequest)}  # coupon_id, user_id
        return list((asked - granted).difference(self._corrected))

    def compare(
        self, records: Sequence[LineRecord], rows: Rows, earlier: Mapping[Key, Grant], elsewhere: frozenset[CouponId]
    ) -> list[Difference]:
        """Settle the records and say where the rows differ. `earlier`: the grants that `lookups` asked for."""
        verdicts = self._settle(records, earlier, elsewhere)
        expected = expected_rows(self._partition, verdicts)
        wrong = {table for table, found in rows.of.items() if list(found) != expected[table]}
        return self._differences(verdicts, expected, rows) if wrong else []

    def coupon_differences(self, found: Mapping[CouponId, Coupon]) -> list[Difference]:
        """Where the coupons' rows are not as the model leaves them behind the last record."""
        differences = []
        for coupon_id in sorted(self._coupons.keys() | found.keys()):
            model, row = self._coupons.get(coupon_id), found.get(coupon_id)
            if model != row:
                ticket = Ticket.parse(model.etag) if model is not None else None
                told = _coupon_texts(model, row)
                differences.append(Difference(ticket, coupon_id, "", *told))
        return differences

    def _settle(
        self, records: Sequence[LineRecord], earlier: Mapping[Key, Grant], elsewhere: frozenset[CouponId]
    ) -> Sequence[Verdict]:
        requests = [r for r in records if isinstance(r, IssueRequest)]
        changes = [r for r in records if isinstance(r, ChangeRequest)]
        asked = {r[2] for r in requests} | {c.coupon_id for c in changes}
        foreign = {c for c in asked if c not in self._coupons and (c in elsewhere or self._home(c) != self._partition)}
        state = LineState(
            self._partition,
            {c: self._coupons[c] for c in asked if c in self._coupons},
            frozenset(foreign),
            {**earlier, **self._known_better(requests)} if self._corrected else earlier,
            {k: self._changes[k] for c in changes if (k := (c.coupon_id, c.request_id)) in self._changes},
            self._redriven,
        )
        decision = decide(state, records)
        for coupon in decision.coupons:
            self._coupons[coupon.coupon_id] = coupon
        if changes:
            self._remember_changes(decision.verdicts)
        if any(r.redrive is not None for r in requests):
            self._remember_redriven(decision.verdicts)
        return decision.verdicts

    def _known_better(self, requests: Iterable[IssueRequest]) -> dict[Key, Grant]:
        keys = {(r.coupon_id, r.user_id) for r in requests}
        return {k: grant for k in keys if (grant := self._corrected.get(k)) is not None}

    def _remember_changes(self, verdicts: Iterable[Verdict]) -> None:
        for v in verdicts:
            if isinstance(v, Changed) and not v.repeated:
                self._changes[v.coupon_id, v.request_id] = PastChange(v.payload_hash, v.outcome)

    def _remember_redriven(self, verdicts: Iterable[Verdict]) -> None:
        for v in verdicts:
            if isinstance(v, Issued) and v.redrive_of is not None:
                self._redriven.setdefault(v.redrive_of, self._grant(v))
            elif isinstance(v, Rejected) and v.redrive_of is not None:
                self._redriven.setdefault(v.redrive_of, v.grant)

    def _differences(
        self, verdicts: Sequence[Verdict], expected: Mapping[str, Sequence[Row]], rows: Rows
    ) -> list[Difference]:
        wanted = {row[0]: (table, row) for table, found in expected.items() for row in found}
        found_at: dict[int, list[tuple[str, Row]]] = {}
        for table, found in rows.of.items():
            for row in found:
                found_at.setdefault(row[0], []).append((table, tuple(row)))
        differences: list[Difference] = []
        false: list[Row] = []
        missing: set[int] = set()
        for offset in sorted(wanted.keys() | found_at.keys()):
            want, have = wanted.get(offset), found_at.get(offset, [])
            if have == ([want] if want else []):
                continue
            missing.add(offset)
            false += [row for table, row in have if table == ISSUED]
            differences += _at_ticket(Ticket(self._partition, offset), want, have)
        self._correct(verdicts, missing, false)
        return differences

    def _correct(self, verdicts: Iterable[Verdict], missing: set[int], false: Iterable[Row]) -> None:
        """From now on the table is no memory of these."""
        for row in false:
            self._corrected.setdefault((row[_COUPON[ISSUED]], row[_USER[ISSUED]]), None)
        for v in verdicts:
            if isinstance(v, Issued) and v.offset in missing:
                self._corrected[v.coupon_id, v.user_id] = self._grant(v)

    def _grant(self, issued: Issued) -> Grant:
        return Grant(issued.request_id, issued.sequence, Ticket(self._partition, issued.offset))

    def _home(self, coupon_id: CouponId) -> int:
        return home_partition(coupon_id.encode(), self._partition_count)


def stray(table: str, ticket: Ticket, row: Row) -> Difference:
    """A row where nothing was settled."""
    (difference,) = _at_ticket(ticket, None, [(table, row)])
    return difference


def expected_rows(partition: int, verdicts: Sequence[Verdict]) -> dict[str, list[Row]]:
    """The rows that the verdicts make, as COLUMNS has them."""
    issued = [
        (o, user_id, coupon_id, request_id, sequence, _text(redrive_of), time_us)
        for o, time_us, coupon_id, user_id, request_id, sequence, redrive_of in _of(Issued, verdicts)
    ]
    rejected: list[Row] = []
    for v in verdicts:
        if isinstance(v, Rejected):
            repeats = (str(v.grant.ticket), v.grant.sequence) if v.grant else (None, None)
            told: Row = (v.reason, None, *repeats)
        elif isinstance(v, Parked):
            told = (Reason.PARKED, f"{v.reason}: {v.message}", None, None)
        else:
            continue
        ids = v.coupon_id, v.user_id, v.request_id
        rejected.append((v.offset, *ids, *told, _text(v.redrive_of), v.time_us))
    changed = [
        (
            v.offset,
            v.coupon_id,
            v.request_id,
            v.payload_hash,
            Reason.REPEATED if v.repeated else (v.outcome.reason or "APPLIED"),
            wire.change_outcome(partition, v),
            v.caller,
            _text(v.redrive_of),
            v.time_us,
        )
        for v in _of(Changed, verdicts)
    ]
    return {ISSUED: issued, REJECTED: rejected, CHANGED: changed}


def _of(kind: type[Any], verdicts: Iterable[Verdict]) -> list[Any]:
    return [v for v in verdicts if isinstance(v, kind)]


def _at_ticket(ticket: Ticket, want: tuple[str, Row] | None, have: Sequence[tuple[str, Row]]) -> list[Difference]:
    """What is wrong at one ticket: the columns that differ, or whole rows where one is missing or too many."""
    same = next((row for table, row in have if want is not None and table == want[0]), None)
    others = [(table, row) for table, row in have if want is None or table != want[0]]
    differences = []
    if want is not None and same is not None and same != want[1]:
        at = [i for i, (a, b) in enumerate(zip(want[1], same, strict=True)) if a != b]
        differences.append(_difference(ticket, want, _row_text(*want, at), _row_text(want[0], same, at)))
    if want is not None and same is None:
        other = others.pop(0) if others else None
        differences.append(_difference(ticket, want, _row_text(*want), _row_text(*other) if other else NO_ROW))
    differences += [_difference(ticket, extra, NO_ROW, _row_text(*extra)) for extra in others]
    return differences


def _difference(ticket: Ticket, of: tuple[str, Row], expected: str, found: str) -> Difference:
    table, row = of
    user_id = row[_USER[table]] if table in _USER else None
    return Difference(ticket, row[_COUPON[table]] or "", user_id or "", expected, found)


def _row_text(table: str, row: Row, columns: Sequence[int] | None = None) -> str:
    """`<table>: <column>=<value> …`, of these columns, or of all that have a value but the ticket."""
    at = [i for i in range(1, len(row)) if row[i] is not None] if columns is None else columns
    told = " ".join(_told(COLUMNS[table][i], row[i]) for i in at)
    return printable(f"{table}: {told}", TEXT_BYTES_MAX)


def _told(column: str, value: object) -> str:
    """`<column>=<value>`, times as people read them."""
    if isinstance(value, bytes):
        text = value.hex()
    elif isinstance(value, int) and column.endswith(("_at", "_time")) and TIME_US_MIN <= value <= TIME_US_MAX:
        text = (_EPOCH + timedelta(microseconds=value)).isoformat()
    else:
        text = "NULL" if value is None else str(value)
    return f"{column}={text}"


def _coupon_texts(model: Coupon | None, row: Coupon | None) -> tuple[str, str]:
    differing = [
        name for name in _COUPON_COLUMNS if model is None or row is None or getattr(model, name) != getattr(row, name)
    ]

    def text(coupon: Coupon | None) -> str:
        if coupon is None:
            return NO_ROW
        told = " ".join(_told(_COUPON_COLUMNS[name], getattr(coupon, name)) for name in differing)
        return printable(f"coupon: {told}", TEXT_BYTES_MAX)

    return text(model), text(row)


def _text(ticket: Ticket | None) -> str | None:
    return None if ticket is None else str(ticket)
