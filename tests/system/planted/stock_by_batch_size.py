"""The ledger takes the size of the batch from the stock, not the number of its grants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from services.domain.model import Rejected, Verdict
from services.ledger import store
from tests.system.planted import launch

_write_coupons = store._write_coupons


async def write_coupons(db: Any, state: Any, coupons: Any, verdicts: Sequence[Verdict]) -> None:
    await _write_coupons(db, state, coupons, verdicts)
    for coupon_id, count in Counter(v.coupon_id for v in verdicts if isinstance(v, Rejected)).items():
        await db.execute(
            "UPDATE coupon SET remaining = remaining - least($2, remaining), "
            "issued_count = issued_count + least($2, remaining) WHERE coupon_id = $1",
            coupon_id,
            count,
        )


if __name__ == "__main__":
    store._write_coupons = write_coupons
    launch.ledger()
