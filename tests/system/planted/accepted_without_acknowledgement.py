"""The issuer answers as accepted what the broker did not acknowledge."""

from __future__ import annotations

from collections.abc import Sequence

from services.issuer.line import Line
from services.runtime.kafka import Appended, KafkaAway, Message
from tests.system.planted import launch

_append = Line.append


async def append(self: Line, partition: int, messages: Sequence[Message]) -> Sequence[Appended]:
    try:
        return await _append(self, partition, messages)
    except KafkaAway:
        return [Appended(self.end(partition) + place, 0) for place, _ in enumerate(messages)]


if __name__ == "__main__":
    Line.append = append  # type: ignore[method-assign]
    launch.issuer()
