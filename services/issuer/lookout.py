"""What the issuer looks after beside its calls: the busiest coupons' figures, and whether outcomes tell the truth.

Every few seconds the last outcome that was read of each partition is compared with the ledger's row of its ticket: what
people are told must be what the books say.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

from coupon.v1 import events_pb2

from services.domain.model import CouponId
from services.issuer.hot import HotCoupons
from services.issuer.line import Line
from services.issuer.outcomes import OutcomesTail, Told
from services.issuer.store import ChangeRow, Granted, IssuerStore, Verdict
from services.runtime import metrics
from services.runtime.log import get_logger
from services.runtime.postgres import BooksWrong, DatabaseAway, DatabaseRefused
from services.runtime.waiting import Waiting

log = get_logger(__name__)

LOOK_EVERY_S = 2.0


class Lookout:
    """Reads the tables now and then; a failure is left to the next time."""

    def __init__(self, store: IssuerStore, tail: OutcomesTail, line: Line, hot: HotCoupons) -> None:
        self._store = store
        self._tail = tail
        self._line = line
        self._hot = hot
        self._waiting = [Waiting() for _ in range(line.partition_count)]
        self._homes: dict[CouponId, int] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with contextlib.suppress(DatabaseAway, DatabaseRefused, BooksWrong):
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def observe(self) -> None:
        """Once a second: how long the lines are."""
        self._hot.cool()
        now_s = time.time()
        unsettled: dict[int, int] = {}
        for partition, waiting in enumerate(self._waiting):
            end, settled = self._line.end(partition), self._tail.settled_offset(partition)
            unsettled[partition] = max(0, end - settled)
            metrics.UNSETTLED_RECORDS.set(unsettled[partition], str(partition))
            metrics.UNSETTLED_SECONDS.set(waiting.seconds(settled, end, now_s), str(partition))
        metrics.COUPON_LINE.replace({(coupon_id,): unsettled[home] for coupon_id, home in self._homes.items()})

    async def look(self) -> None:
        """Raises DatabaseAway."""
        told = self._tail.last_told()
        progress = await self._store.progress(self._hot.busiest())
        for partition, next_offset in progress.next_offsets.items():
            self._tail.settled(partition, next_offset)
        coupons = progress.coupons
        self._homes = {coupon_id: coupon.partition for coupon_id, coupon in coupons.items()}
        metrics.COUPON_REMAINING.replace({(i,): coupon.remaining for i, coupon in coupons.items()})
        metrics.COUPON_ISSUED.replace({(i,): coupon.issued for i, coupon in coupons.items()})
        metrics.COUPON_STOCK.replace({(i,): coupon.total for i, coupon in coupons.items()})
        await self._compare([one for one in told if _settled(one, progress.next_offsets)])

    async def _compare(self, told: list[Told]) -> None:
        """Outcomes of records that the tables' progress is past, so that their rows must be there."""
        if not told:
            return
        for one, row in zip(told, await self._store.verdicts([one.ticket for one in told]), strict=True):
            same = agrees(one, row)
            metrics.OUTCOME_CHECKS.add(1, "agree" if same else "disagree")
            if not same:
                log.critical("outcome_contradicts_books", ticket=str(one.ticket), told=type(one.event).__name__)


def _settled(told: Told, next_offsets: Mapping[int, int]) -> bool:
    # Else the database is an older one that is catching up: nothing is known yet.
    return next_offsets.get(told.ticket.partition, 0) > told.ticket.offset


def agrees(told: Told, row: Verdict | None) -> bool:
    """Whether the outcome says what the row of its ticket says."""
    event = told.event
    if isinstance(event, events_pb2.CouponIssuedEvent):
        if not isinstance(row, Granted) or row.grant.ticket != told.ticket:
            return False
        said = event.coupon_id, event.user_id, event.request_id, event.sequence
        return said == (row.coupon_id, row.user_id, row.grant.request_id, row.grant.sequence)
    if isinstance(event, events_pb2.CouponChangedEvent):
        return isinstance(row, ChangeRow) and type(event).FromString(row.outcome) == event
    if row is None or isinstance(row, Granted | ChangeRow):
        return False
    return event.reason == row.reason.value
