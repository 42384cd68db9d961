"""The issuer answers as accepted what the broker did not acknowledge."""

from __future__ import annotations

from collections.abc import Sequence

from services.issuer.line import Line
from services.runtime.kafka import Appended, KafkaAway, Message
from services.runtime.wire import Asked
from tests.system.planted import launch

_append = Line.append


async def append(self: Line, partition: int, asked: Sequence[Asked | Message]) -> Sequence[Appended]:
    try:
        return await _append(self, partition, asked)
    except KafkaAway:
        return [Appended(self.end(partition) + place, 0) for place, _ in enumerate(asked)]


if __name__ == "__main__":
    Line.append = append  # type: ignore[method-assign]
    launch.issuer()
