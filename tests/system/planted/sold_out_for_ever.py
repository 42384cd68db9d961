"""The issuer never reads a coupon again that it knows to be sold out."""

from __future__ import annotations

from services.domain.model import CouponId
from services.issuer.admission import Admission, _Cached
from tests.system.planted import launch

_fresh, _offer = Admission._fresh, Admission._offer


def fresh(self: Admission, coupon_id: CouponId, now_s: float) -> _Cached | None:
    known = self._cache.get(coupon_id)
    return known if known is not None and known.coupon.remaining == 0 else _fresh(self, coupon_id, now_s)


def offer(self: Admission, offered: _Cached) -> None:
    known = self._cache.get(offered.coupon.coupon_id)
    if known is None or known.coupon.remaining > 0:
        _offer(self, offered)


if __name__ == "__main__":
    Admission._fresh = fresh  # type: ignore[method-assign]
    Admission._offer = offer  # type: ignore[method-assign]
    launch.issuer()
