"""The operators' command line.

Exit status: 0 done, 1 refused, 2 wrong use, 3 unavailable (try again later), 130 stopped by Ctrl-C.
"""

import typer

from firstcome.cli import coupons, dlq, issuances, replay, watch

app = typer.Typer(
    name="firstcome",
    help="Coupons, issuances, dead letters, replays. Exit status: 0 done, 1 refused, 2 wrong use, 3 unavailable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(coupons.app, name="coupons")
app.add_typer(issuances.app, name="issuances")
app.add_typer(dlq.app, name="dlq")
app.add_typer(replay.app, name="replay")
issuances.add_issue(app)
watch.add_watch(app)

__all__ = ["app"]
