"""What the first start is doing, on stderr: rich on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


def say(line: str) -> None:
    """One plain line on stderr."""
    print(f"stack: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(description: str) -> Iterator[None]:
    """Shows a step that takes a few seconds, and how long it took."""
    started = time.monotonic()
    say(f"{description} …")
    yield
    say(f"{description}: done in {time.monotonic() - started:.1f} s")


@contextlib.contextmanager
def download(description: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Shows a download; yields the function to call with each number of bytes received (from any thread)."""
    if sys.stderr.isatty():
        columns = (TextColumn("stack: {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total_bytes)
            yield lambda received: bar.advance(task, received)
        return
    with step(f"{description} ({total_bytes / 1e6:.0f} MB)"):
        received_bytes = 0
        shown_tenths = 0

        def advance(received: int) -> None:
            nonlocal received_bytes, shown_tenths
            received_bytes += received
            tenths = received_bytes * 10 // max(total_bytes, 1)
            if tenths >= shown_tenths + 2:
                shown_tenths = tenths
                say(f"{description}: {tenths * 10} %")

        yield advance
