"""Looks over the books all the time: whether of any coupon more were granted than there are, or its figures disagree.

The tables' own constraints and the ledger's checks should make it impossible; this is what calls a person if it is not.
It asks by index only, a page of coupons at a time, so it costs a few milliseconds however large the tables are.
"""

from __future__ import annotations

import asyncio
import contextlib

from sqlalchemy.ext.asyncio import AsyncEngine

from services.domain.model import CouponId
from services.runtime import metrics
from services.runtime.log import get_logger
from services.runtime.postgres import BooksWrong, DatabaseAway, DatabaseRefused, connection

log = get_logger(__name__)

LOOK_EVERY_S = 5.0
PAGE_COUPONS = 1_000
OVERSOLD = "oversold"
BOOKS = "books"


class Books:
    """The coupons, page after page, from the first again after the last."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._after = CouponId("")
        self._wrong: dict[CouponId, str] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with contextlib.suppress(DatabaseAway):
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look at the next page. Raises DatabaseAway."""
        try:
            async with connection(self._engine) as db:
                rows = await db.fetch(_PAGE, self._after, PAGE_COUPONS)
        except (BooksWrong, DatabaseRefused) as error:
            raise DatabaseAway(str(error)) from error
        last = rows[-1]["coupon_id"] if len(rows) == PAGE_COUPONS else CouponId("")
        seen = {c: w for c, w in self._wrong.items() if c <= self._after or (last and c > last)}
        found = {row["coupon_id"]: row["promise"] for row in rows if row["promise"] is not None}
        for coupon_id in found.keys() - self._wrong.keys():
            log.critical("promise_broken", coupon=coupon_id, promise=found[coupon_id])
        self._wrong, self._after = {**seen, **found}, last
        for promise in (OVERSOLD, BOOKS):
            metrics.BROKEN_PROMISES.set(list(self._wrong.values()).count(promise), promise)


# One statement, so one snapshot. Sequences are unique and grow by one, so the greatest is the number of grants.
_PAGE = f"""
SELECT c.coupon_id, CASE
    WHEN c.issued_count > c.total OR g.granted > c.total THEN '{OVERSOLD}'
    WHEN g.granted <> c.issued_count OR c.remaining + c.issued_count <> c.total THEN '{BOOKS}' END AS promise
FROM coupon c CROSS JOIN LATERAL (
    SELECT coalesce(max(u.sequence), 0) AS granted FROM user_coupon u WHERE u.coupon_id = c.coupon_id) g
WHERE c.coupon_id > $1 ORDER BY c.coupon_id LIMIT $2"""
