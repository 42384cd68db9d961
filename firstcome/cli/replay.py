"""`firstcome replay …`: jobs on the log, with their progress live."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import asdict
from datetime import datetime
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from firstcome.cli.arguments import CouponOption, LimitOption, RequestIdOption, TimeOption
from firstcome.cli.dlq import ReasonOption, StateOption, UserOption, wanted
from firstcome.cli.output import Output, clock, styled
from firstcome.cli.session import Exit, Session, command
from firstcome.cli.watch import Rate
from firstcome.replays import Difference, LogRange, ReplayJob, ReplayState

LIMIT_DEFAULT = 100
LINE_EVERY_S = 1.0
"""Without a terminal a line of progress at most so often."""
app = typer.Typer(help="Work on the log as jobs: redrive, audit, republish.", no_args_is_help=True)


def job_id(text: str) -> str:
    """The id, also from the resource name that the API shows."""
    return text.removeprefix("replayJobs/")


def offsets(texts: Sequence[str] | None) -> Mapping[int, int]:
    """From PARTITION=OFFSET each. Raises typer.BadParameter."""
    found = {}
    for text in texts or ():
        partition, _, offset = text.partition("=")
        if not (partition.isdecimal() and offset.isdecimal()):
            raise typer.BadParameter(f"{text!r} is not <partition>=<offset>, as 2=1500")
        found[int(partition)] = int(offset)
    return found


JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", parser=job_id)]
RateOption = Annotated[int, typer.Option("--rate", min=0, help="So many a second at most; 0: as fast as it goes.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say how much there would be to do.")]
DetachOption = Annotated[bool, typer.Option("--detach", help="Start the job and return; `watch` shows it.")]
FromOption = Annotated[
    list[str] | None,
    typer.Option("--from-offset", metavar="PARTITION=OFFSET", help="The first, of a partition."),
]
ToOption = Annotated[
    list[str] | None,
    typer.Option("--to-offset", metavar="PARTITION=OFFSET", help="The one behind the last, of a partition."),
]


@command(app, "redrive", of_dlq=True)
async def redrive(
    session: Session,
    state: StateOption = None,
    reason: ReasonOption = "",
    coupon: CouponOption = None,
    user: UserOption = "",
    after: TimeOption = None,
    before: TimeOption = None,
    rate: RateOption = 0,
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    request_id: RequestIdOption = None,
) -> Exit:
    """Send the dead letters of a filter through the line again."""
    chosen = wanted(state, reason, coupon, user, after, before)
    job = await session.client.replays.redrive(chosen, max_per_second=rate, dry_run=dry_run, request_id=request_id)
    return await _started(session, job, detach)


@command(app, "audit", of_dlq=True)
async def audit(
    session: Session,
    after: TimeOption = None,
    before: TimeOption = None,
    from_offset: FromOption = None,
    to_offset: ToOption = None,
    coupon: CouponOption = None,
    rate: RateOption = 0,
    detach: DetachOption = False,
    request_id: RequestIdOption = None,
) -> Exit:
    """Compare the log with the tables. Exit status 0: they agree, 1: they differ."""
    part = _range(after, before, from_offset, to_offset, coupon)
    job = await session.client.replays.audit(part, max_per_second=rate, request_id=request_id)
    return await _started(session, job, detach)


@command(app, "republish", of_dlq=True)
async def republish(
    session: Session,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Where the outcomes go; it must be there.")],
    after: TimeOption = None,
    before: TimeOption = None,
    from_offset: FromOption = None,
    to_offset: ToOption = None,
    coupon: CouponOption = None,
    rate: RateOption = 0,
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    request_id: RequestIdOption = None,
) -> Exit:
    """Publish outcomes again, to a topic of their own, for a new consumer."""
    part = _range(after, before, from_offset, to_offset, coupon)
    job = await session.client.replays.republish(
        topic, part, max_per_second=rate, dry_run=dry_run, request_id=request_id
    )
    return await _started(session, job, detach)


@command(app, "ls", of_dlq=True)
async def ls(session: Session, limit: LimitOption = LIMIT_DEFAULT) -> Exit:
    """List jobs."""
    found = session.client.replays.list(page_size=min(limit + 1, 1_000))
    await session.out.listing(
        found, limit, lambda job: session.out.json_line(asdict(job)), lambda jobs: _list(session.out, jobs)
    )
    return Exit.OK


@command(app, "show", of_dlq=True)
async def show(session: Session, job: JobArgument) -> Exit:
    """Show a job, and the differences that it found."""
    _show(session.out, await session.client.replays.get(job))
    return Exit.OK


@command(app, "cancel", of_dlq=True)
async def cancel(session: Session, job: JobArgument) -> Exit:
    """Stop a job where it is; what is done stays done."""
    _show(session.out, await session.client.replays.cancel(job))
    return Exit.OK


@command(app, "watch", of_dlq=True)
async def watch(session: Session, job: JobArgument) -> Exit:
    """Show a job's progress live until it has ended; Ctrl-C ends the watch, not the job."""
    return await _watch(session, job)


