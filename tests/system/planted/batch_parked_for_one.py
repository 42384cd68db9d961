"""The ledger parks a whole batch for the one record in it that PostgreSQL refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.domain.decide import park
from services.domain.model import LineRecord, ParkReason
from services.ledger.store import LedgerStore
from services.runtime.postgres import DatabaseRefused
from services.runtime.progress import Position
from tests.system.planted import launch

_settle = LedgerStore.settle


async def settle(
    self: LedgerStore, before: Position, after: Position, records: Sequence[LineRecord], *rest: Any
) -> Any:
    try:
        return await _settle(self, before, after, records, *rest)
    except DatabaseRefused:
        parked = [park(record, ParkReason.UNSTORABLE, "the batch was refused") for record in records]
        return await _settle(self, before, after, parked, *rest)


if __name__ == "__main__":
    LedgerStore.settle = settle  # type: ignore[method-assign, assignment]
    launch.ledger()
