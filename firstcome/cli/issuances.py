"""`firstcome issue` and `firstcome issuances …`."""

from __future__ import annotations

from typing import Annotated

import typer

from firstcome.cli.arguments import CouponArgument, LimitOption, RequestIdOption, TicketOption, UserArgument, coupon_id
from firstcome.cli.session import Exit, Session, command
from firstcome.values import Issuance, IssuanceState

LIMIT_DEFAULT = 100
app = typer.Typer(help="What became of requests.", no_args_is_help=True)


def add_issue(root: typer.Typer) -> None:
    """Puts `issue` on the first level, where the product's main job belongs."""
    command(root, "issue")(issue)


async def issue(
    session: Session,
    coupon: CouponArgument,
    user: UserArgument,
    wait: Annotated[bool, typer.Option(help="Wait for the verdict as long as --timeout, or only take a place.")] = True,
    request_id: RequestIdOption = None,
) -> Exit:
    """Issue a coupon to a user. Exit status 0: issued (with --no-wait: in the line), 1: no, 3: no verdict yet."""
    client = session.client
    if not wait:
        session.out.issuance(await client.issue(coupon, user, request_id=request_id))
        return Exit.OK
    issuance = await client.issue_and_wait(coupon, user, patience_s=session.timeout_s, request_id=request_id)
    session.out.issuance(issuance)
    if issuance.state is IssuanceState.ACCEPTED:
        session.out.note(
            f"It is in the line; `firstcome issuances watch {coupon} {user} --ticket {issuance.ticket}` waits on."
        )
    return _status(issuance)


@command(app, "get")
async def get(session: Session, coupon: CouponArgument, user: UserArgument, ticket: TicketOption = "") -> Exit:
    """Show what became of a request by its ticket; without one, the user's coupon."""
    session.out.issuance(await session.client.get_issuance(coupon, user, ticket=ticket))
    return Exit.OK


@command(app, "ls")
async def ls(
    session: Session,
    coupon: Annotated[
        str | None, typer.Argument(metavar="[COUPON]", help="The grants of this coupon.", parser=coupon_id)
    ] = None,
    user: Annotated[str | None, typer.Option(help="The grants of this user.")] = None,
    limit: LimitOption = LIMIT_DEFAULT,
) -> Exit:
    """List grants: of a coupon by sequence, of a user by coupon."""
    if coupon is None and user is None:
        raise typer.BadParameter("name a coupon, or a user by --user")
    found = session.client.list_issuances(coupon, user, page_size=min(limit + 1, 1_000))
    await session.out.listing(found, limit, session.out.issuance, session.out.issuances)
    return Exit.OK


@command(app, "watch")
async def watch(session: Session, coupon: CouponArgument, user: UserArgument, ticket: TicketOption = "") -> Exit:
    """Show a request at each change until it is settled, however long that takes. Exit status 0 only if issued."""
    status = Exit.OK
    async for issuance in session.client.watch_issuance(coupon, user, ticket=ticket):
        if session.out.as_json or issuance.settled:
            session.out.issuance(issuance)
        else:
            session.out.console.print(f"{issuance.state}, {issuance.position_in_line:,} ahead")
        status = _status(issuance)
    return status


def _status(issuance: Issuance) -> Exit:
    if issuance.state is IssuanceState.ISSUED:
        return Exit.OK
    return Exit.UNAVAILABLE if issuance.state is IssuanceState.ACCEPTED else Exit.REFUSED
