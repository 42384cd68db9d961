"""`firstcome coupons …`."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated

import typer

from firstcome.cli.arguments import CouponArgument, LimitOption, RequestIdOption, moment
from firstcome.cli.session import Exit, Session, command
from firstcome.coupons import UNCHANGED
from firstcome.values import CouponState

LIMIT_DEFAULT = 1_000
app = typer.Typer(help="Create, look at and change coupons.", no_args_is_help=True)

StartOption = Annotated[
    datetime | None, typer.Option(metavar="TIME", help="When it opens; ISO 8601, local without offset.", parser=moment)
]
EndOption = Annotated[
    datetime | None, typer.Option(metavar="TIME", help="When it ends; ISO 8601, local without offset.", parser=moment)
]


@command(app, "create")
async def create(
    session: Session,
    coupon: CouponArgument,
    total: Annotated[int, typer.Option(min=1, help="How many there are to give.")],
    name: Annotated[str, typer.Option(help="What people see.")] = "",
    start: StartOption = None,
    end: EndOption = None,
    request_id: RequestIdOption = None,
) -> Exit:
    """Create a coupon; without times it is open at once and never ends."""
    session.out.coupon(
        await session.client.coupons.create(
            coupon, total, display_name=name, start_time=start, end_time=end, request_id=request_id
        )
    )
    return Exit.OK


@command(app, "get")
async def get(session: Session, coupon: CouponArgument) -> Exit:
    """Show one coupon."""
    session.out.coupon(await session.client.coupons.get(coupon))
    return Exit.OK


@command(app, "ls")
async def ls(
    session: Session,
    state: Annotated[CouponState | None, typer.Option(help="Only those in this state.", case_sensitive=False)] = None,
    limit: LimitOption = LIMIT_DEFAULT,
) -> Exit:
    """List coupons by id."""
    found = session.client.coupons.list(state=state, page_size=min(limit + 1, 1_000))
    await session.out.listing(found, limit, session.out.coupon, session.out.coupons)
    return Exit.OK


@command(app, "update")
async def update(
    session: Session,
    coupon: CouponArgument,
    name: Annotated[str | None, typer.Option(help="What people see.")] = None,
    start: StartOption = None,
    end: EndOption = None,
    no_start: Annotated[bool, typer.Option("--no-start", help="Open it at once.")] = False,
    no_end: Annotated[bool, typer.Option("--no-end", help="Let it never end.")] = False,
    etag: Annotated[str, typer.Option(help="Change it only if it still has this etag.")] = "",
    request_id: RequestIdOption = None,
) -> Exit:
    """Change the name or the times; what is not given stays."""
    if (start and no_start) or (end and no_end):
        raise typer.BadParameter("a time is either set or taken away")
    if name is None and not (start or end or no_start or no_end):
        raise typer.BadParameter("say what to change: --name, --start, --no-start, --end or --no-end")
    session.out.coupon(
        await session.client.coupons.update(
            coupon,
            display_name=UNCHANGED if name is None else name,
            start_time=None if no_start else start or UNCHANGED,
            end_time=None if no_end else end or UNCHANGED,
            etag=etag,
            request_id=request_id,
        )
    )
    return Exit.OK


@command(app, "adjust")
async def adjust(
    session: Session,
    coupon: CouponArgument,
    delta: Annotated[int, typer.Option("--by", help="+N adds to the stock, -N takes from what is left.")],
    request_id: RequestIdOption = None,
) -> Exit:
    """Add to the stock, or take from what is left."""
    session.out.coupon(await session.client.coupons.adjust_stock(coupon, delta, request_id=request_id))
    return Exit.OK


@command(app, "pause")
async def pause(session: Session, coupon: CouponArgument, request_id: RequestIdOption = None) -> Exit:
    """Grant nothing for now."""
    session.out.coupon(await session.client.coupons.pause(coupon, request_id=request_id))
    return Exit.OK


@command(app, "resume")
async def resume(session: Session, coupon: CouponArgument, request_id: RequestIdOption = None) -> Exit:
    """End a pause."""
    session.out.coupon(await session.client.coupons.resume(coupon, request_id=request_id))
    return Exit.OK


@command(app, "close")
async def close(
    session: Session,
    coupon: CouponArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    request_id: RequestIdOption = None,
) -> Exit:
    """End a coupon for good."""
    if not yes:
        if session.out.as_json or not sys.stdin.isatty():
            raise typer.BadParameter("closing is for good: confirm it with --yes")
        # Nothing else runs meanwhile, so blocking is as good as any waiting.
        if not typer.confirm(f"Close {coupon} for good?"):
            session.out.note("Nothing was changed.")
            return Exit.REFUSED
    session.out.coupon(await session.client.coupons.close(coupon, request_id=request_id))
    return Exit.OK
