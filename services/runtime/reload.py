"""What files hold, read again when they change; a broken new version is not taken."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from services.runtime.log import get_logger

T = TypeVar("T")
log = get_logger(__name__)

POLL_INTERVAL_S = 1.0

_Signature = tuple[tuple[int, int, int] | None, ...]


class BadFile(Exception):
    """A file that can't be used; the message names it and every fault in it."""


class Reloaded(Generic[T]):
    """The value that `load` makes of `paths`. Raises what `load` raises, when it is made: BadFile, OSError."""

    def __init__(self, what: str, paths: Sequence[str], load: Callable[[], T]) -> None:
        self._what = what
        self._paths = paths
        self._load = load
        self._seen = self._signature()
        self.current = load()

    async def poll(self) -> None:
        """Load again if a file is another than it was. What can't be loaded is logged once, and the old stays."""
        # In a thread: a file system that hangs must not stop the calls.
        signature = await asyncio.to_thread(self._signature)
        if signature == self._seen:
            return
        try:
            value = await asyncio.to_thread(self._load)
        except (BadFile, OSError) as error:
            self._seen = signature
            log.error("reload_refused", what=self._what, error=str(error))
            return
        if await asyncio.to_thread(self._signature) == signature:  # else it was read while it was being written
            self._seen = signature
            self.current = value
            log.info("reloaded", what=self._what)

    def _signature(self) -> _Signature:
        return tuple(_stat(path) for path in self._paths)


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
