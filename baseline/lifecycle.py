"""Running a part until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from baseline.config import Config

Part = Callable[[Config, asyncio.Event], Coroutine[Any, Any, None]]


def main(*parts: Part) -> None:
    """Run the parts side by side until SIGTERM or SIGINT."""
    uvloop.run(_run(Config.read(), parts))


async def _run(config: Config, parts: tuple[Part, ...]) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with asyncio.TaskGroup() as running:
        for part in parts:
            running.create_task(part(config, stopping))
