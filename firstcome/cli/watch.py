"""`firstcome watch COUPON`: the counts live."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from firstcome.cli.arguments import CouponArgument
from firstcome.cli.output import Output, clock, styled
from firstcome.cli.session import Exit, Session, command
from firstcome.errors import FirstcomeError
from firstcome.values import Coupon, CouponState

INTERVAL_S = 0.5
RATE_WINDOW_S = 5.0
AWAY_S_MAX = 60.0
"""So long without an answer, and the watch gives up."""
FINAL = frozenset({CouponState.ENDED, CouponState.CLOSED})


class Rate:
    """Grants a second over the last few seconds."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, issued: int) -> None:
        self._seen.append((now_s, issued))
        # One look from before the window stays, so that the rate is over all of it.
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - self._window_s:
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """0 until there are two looks."""
        if len(self._seen) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return max(0, last - first) / (last_s - first_s) if last_s > first_s else 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A coupon as it was last seen. `away` says since when, in s, and why there has been no answer."""

    coupon: Coupon
    issued_per_s: float
    away: str = ""

    def line(self) -> str:
        coupon = self.coupon
        return (
            f"{coupon.coupon_id} {coupon.state}: {coupon.issued_count:,} of {coupon.total_quantity:,} issued, "
            f"{coupon.remaining_count:,} left, {self.issued_per_s:,.0f}/s{self.away and '; ' + self.away}"
        )


class Screen(AbstractContextManager["Screen"]):
    """Shows moments: live on a terminal, elsewhere a line when something has changed, or JSON a line."""

    def __init__(self, out: Output) -> None:
        self._out = out
        is_live = out.console.is_terminal and not out.as_json
        self._live = Live(console=out.console, auto_refresh=False) if is_live else None
        self._last = ""

    def show(self, moment: Moment) -> None:
        if self._live is not None:
            self._live.update(_rendered(moment), refresh=True)
        elif self._out.as_json:
            fields = {**asdict(moment.coupon), "issued_per_s": round(moment.issued_per_s, 1)}
            if not moment.away:
                self._out.json_line(fields)
        elif (line := moment.line()) != self._last:
            self._last = line
            print(line, file=self._out.console.file, flush=True)

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def add_watch(root: typer.Typer) -> None:
    """Puts `watch` on the first level."""
    command(root, "watch", until_ctrl_c=True)(watch)


async def watch(
    session: Session,
    coupon: CouponArgument,
    until_sold_out: Annotated[
        bool, typer.Option("--until-sold-out", help="End when it is sold out (status 0), or can never be (status 1).")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between looks.")] = INTERVAL_S,
) -> Exit:
    """Show a coupon's counts live; Ctrl-C ends it."""
    rate = Rate()
    last: Moment | None = None
    answered_s = time.monotonic()
    with Screen(session.out) as screen:
        while True:
            try:
                seen = await session.client.coupons.get(coupon)
            except FirstcomeError as error:
                away_s = time.monotonic() - answered_s
                if last is None or not error.retryable or away_s > AWAY_S_MAX:
                    raise
                screen.show(Moment(last.coupon, last.issued_per_s, f"no answer for {away_s:.0f} s ({error.reason})"))
            else:
                answered_s = time.monotonic()
                rate.add(answered_s, seen.issued_count)
                last = Moment(seen, rate.per_s)
                screen.show(last)
                if until_sold_out and seen.remaining_count == 0:
                    return Exit.OK
                if until_sold_out and seen.state in FINAL:
                    session.out.note(f"It is {seen.state} with {seen.remaining_count:,} left.")
                    return Exit.REFUSED
            await asyncio.sleep(interval)


def _rendered(moment: Moment) -> RenderableType:
    coupon = moment.coupon
    grid = Table.grid(padding=(0, 3))
    issued = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, coupon.total_quantity), completed=coupon.issued_count, width=40)
    issued.add_row(bar, f"{coupon.issued_count:,} of {coupon.total_quantity:,}")
    rate = f"{moment.issued_per_s:,.1f} a second"
    if moment.issued_per_s > 0 and coupon.remaining_count:
        rate += f", sold out in {coupon.remaining_count / moment.issued_per_s:,.0f} s at this rate"
    rows: list[tuple[str, RenderableType]] = [
        ("coupon", Text(f"{coupon.coupon_id}  {coupon.display_name}")),
        ("state", styled(coupon.state)),
        ("issued", issued),
        ("remaining", f"{coupon.remaining_count:,}"),
        ("rate", rate),
    ]
    if coupon.state is CouponState.SCHEDULED:
        rows.append(("opens", clock(coupon.start_time)))
    if coupon.end_time is not None:
        rows.append(("ends", clock(coupon.end_time)))
    for name, value in rows:
        grid.add_row(Text(name, style="bold"), value)
    return Group(grid, Text(moment.away, style="yellow")) if moment.away else grid
