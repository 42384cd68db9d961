"""`python -m tests.system.planted`: runs all planted bugs, and prints which checks found them."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from services.runtime import log
from stack import Stack
from tests.system.planted.catalogue import BUGS, Run, run_all


def table(run: Run) -> str:
    """A Markdown table of the bugs and the checks that found them."""
    lines = ["| bug | what happened meanwhile | found by | and also by |", "|---|---|---|---|"]
    for bug in BUGS:
        others = sorted(run.planted[bug.module].checks - {bug.check})
        meanwhile = " ".join((bug.scenario.__doc__ or "").split())
        found = f"`{bug.check}`" if bug.check in run.planted[bug.module].checks else "not found"
        lines.append(f"| {bug.words} | {meanwhile} | {found} | {', '.join(f'`{one}`' for one in others)} |")
    held = "all promises held" if run.healthy.held else f"BROKEN: {', '.join(sorted(run.healthy.checks))}"
    lines.append(f"| none | all of it, one after the other | {held} | |")
    return "\n".join(lines)


def main() -> int:
    logging.disable(logging.WARNING)  # of clients, about topics that are gone by now
    log.configure("planted", "ERROR")
    with Stack.start() as stack, tempfile.TemporaryDirectory(prefix="firstcome-planted-") as folder:
        run = asyncio.run(run_all(stack, Path(folder), lambda text: print(text, file=sys.stderr, flush=True)))
    print(table(run))
    found = all(bug.check in run.planted[bug.module].checks for bug in BUGS)
    return 0 if found and run.healthy.held else 1


if __name__ == "__main__":
    sys.exit(main())
