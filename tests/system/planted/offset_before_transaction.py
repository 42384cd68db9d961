"""The ledger commits its progress first, and settles in a transaction of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.domain.model import LineRecord
from services.ledger.store import LedgerStore
from services.runtime.progress import Position
from tests.system.planted import launch

_settle = LedgerStore.settle


async def settle(
    self: LedgerStore, before: Position, after: Position, records: Sequence[LineRecord], *rest: Any
) -> Any:
    await self.acknowledge(before, after)
    return await _settle(self, after, after, records, *rest)


if __name__ == "__main__":
    LedgerStore.settle = settle  # type: ignore[method-assign, assignment]
    launch.ledger()
