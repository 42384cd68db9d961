"""What a person sees: the rush live on stderr, the tables afterwards on stdout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from checker import Report
from demo.rush import Answers
from demo.tables import Sale

PLAIN_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A coupon's stock at the moment."""

    coupon_id: str
    issued: int
    total: int


@dataclass(frozen=True, slots=True)
class Moment:
    """The rush at one moment."""

    calls_planned: int
    answers: Answers
    settled: int
    bars: tuple[Bar, ...]
    elapsed_s: float

    def line(self) -> str:
        answers, refused = self.answers, sum(self.answers.refused.values())
        bars = ", ".join(f"{bar.coupon_id} {bar.issued}/{bar.total}" for bar in self.bars)
        return (
            f"demo: {self.elapsed_s:4.1f} s  {answers.calls:,} of {self.calls_planned:,} calls, "
            f"{answers.with_ticket:,} accepted, {refused:,} refused, {self.settled:,} settled; {bars}"
        )


class RushScreen(AbstractContextManager["RushScreen"]):
    """Shows moments: a live display on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._next_line_s = 0.0

    def show(self, moment: Moment, *, last: bool = False) -> None:
        if self._live is not None:
            self._live.update(_rendered(moment), refresh=True)
        elif last or time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + PLAIN_EVERY_S
            print(moment.line(), file=self._console.file, flush=True)

    def __enter__(self) -> RushScreen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def _rendered(moment: Moment) -> RenderableType:
    answers = moment.answers
    numbers = Table.grid(padding=(0, 3))
    refused = "  ".join(f"{reason} {count:,}" for reason, count in answers.refused.most_common()) or "nobody"
    again = "  ".join(f"{reason} {count:,}" for reason, count in answers.tried_again.most_common())
    for name, text in (
        ("calls", f"{answers.calls:,} of {moment.calls_planned:,}, {answers.calls - answers.answered:,} under way"),
        ("accepted", f"{answers.with_ticket:,}"),
        ("refused", refused),
        ("settled", f"{moment.settled:,}"),
        *((("tried again", again),) if again else ()),
        ("elapsed", f"{moment.elapsed_s:.1f} s"),
    ):
        numbers.add_row(Text(name, style="bold"), text)
    bars = Table.grid(padding=(0, 2))
    for bar in moment.bars:
        bars.add_row(
            bar.coupon_id, ProgressBar(total=bar.total, completed=bar.issued, width=40), f"{bar.issued:,}/{bar.total:,}"
        )
    return Group(numbers, bars)


def print_sales(console: Console, sales: Sequence[Sale], started_s: float) -> None:
    """A row for each coupon. `started_s`: when the first call left, in seconds since the epoch."""
    table = Table("coupon", title="Coupons", title_justify="left")
    for heading in ("total", "issued", "remaining", "first grant", "last grant", "sold out after"):
        table.add_column(heading, justify="right")
    for sale in sales:
        first, last = (
            f"{time_of_grant:%H:%M:%S.%f}"[:-3] if time_of_grant else "–"
            for time_of_grant in (sale.first_grant, sale.last_grant)
        )
        after = "–"
        if sale.last_grant is not None and sale.remaining == 0:
            after = f"{sale.last_grant.timestamp() - started_s:.2f} s"
        numbers = (f"{sale.total:,}", f"{sale.issued:,}", f"{sale.remaining:,}")
        table.add_row(f"{sale.display_name} ({sale.coupon_id})", *numbers, first, last, after)
    console.print(table)


def print_refusals(console: Console, answers: Answers) -> None:
    """A row for each reason that callers heard."""
    table = Table("reason", title="Refusals, as callers heard them", title_justify="left")
    for heading in ("calls", "from the line (with a ticket)", "at once (without)"):
        table.add_column(heading, justify="right")
    for reason, count in answers.refused.most_common():
        in_line = answers.refused_with_ticket[reason]
        table.add_row(reason, f"{count:,}", f"{in_line:,}", f"{count - in_line:,}")
    console.print(table)
    for reason, count in answers.tried_again.most_common():
        console.print(f"{count:,} times called again after {reason}")
    for said, count in answers.unanswered.most_common(5):
        console.print(f"{count:,} calls got no answer: {said}")


def print_verdicts(console: Console, report: Report) -> None:
    """What the line made of its records, then each promise, and what was found against a broken one."""
    counts = report.counts
    refused = ", ".join(f"{count:,} {reason}" for reason, count in counts.rejected.items())
    console.print(
        f"In the line: {counts.records:,} records: {counts.issued:,} issued, {refused or 'none refused'}, "
        f"{counts.parked:,} parked, {counts.changes:,} changes.\n"
    )
    table = Table(
        "promise", "verdict", "counted", title="Verification, from topics and tables alone", title_justify="left"
    )
    for result in report.results:
        verdict = "[green]held[/]" if result.held else f"[bold red]BROKEN[/] {result.broken_count:,} times"
        table.add_row(result.promise.value, verdict, result.counted)
    console.print(table)
    for result in report.broken:
        for finding in result.examples:
            console.print(Text(f"  {finding}", style="red"))