class Screen(AbstractContextManager["Screen"]):
    """Shows a job's steps: a bar on a terminal, elsewhere a line now and then, or JSON a line."""

    def __init__(self, out: Output) -> None:
        self._out = out
        is_live = out.console.is_terminal and not out.as_json
        self._live = Live(console=out.console, auto_refresh=False, transient=True) if is_live else None
        self._rate = Rate()
        self._told_s = float("-inf")

    def show(self, job: ReplayJob) -> None:
        now_s = time.monotonic()
        if job.state is ReplayState.RUNNING:
            self._rate.add(now_s, job.done_count)
        if self._live is not None:
            self._live.update(self._rendered(job), refresh=True)
        elif self._out.as_json:
            self._out.json_line(asdict(job))
        elif not job.ended and now_s - self._told_s >= LINE_EVERY_S:
            self._told_s = now_s
            print(
                f"{job.kind} {job.state}: {_progress(job)}{self._speed(job)}", file=self._out.console.file, flush=True
            )

    def _speed(self, job: ReplayJob) -> str:
        if not self._rate.per_s or job.ended:
            return ""
        left = (job.matched_count - job.done_count) / self._rate.per_s
        return f", {self._rate.per_s:,.0f} a second" + (f", {left:,.0f} s left" if left > 0 else "")

    def _rendered(self, job: ReplayJob) -> RenderableType:
        bar = Table.grid(padding=(0, 2))
        done = ProgressBar(total=max(1, job.matched_count), completed=job.done_count, width=40)
        bar.add_row(Text(job.kind.value), styled(job.state), done)
        return Group(bar, Text(_progress(job) + self._speed(job)))

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


async def _started(session: Session, job: ReplayJob, detach: bool) -> Exit:
    if detach:
        _show(session.out, job)
        return Exit.OK
    session.out.note(f"Job {job.job_id}; Ctrl-C leaves it running, `firstcome replay cancel {job.job_id}` stops it.")
    return await _watch(session, job.job_id)


async def _watch(session: Session, job: str) -> Exit:
    last: ReplayJob | None = None
    with Screen(session.out) as screen:
        async with aclosing(session.client.replays.watch(job)) as steps:
            async for last in steps:
                screen.show(last)
    if last is None:
        return Exit.UNAVAILABLE
    if not session.out.as_json:
        _show(session.out, last)
    return Exit.OK if last.state is ReplayState.SUCCEEDED and not last.difference_count else Exit.REFUSED


def _range(
    after: datetime | None,
    before: datetime | None,
    from_offset: Sequence[str] | None,
    to_offset: Sequence[str] | None,
    coupon: str | None,
) -> LogRange | None:
    part = LogRange(after, before, offsets(from_offset), offsets(to_offset), coupon or "")
    return part if part != LogRange() else None


def _progress(job: ReplayJob) -> str:
    parts = [f"{job.done_count:,} of {job.matched_count:,}"]
    if job.failed_count:
        parts.append(f"failed: {job.failed_count:,}")
    if job.difference_count:
        parts.append(f"differences: {job.difference_count:,}")
    return ", ".join(parts)


def _list(out: Output, jobs: Sequence[ReplayJob]) -> None:
    table = Table("job", "kind", "state", "progress", "created", "ended", "by", box=None, pad_edge=False)
    for one in jobs:
        kind = f"{one.kind.value} (dry run)" if one.dry_run else one.kind.value
        times = clock(one.create_time), clock(one.end_time) or "–"
        table.add_row(one.job_id, kind, styled(one.state), _progress(one), *times, Text(one.caller))
    out.console.print(table)


def _show(out: Output, job: ReplayJob) -> None:
    if out.as_json:
        out.json_line(asdict(job))
        return
    fields: list[tuple[str, str | Text]] = [
        ("job", job.job_id),
        ("kind", f"{job.kind.value} (dry run)" if job.dry_run else job.kind.value),
        ("state", styled(job.state)),
        ("progress", _progress(job)),
        ("to topic", job.target_topic),
        ("at most", f"{job.max_per_second:,} a second" if job.max_per_second else ""),
        ("error", job.error),
        ("created", clock(job.create_time)),
        ("ended", clock(job.end_time)),
        ("by", job.caller),
    ]
    out.fields(*(field for field in fields if field[1]))
    if job.differences:
        _differences(out, job.differences, job.difference_count)


def _differences(out: Output, differences: Sequence[Difference], count: int) -> None:
    table = Table("ticket", "coupon", "user", "by the log", "in the tables", box=None, pad_edge=False)
    for one in differences:
        table.add_row(*(Text(text) for text in (one.ticket, one.coupon_id, one.user_id, one.expected, one.found)))
    out.console.print(table)
    if count > len(differences):
        out.note(f"The first {len(differences):,} of {count:,} differences.")
