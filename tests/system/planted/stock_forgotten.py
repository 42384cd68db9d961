"""The ledger does not write back what its grants take from the stock; no key on sequences stops it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.domain.model import Coupon, LineState
from services.ledger import store
from tests.system.planted import launch

_write_coupons = store._write_coupons


async def write_coupons(db: Any, state: LineState, coupons: Sequence[Coupon], verdicts: Any) -> None:
    await _write_coupons(db, state, [one for one in coupons if one.coupon_id not in state.coupons], verdicts)


if __name__ == "__main__":
    store._write_coupons = write_coupons
    launch.ledger()
