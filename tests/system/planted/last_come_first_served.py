"""The ledger decides each batch from its end."""

from __future__ import annotations

from collections.abc import Sequence

from services.domain.decide import decide
from services.domain.model import Decision, LineRecord, LineState
from services.ledger import store
from tests.system.planted import launch


def backwards(state: LineState, records: Sequence[LineRecord]) -> Decision:
    decision = decide(state, tuple(reversed(records)))
    return Decision(tuple(reversed(decision.verdicts)), decision.coupons)


if __name__ == "__main__":
    store.decide = backwards  # type: ignore[attr-defined]
    launch.ledger()
