"""The ledger publishes what it has decided before it is committed."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from services.domain.model import Verdict
from services.ledger import store
from services.ledger.consumer import Batch, PartitionLedger, Settled
from tests.system.planted import launch

_at_work: ContextVar[tuple[PartitionLedger, Batch]] = ContextVar("at_work")
_settle, _publish, _write_verdicts = PartitionLedger._settle, PartitionLedger._publish, store._write_verdicts


async def settle(self: PartitionLedger, position: Any, batch: Batch, *, again: bool = False) -> Settled:
    _at_work.set((self, batch))
    return await _settle(self, position, batch, again=again)


async def write_verdicts(db: Any, partition: int, verdicts: Sequence[Verdict]) -> None:
    ledger, batch = _at_work.get()
    published_offset = ledger._published_offset
    # Its own publication, too early by one step.
    await _publish(ledger, Settled(verdicts, batch.traces, batch.answers, _Nowhere()))  # type: ignore[arg-type]
    ledger._published_offset = published_offset
    await _write_verdicts(db, partition, verdicts)


class _Nowhere:
    next_offset = 0


async def publish(self: PartitionLedger, settled: Settled) -> None:
    self._published_offset = settled.position.next_offset


if __name__ == "__main__":
    PartitionLedger._settle = settle  # type: ignore[method-assign]
    PartitionLedger._publish = publish  # type: ignore[method-assign]
    store._write_verdicts = write_verdicts
    launch.ledger()
