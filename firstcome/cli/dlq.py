"""`firstcome dlq …`: records that could not be processed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from firstcome.cli.arguments import (
    CommentOption,
    CouponOption,
    LimitOption,
    RequestIdOption,
    TicketArgument,
    TicketsArgument,
    TimeOption,
    ticket_of,
)
from firstcome.cli.output import Output, clock, styled
from firstcome.cli.payload import ISSUE_REQUESTED, corrected, payload, readable, type_of
from firstcome.cli.session import Exit, Session, command
from firstcome.dead_letters import DeadLetter, DeadLetterFilter, DeadLetterState
from firstcome.errors import FirstcomeError

LIMIT_DEFAULT = 100
AT_ONCE = 16
"""So many dead letters are worked on at the same time."""
ERROR_CHARACTERS_MAX = 60
app = typer.Typer(help="Records that could not be processed: look, retry, discard.", no_args_is_help=True)

StateOption = Annotated[DeadLetterState | None, typer.Option(help="Only those in this state.", case_sensitive=False)]
ReasonOption = Annotated[str, typer.Option(help="Only those that failed for this reason, as UNDECODABLE.")]
UserOption = Annotated[str, typer.Option(help="Only those of this user.")]
EtagOption = Annotated[str, typer.Option(help="Do it only if it still has this etag.")]


def wanted(
    state: DeadLetterState | None,
    reason: str,
    coupon: str | None,
    user: str,
    after: datetime | None,
    before: datetime | None,
) -> DeadLetterFilter:
    """The filter that the options of `ls` and `replay redrive` make."""
    return DeadLetterFilter(state, reason.upper(), coupon or "", user, after, before)


@command(app, "ls", of_dlq=True)
async def ls(
    session: Session,
    state: StateOption = None,
    reason: ReasonOption = "",
    coupon: CouponOption = None,
    user: UserOption = "",
    after: TimeOption = None,
    before: TimeOption = None,
    limit: LimitOption = LIMIT_DEFAULT,
) -> Exit:
    """List dead letters by ticket; --after and --before concern the last failure."""
    chosen = wanted(state, reason, coupon, user, after, before)
    found = session.client.dead_letters.list(chosen, page_size=min(limit + 1, 1_000))
    await session.out.listing(
        found, limit, lambda letter: _line(session.out, letter), lambda letters: _list(session.out, letters)
    )
    return Exit.OK


@command(app, "show", of_dlq=True)
async def show(session: Session, ticket: TicketArgument) -> Exit:
    """Show a dead letter whole: why it failed, its payload and headers, and what was done about it."""
    _show(session.out, await session.client.dead_letters.get(ticket))
    return Exit.OK


@command(app, "retry", of_dlq=True)
async def retry(
    session: Session,
    tickets: TicketsArgument,
    correction: Annotated[
        str, typer.Option("--corrected", metavar="JSON", help="The record's fields as they should be, or @file.")
    ] = "",
    type_: Annotated[
        str, typer.Option("--type", help="The corrected record's message; without it, that of the original.")
    ] = "",
    comment: CommentOption = "",
    etag: EtagOption = "",
    request_id: RequestIdOption = None,
) -> Exit:
    """Send them through the line again now, as they were, or one corrected. What is left then is what they may get."""
    letters = session.client.dead_letters
    if type_ and not correction:
        raise typer.BadParameter("--type goes with --corrected")
    if len(tickets) > 1 and correction:
        raise typer.BadParameter("--corrected is for one dead letter")
    value, ce_type = b"", ""
    if correction:
        original = await letters.get(ticket_of(tickets[0]))
        value, ce_type = corrected(correction, type_ or type_of(original) or ISSUE_REQUESTED)

    def act(ticket: str) -> Awaitable[DeadLetter]:
        return letters.retry(
            ticket, corrected_value=value, corrected_type=ce_type, comment=comment, etag=etag, request_id=request_id
        )

    status = await _each(session, tickets, act, single=bool(etag or request_id))
    session.out.note("What was retried goes into the line now; `firstcome dlq show TICKET` shows what becomes of it.")
    return status


@command(app, "discard", of_dlq=True)
async def discard(
    session: Session,
    tickets: TicketsArgument,
    comment: CommentOption,
    etag: EtagOption = "",
    request_id: RequestIdOption = None,
) -> Exit:
    """Decide that nothing more is done about them; say why."""

    def act(ticket: str) -> Awaitable[DeadLetter]:
        return session.client.dead_letters.discard(ticket, comment, etag=etag, request_id=request_id)

    return await _each(session, tickets, act, single=bool(etag or request_id))


async def _each(
    session: Session, tickets: Sequence[str], act: Callable[[str], Awaitable[DeadLetter]], *, single: bool
) -> Exit:
    """Do it to each; one that is refused is told and does not stop the others."""
    if len(tickets) == 1:
        _show(session.out, await act(ticket_of(tickets[0])))
        return Exit.OK
    if single:
        raise typer.BadParameter("--etag and --request-id are for one dead letter")
    done: list[DeadLetter] = []
    status = Exit.OK
    for start in range(0, len(tickets), AT_ONCE):
        under_way = (act(ticket_of(ticket)) for ticket in tickets[start : start + AT_ONCE])
        for answer in await asyncio.gather(*under_way, return_exceptions=True):
            if isinstance(answer, DeadLetter):
                done.append(answer)
                if session.out.as_json:
                    _show(session.out, answer)
            elif isinstance(answer, FirstcomeError) and not answer.retryable:
                session.out.error(answer)
                status = Exit.REFUSED
            else:
                raise answer
    if not session.out.as_json:
        _list(session.out, done)
    return status


def _line(out: Output, letter: DeadLetter) -> None:
    fields = asdict(letter)
    for left_out in ("key", "value", "headers", "actions"):
        del fields[left_out]
    out.json_line(fields)


def _list(out: Output, letters: Sequence[DeadLetter]) -> None:
    table = Table("ticket", "state", "reason", "coupon", "user", box=None, pad_edge=False)
    table.add_column("failed", justify="right")
    for heading in ("last failure", "next try", "error"):
        table.add_column(heading)
    for one in letters:
        error = one.error_message
        table.add_row(
            one.ticket,
            styled(one.state),
            one.reason,
            Text(one.coupon_id or "–"),
            Text(one.user_id or "–"),
            f"{one.attempt_count:,}",
            clock(one.last_failed_time),
            clock(one.next_attempt_time) or "–",
            Text(error if len(error) <= ERROR_CHARACTERS_MAX else f"{error[: ERROR_CHARACTERS_MAX - 1]}…"),
        )
    out.console.print(table)


def _show(out: Output, letter: DeadLetter) -> None:
    decoded = payload(letter)
    if out.as_json:
        headers = {name: readable(value) for name, value in letter.headers.items()}
        out.json_line({**asdict(letter), "headers": headers, "payload": decoded})
        return
    fields: list[tuple[str, str | Text]] = [
        ("ticket", letter.ticket),
        ("state", styled(letter.state)),
        ("reason", letter.reason),
        ("error", letter.error_message),
        ("coupon", letter.coupon_id),
        ("user", letter.user_id),
        ("request id", letter.request_id),
        ("failed", f"{letter.attempt_count:,} times" if letter.attempt_count != 1 else "once"),
        ("in the line", clock(letter.record_time)),
        ("first failure", clock(letter.first_failed_time)),
        ("last failure", clock(letter.last_failed_time)),
        ("next try", clock(letter.next_attempt_time)),
        ("last redrive", letter.redrive_ticket),
        ("trace", letter.trace_id),
        ("etag", letter.etag),
        ("key", readable(letter.key)),
        ("payload", type_of(letter) if decoded is not None else f"does not decode: {readable(letter.value)}"),
        *((f"  {name}", _text(value)) for name, value in (decoded or {}).items()),
        ("headers", " "),
        *((f"  {name}", readable(value)) for name, value in sorted(letter.headers.items())),
        ("actions", " " if letter.actions else "none yet"),
        *((f"  {clock(one.time)}", f"{one.action} by {one.caller} {one.comment}") for one in letter.actions),
    ]
    out.fields(*(field for field in fields if field[1]))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
