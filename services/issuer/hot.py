"""Which coupons are asked for most just now: there are figures of so few only, however many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from services.domain.model import CouponId
from services.runtime import metrics

KEPT_MAX = 1_000
COOLING = 0.97
"""Of a second: a coupon that nobody asks for any more is one among the rest after a minute or two."""


class HotCoupons:
    """Counts requests by coupon; what lies back counts less and less."""

    def __init__(self) -> None:
        self._heat: Counter[CouponId] = Counter()

    def asked(self, counts: Mapping[CouponId, int]) -> None:
        self._heat.update(counts)

    def cool(self) -> None:
        """Once a second."""
        for coupon_id in self._heat:
            self._heat[coupon_id] *= COOLING  # type: ignore[assignment]
        if len(self._heat) > KEPT_MAX:
            self._heat = Counter(dict(self._heat.most_common(KEPT_MAX)))

    def busiest(self) -> list[CouponId]:
        """At most COUPONS_MAX of them, the busiest first."""
        return [coupon_id for coupon_id, _ in self._heat.most_common(metrics.COUPONS_MAX)]
