"""What a person or a program reads: tables or JSON lines on stdout, errors on stderr."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from firstcome.cli.advice import advice
from firstcome.dead_letters import DeadLetterState
from firstcome.errors import FirstcomeError, InvalidRequest
from firstcome.replays import ReplayState
from firstcome.values import Coupon, CouponState, Issuance, IssuanceState

PLAIN_COLUMNS = 200
"""Without a terminal rich falls back to 80 columns, too few for the tables."""
_STYLES: Mapping[StrEnum, str] = {
    CouponState.ACTIVE: "green",
    CouponState.PAUSED: "yellow",
    CouponState.SOLD_OUT: "bold",
    CouponState.ENDED: "dim",
    CouponState.CLOSED: "dim",
    IssuanceState.ISSUED: "green",
    IssuanceState.REJECTED: "red",
    IssuanceState.PARKED: "yellow",
    DeadLetterState.RETRYING: "cyan",
    DeadLetterState.PARKED: "yellow",
    DeadLetterState.REDRIVEN: "cyan",
    DeadLetterState.RESOLVED: "green",
    DeadLetterState.DISCARDED: "dim",
    ReplayState.RUNNING: "cyan",
    ReplayState.SUCCEEDED: "green",
    ReplayState.FAILED: "red",
    ReplayState.CANCELLED: "yellow",
}

T = TypeVar("T")


class Output:
    """Where a command's results go. Texts of the server's are never read as markup."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = _console(stderr=False)
        self._errors = _console(stderr=True)

    async def listing(
        self, items: AsyncIterator[T], limit: int, line: Callable[[T], None], table: Callable[[Sequence[T]], None]
    ) -> None:
        """At most `limit` items: a `line` for each as it comes for a program, a `table` of them for a person."""
        shown: list[T] = []
        more = False
        async for one in items:
            if len(shown) == limit:
                more = True
                break
            shown.append(one)
            if self.as_json:
                line(one)
        if not self.as_json:
            table(shown)
        if more:
            self.note(f"There are more than these {limit:,}; --limit shows more.")

    def coupon(self, coupon: Coupon) -> None:
        if self.as_json:
            self.json_line(asdict(coupon))
            return
        self.fields(
            ("coupon", coupon.coupon_id),
            ("name", coupon.display_name),
            ("state", styled(coupon.state)),
            ("issued", f"{coupon.issued_count:,} of {coupon.total_quantity:,}, {coupon.remaining_count:,} left"),
            ("opens", clock(coupon.start_time) or "at once"),
            ("ends", clock(coupon.end_time) or "never"),
            ("created", clock(coupon.create_time)),
            ("changed", clock(coupon.update_time)),
            ("etag", coupon.etag),
        )

    def issuance(self, issuance: Issuance) -> None:
        if self.as_json:
            self.json_line(asdict(issuance))
            return
        fields: list[tuple[str, str | Text]] = [
            ("coupon", issuance.coupon_id),
            ("user", issuance.user_id),
            ("state", styled(issuance.state)),
            ("reason", issuance.reject_reason),
            ("sequence", f"{issuance.sequence:,}" if issuance.sequence else ""),
            ("ahead", f"{issuance.position_in_line:,}" if issuance.state is IssuanceState.ACCEPTED else ""),
            ("ticket", issuance.ticket),
            ("request id", issuance.request_id),
            ("accepted", clock(issuance.accept_time)),
            ("settled", clock(issuance.settle_time)),
        ]
        self.fields(*(field for field in fields if field[1]))

    def coupons(self, coupons: Sequence[Coupon]) -> None:
        table = Table("coupon", "name", "state", box=None, pad_edge=False)
        for heading in ("total", "issued", "left"):
            table.add_column(heading, justify="right")
        table.add_column("opens")
        table.add_column("ends")
        for one in coupons:
            numbers = (f"{count:,}" for count in (one.total_quantity, one.issued_count, one.remaining_count))
            table.add_row(
                Text(one.coupon_id),
                Text(one.display_name),
                styled(one.state),
                *numbers,
                clock(one.start_time) or "–",
                clock(one.end_time) or "–",
            )
        self.console.print(table)

    def issuances(self, issuances: Sequence[Issuance]) -> None:
        table = Table("coupon", "user", "state", box=None, pad_edge=False)
        table.add_column("sequence", justify="right")
        for heading in ("ticket", "accepted", "settled", "request id"):
            table.add_column(heading)
        for one in issuances:
            table.add_row(
                Text(one.coupon_id),
                Text(one.user_id),
                styled(one.state),
                f"{one.sequence:,}" if one.sequence else "",
                one.ticket,
                clock(one.accept_time),
                clock(one.settle_time),
                Text(one.request_id),
            )
        self.console.print(table)

    def note(self, text: str) -> None:
        """A remark for a person: nothing that a program needs."""
        if not self.as_json:
            self._errors.print(Text(text))

    def error(self, error: FirstcomeError) -> None:
        """What went wrong, where, and what to do."""
        told = advice(error)
        if self.as_json:
            fields = {
                "code": error.code.name,
                "reason": error.reason,
                "message": error.message,
                "metadata": dict(error.metadata),
                "violations": [asdict(violation) for violation in error.violations],
                "resource": error.resource,
                "retry_after_s": error.retry_after_s,
                "advice": told,
            }
            print(_dumped({"error": fields}), file=sys.stderr, flush=True)
            return
        # The message of a bad request is its violations in one line: they are easier to read one by one.
        is_list = isinstance(error, InvalidRequest) and bool(error.violations)
        head = "the request has bad fields" if is_list else error.message
        self._errors.print(Text.assemble((error.reason, "bold red"), ": ", head))
        for violation in error.violations if is_list else ():
            self._errors.print(Text.assemble("  ", (violation.subject, "bold"), f": {violation.description}"))
        for name, value in sorted(error.metadata.items()):
            self._errors.print(Text(f"  {name.replace('_', ' ')}: {value}", style="dim"))
        if told:
            self._errors.print(Text(f"→ {told}"))

    def json_line(self, fields: Mapping[str, Any]) -> None:
        """One object on a line of its own, at once."""
        print(_dumped(fields), flush=True)

    def fields(self, *fields: tuple[str, str | Text]) -> None:
        """Names beside values, for a person."""
        grid = Table.grid(padding=(0, 3))
        for name, value in fields:
            grid.add_row(Text(name, style="bold"), value if isinstance(value, Text) else Text(value))
        self.console.print(grid)


def styled(state: StrEnum) -> Text:
    """The state's name in its colour."""
    return Text(state.value, style=_STYLES.get(state, ""))


def clock(moment: datetime | None) -> str:
    """In the reader's own zone, to the millisecond."""
    if moment is None:
        return ""
    return moment.astimezone().isoformat(sep=" ", timespec="milliseconds" if moment.microsecond else "seconds")


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if console.is_terminal:
        return console
    return Console(stderr=stderr, highlight=False, width=PLAIN_COLUMNS)


def _dumped(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, default=_plain)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no JSON form")
