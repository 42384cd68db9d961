"""Arguments that several commands have."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer


def coupon_id(text: str) -> str:
    """The id, also from the resource name that the API shows."""
    return text.removeprefix("coupons/")


def moment(text: str) -> datetime:
    """ISO 8601; without an offset it is local time, as on the operator's clock."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{text!r} is no time; write it as 2026-12-24T18:00 (local time) or 2026-12-24T18:00:00Z"
        ) from error


CouponArgument = Annotated[str, typer.Argument(metavar="COUPON", help="The coupon's id.", parser=coupon_id)]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's id.")]
TicketOption = Annotated[str, typer.Option(help="The request's ticket, <partition>-<offset>.")]
RequestIdOption = Annotated[
    str | None, typer.Option(help="A UUID; repeating a command with the same one is harmless. Made if not given.")
]
LimitOption = Annotated[int, typer.Option(min=1, help="How many at most.")]


def ticket_of(text: str) -> str:
    """The ticket, also from the resource name that the API shows."""
    return text.removeprefix("deadLetters/")


TicketArgument = Annotated[
    str, typer.Argument(metavar="TICKET", help="Of the record that failed, <partition>-<offset>.", parser=ticket_of)
]
TicketsArgument = Annotated[
    list[str], typer.Argument(metavar="TICKET…", help="Of the records that failed, <partition>-<offset> each.")
]
TimeOption = Annotated[
    datetime | None, typer.Option(metavar="TIME", help="ISO 8601, local without offset.", parser=moment)
]
CouponOption = Annotated[
    str | None, typer.Option("--coupon", metavar="COUPON", help="Only of this coupon.", parser=coupon_id)
]
CommentOption = Annotated[str, typer.Option("--comment", "-m", help="Why; it is kept with what was done.")]
