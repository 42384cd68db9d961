"""What became of requests, and how coupons stand: answered from the tables and, for the unsettled, from the line."""

from __future__ import annotations

import time
from collections.abc import Mapping

from coupon.v1 import coupon_pb2, issuer_pb2

from services.domain.model import (
    ChangeRequest,
    CouponId,
    CouponState,
    Reason,
    Ticket,
    UserId,
)
from services.issuer import answers
from services.issuer.admission import Admission
from services.issuer.line import Line
from services.issuer.outcomes import OutcomesTail
from services.issuer.store import ChangeRow, Granted, IssuerStore, Progress, Refused
from services.runtime.fields import PAGE_BYTES_MAX
from services.runtime.rpc_errors import Refusal, Violation, invalid, unavailable


class Reading:
    """Answers Get and List calls. Every method raises Refusal, DatabaseAway, KafkaAway."""

    def __init__(self, admission: Admission, line: Line, tail: OutcomesTail, store: IssuerStore) -> None:
        self._admission = admission
        self._line = line
        self._tail = tail
        self._store = store

    async def coupon(self, coupon_id: CouponId) -> coupon_pb2.Coupon:
        """The coupon now."""
        seen = self._tail.seen()
        progress = await self._store.progress([coupon_id])
        found = progress.coupons.get(coupon_id)
        if found is None:
            _must_be_current(progress, self._admission.home(coupon_id), seen)
            raise answers.not_found("COUPON_NOT_FOUND", f"coupons/{coupon_id}")
        return answers.coupon(found, _now_us())

    async def coupons(
        self, after: str, state: CouponState | None, page_size: int
    ) -> tuple[list[coupon_pb2.Coupon], bool]:
        """Coupons by id behind `after`, and whether there are more."""
        now_us = _now_us()
        rows = await self._store.coupons(after, state, now_us, page_size + 1)
        page: list[coupon_pb2.Coupon] = []
        size = 0
        for row in rows[:page_size]:
            message = answers.coupon(row, now_us)
            size += message.ByteSize()
            if page and size > PAGE_BYTES_MAX:
                return page, True
            page.append(message)
        return page, len(rows) > page_size

    async def issuance(self, coupon_id: CouponId, user_id: UserId, ticket: Ticket | None) -> issuer_pb2.Issuance:
        """What became of the request of that ticket; without one, the user's coupon."""
        if ticket is None:
            return await self._grant(coupon_id, user_id)
        row = await self._store.verdict(ticket)
        if row is None:
            return await self._unsettled(coupon_id, user_id, ticket)
        if isinstance(row, ChangeRow) or (row.coupon_id, row.user_id) != (coupon_id, user_id):
            raise _another()
        if isinstance(row, Granted):
            return answers.granted(row)
        return await self._refused(coupon_id, user_id, row)

    async def issuances(
        self, coupon_id: CouponId | None, user_id: UserId | None, after: str, page_size: int
    ) -> tuple[list[issuer_pb2.Issuance], str]:
        """Issuances behind `after`, of a coupon by sequence or of a user by coupon; and the key behind which there are
        more, if there are."""
        rows = await self._store.grants(coupon_id, user_id, after, page_size + 1)
        if not rows and not after and coupon_id is not None:
            await self.coupon(coupon_id)  # of an unknown coupon there is no empty list
        page: list[issuer_pb2.Issuance] = []
        size = 0
        for index, row in enumerate(rows[:page_size]):
            message = answers.granted(row)
            size += message.ByteSize()
            if page and size > PAGE_BYTES_MAX:
                return page, _list_key(coupon_id, rows[index - 1])
            page.append(message)
        return page, _list_key(coupon_id, rows[page_size - 1]) if len(rows) > page_size else ""

    async def _grant(self, coupon_id: CouponId, user_id: UserId) -> issuer_pb2.Issuance:
        seen = self._tail.seen()
        grants, progress = await self._store.look_up([(coupon_id, user_id)], [coupon_id])
        if (row := grants.get((coupon_id, user_id))) is not None:
            return answers.granted(row)
        found = progress.coupons.get(coupon_id)
        partition = found.partition if found is not None else self._admission.home(coupon_id)
        _must_be_current(progress, partition, seen)
        raise answers.not_found("ISSUANCE_NOT_FOUND", f"coupons/{coupon_id}/issuances/{user_id}")

    async def _refused(self, coupon_id: CouponId, user_id: UserId, row: Refused) -> issuer_pb2.Issuance:
        if row.reason is Reason.PARKED:
            redriven = await self._store.redriven(row.ticket)
            if redriven is None:
                return answers.refused(coupon_id, user_id, row, Reason.PARKED)
            if (redriven.coupon_id, redriven.user_id) != (coupon_id, user_id):
                return answers.refused(coupon_id, user_id, row, answers.CORRECTED)
            if isinstance(redriven, Granted):
                return answers.granted(redriven)
            return await self._refused(coupon_id, user_id, redriven)
        if row.reason is Reason.REPEATED:
            return await self._repeated(coupon_id, user_id, row)
        return answers.refused(coupon_id, user_id, row, row.reason)

    async def _repeated(self, coupon_id: CouponId, user_id: UserId, row: Refused) -> issuer_pb2.Issuance:
        """Answered as what it repeats: a grant, or what an earlier redrive of the same ticket came to."""
        if row.issued_ticket is not None:
            first = await self._store.verdict(row.issued_ticket)
        else:
            first = await self._store.redriven(row.redrive_of) if row.redrive_of is not None else None
        if isinstance(first, Granted) and (first.coupon_id, first.user_id) == (coupon_id, user_id):
            return answers.granted(first)
        if isinstance(first, Refused) and first.ticket != row.ticket and first.reason is not Reason.REPEATED:
            return answers.refused(coupon_id, user_id, first, first.reason)
        return answers.refused(coupon_id, user_id, row, row.reason)

    async def _unsettled(self, coupon_id: CouponId, user_id: UserId, ticket: Ticket) -> issuer_pb2.Issuance:
        seen = self._tail.seen()
        progress = await self._store.progress()
        next_offset = progress.next_offsets.get(ticket.partition, 0)
        record = await self._line.record(ticket) if ticket.offset >= next_offset else None
        if record is None:
            if ticket.offset < next_offset and (row := await self._store.verdict(ticket)) is not None:
                # Settled between the two looks.
                if isinstance(row, Granted | Refused):
                    return await self.issuance(coupon_id, user_id, ticket)
                raise _another()
            _must_be_current(progress, ticket.partition, seen)
            raise answers.not_found("ISSUANCE_NOT_FOUND", f"coupons/{coupon_id}/issuances/{user_id}")
        if isinstance(record, ChangeRequest) or (record.coupon_id, record.user_id) != (coupon_id, user_id):
            raise _another()
        ahead = ticket.offset - next_offset
        answer = issuer_pb2.Issuance()
        return answers.accepted(answer, coupon_id, user_id, record.request_id or "", str(ticket), record.time_us, ahead)


def _must_be_current(progress: Progress, partition: int, seen: Mapping[int, int]) -> None:
    """A refusal from tables that are older than an outcome seen before they were read would be a lie."""
    if progress.next_offsets.get(partition, 0) <= seen.get(partition, -1):
        raise unavailable("LEDGER_UNAVAILABLE", "the tables are older than the log and catching up")


def _list_key(coupon_id: CouponId | None, row: Granted) -> str:
    return row.coupon_id if coupon_id is None else str(row.grant.sequence)


def _another() -> Refusal:
    return invalid([Violation("ticket", "is the ticket of another issuance")])


def _now_us() -> int:
    return time.time_ns() // 1000
