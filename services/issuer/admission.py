"""Who has it already, and what is known of the coupon: answered before anything goes into the line.

Look-ups of waiting calls go into one query. A coupon's state is kept for 500 ms at most; it carries the offset up to
which it is true and yields only to a later one.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.decide import refusal
from services.domain.model import Coupon, CouponId, Reason, RequestId, Ticket
from services.issuer.hot import HotCoupons
from services.issuer.outcomes import OutcomesTail
from services.issuer.store import Granted, IssuerStore, Key
from services.runtime.coalesce import Coalescer
from services.runtime.kafka import home_partition

FRESH_S = 0.25
"""Older states are read again with the next look-up; none is used when older than LIFETIME_S."""
LIFETIME_S = 0.5
CACHE_COUPONS_MAX = 10_000
LOOK_UP_BATCH_MAX = 2_000
LOOK_UPS_WAITING_MAX = 100_000
WINDOW_TOLERANCE_US = 1_000_000
"""The broker's clock decides; only when this far outside the window does ours."""


class Known(NamedTuple):
    """What the tables say of one request. `behind`: they are older than outcomes that were seen.

    One look-up's requests without a grant share one of these a coupon.
    """

    granted: Granted | None
    coupon: Coupon | None
    partition: int
    behind: bool


@dataclass(frozen=True, slots=True)
class _Cached:
    coupon: Coupon
    true_up_to: int
    read_at_s: float


class Admission:
    """Looks requests up before they are sent."""

    def __init__(self, store: IssuerStore, tail: OutcomesTail, partition_count: int) -> None:
        self._store = store
        self._tail = tail
        self._partition_count = partition_count
        self.hot = HotCoupons()
        self._cache: dict[CouponId, _Cached] = {}
        self._look_ups = Coalescer[Key, Known](
            self._look_up, batch_max=LOOK_UP_BATCH_MAX, waiting_max=LOOK_UPS_WAITING_MAX, queue="look_up"
        )
        tail.on_coupon = self._told

    async def look_up(self, keys: Sequence[Key]) -> Sequence[Known]:
        """What is known of each. Raises DatabaseAway, QueueFull."""
        return await self._look_ups.submit(keys)

    def home(self, coupon_id: CouponId) -> int:
        """Where an unknown coupon belongs."""
        return home_partition(coupon_id.encode(), self._partition_count)

    async def _look_up(self, keys: Sequence[Key]) -> Sequence[Known]:
        now_s = time.monotonic()
        asked = Counter(coupon_id for coupon_id, _ in keys)
        self.hot.asked(asked)
        # Kept apart: what is told of a coupon while the query runs ends its state in the cache.
        fresh = {coupon_id: cached.coupon for coupon_id in asked if (cached := self._fresh(coupon_id, now_s))}
        stale = [coupon_id for coupon_id in asked if coupon_id not in fresh]
        # Before the query: what is settled while it runs must not make its answer look old.
        seen = self._tail.seen()
        # With the progress each time, also for fresh states: who has won is looked up in these very tables.
        granted, progress = await self._store.look_up(keys, stale)
        for partition, next_offset in progress.next_offsets.items():
            self._tail.settled(partition, next_offset)
        behind = {p for p, offset in seen.items() if progress.next_offsets.get(p, 0) <= offset}
        for coupon in progress.coupons.values():
            if coupon.partition not in behind:
                self._offer(_Cached(coupon, progress.next_offsets[coupon.partition] - 1, now_s))
        newcomers: dict[CouponId, Known] = {}
        for coupon_id in asked:
            # Found in this very look-up or kept: an expired state is not used.
            cached = self._cache.get(coupon_id)
            found = cached.coupon if cached is not None and now_s - cached.read_at_s <= LIFETIME_S else None
            if found is None:
                found = progress.coupons.get(coupon_id) or fresh.get(coupon_id)
            partition = found.partition if found is not None else self.home(coupon_id)
            newcomers[coupon_id] = Known(None, found, partition, partition in behind)
        known = [newcomers[coupon_id] for coupon_id, _ in keys]
        if granted:
            for place, key in enumerate(keys):
                if (grant := granted.get(key)) is not None:
                    known[place] = known[place]._replace(granted=grant)
        return known

    def _fresh(self, coupon_id: CouponId, now_s: float) -> _Cached | None:
        cached = self._cache.get(coupon_id)
        return cached if cached is not None and now_s - cached.read_at_s <= FRESH_S else None

    def _offer(self, offered: _Cached) -> None:
        cached = self._cache.get(offered.coupon.coupon_id)
        if cached is None or offered.true_up_to >= cached.true_up_to:
            if cached is None and len(self._cache) >= CACHE_COUPONS_MAX:
                self._cache.pop(next(iter(self._cache)))
            self._cache[offered.coupon.coupon_id] = offered

    def _told(self, coupon: Coupon) -> None:
        """A change's outcome: its etag is the ticket up to which it is true.

        It ends what is known from before it and is itself never used: how old it is nobody can tell, for outcomes may
        come again, and a repeated change is answered with what it first came to.
        """
        etag = Ticket.parse(coupon.etag)
        if etag is not None:
            self._offer(_Cached(coupon, etag.offset, -math.inf))


def refusal_now(known: Known, request_id: RequestId, now_us: int) -> Reason | None:
    """Why a request need not go into the line, by the ledger's own rule, where our clock's error can't matter."""
    grant = known.granted.grant if known.granted is not None else None
    remaining = known.coupon.remaining if known.coupon is not None else 0
    early = refusal(known.coupon, remaining, grant, request_id, now_us - WINDOW_TOLERANCE_US)
    late = refusal(known.coupon, remaining, grant, request_id, now_us + WINDOW_TOLERANCE_US)
    return early if early is late else None
