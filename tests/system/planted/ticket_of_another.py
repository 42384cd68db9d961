"""The issuer gives all who go into the line together the ticket of the first."""

from __future__ import annotations

from collections.abc import Sequence

from services.issuer.line import Line
from services.runtime.kafka import Appended, Message
from services.runtime.wire import Asked
from tests.system.planted import launch

_append = Line.append


async def append(self: Line, partition: int, asked: Sequence[Asked | Message]) -> Sequence[Appended]:
    appended = await _append(self, partition, asked)
    return [appended[0]] * len(appended)


if __name__ == "__main__":
    Line.append = append  # type: ignore[method-assign]
    launch.issuer()
