"""The comparison itself: the line through the model, beside the tables, the DLQ, the outcomes and a client history."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from checker.books import Books
from checker.compare import compare
from checker.findings import Check, Counts, Findings, Report
from checker.history import History
from checker.model import TAKEN_FROM_DLQ, CouponView, ExpectParked, SequentialModel
from checker.outcomes import describe
from checker.pace import Limits, Pace
from checker.parked import DeadLetters
from checker.published import Published
from checker.records import Record, RejectedRow, Ticket, VerdictRow
from checker.refusals import Refusals
from checker.tally import Tally, compare_coupons
from checker.told import Clients


async def audit(
    books: Books, history: History | None = None, findings: Findings | None = None, limits: Limits | None = None
) -> Report:
    """Compare everything with everything, partition by partition, each in offset order.

    `findings` may bring what was found before (a line that is not drained). Memory grows with the grants and by 50
    bytes a record, not with the size of the records. Uses up `history`. Raises what `books` raises.
    """
    run = _Audit(books, history or History(), findings or Findings(), limits or Limits())
    for partition in range(books.partition_count):
        await run.partition(partition)
    return await run.finish()


class _Audit:
    def __init__(self, books: Books, history: History, findings: Findings, limits: Limits) -> None:
        self._books = books
        self._findings = findings
        self._limits = limits
        self._calls = history.calls
        self._unanswered = history.unknown
        self._tally = Tally(findings)
        self._dead_letters = DeadLetters(findings, books.line_topic)
        self._clients = Clients(findings, history)
        self._refusals = Refusals(findings, history)
        self._pace = Pace(findings, limits)
        self._believed: Counter[str] = Counter()
        self._coupons: dict[tuple[int, str], CouponView] = {}
        self._records = 0
        self._lost = 0
        self._outcomes = 0
        self._outcomes_repeated = 0
        self._duplicates = 0

    async def partition(self, partition: int) -> None:
        books, model = self._books, SequentialModel(partition, self._books.partition_count)
        # First, since only the DLQ can tell what was parked through no fault of the record.
        async for batch in books.dead_letters(partition):
            self._dead_letters.add(batch)
        published = Published(self._findings, self._tally, books.line_topic, partition)
        next_offset = 0
        async for batch in books.line(partition):
            end = batch[-1].offset + 1
            rows = _by_offset(await books.verdicts(partition, next_offset, end))
            for record in batch:
                self._record(record, rows.pop(record.offset, []), model, published)
            self._without_record(rows)
            next_offset = end
        self._without_record(_by_offset(await books.verdicts(partition, next_offset, None)))
        self._dead_letters.finish_partition(partition)
        self._coupons.update({(partition, coupon_id): view for coupon_id, view in model.coupons().items()})
        async for batch in books.outcomes(partition):
            published.add(batch)
        published.finish(await books.outcomes_begin(partition))
        self._refusals.finish_partition(published)
        self._pace.finish_partition(published)
        self._outcomes += published.count
        self._outcomes_repeated += published.repeated
        self._duplicates += published.duplicates

    async def finish(self) -> Report:
        self._without_record({0: list(await self._books.verdicts_elsewhere())})
        coupons = await self._books.coupons()
        self._tally.compare_stock(coupons)
        compare_coupons(self._findings, coupons, self._coupons)
        async for rows in self._books.dead_letter_rows():
            self._dead_letters.compare_rows(rows)
        self._dead_letters.finish()
        self._clients.finish()
        self._refusals.finish()
        self._pace.finish()
        self._compare_believed()
        tally, clients = self._tally, self._clients
        return self._findings.report(
            Counts(
                records=self._records,
                coupons=len(coupons),
                issued=tally.issued,
                rejected=dict(tally.rejected.most_common()),
                changes=tally.changes,
                parked=tally.parked,
                dead_letters=self._dead_letters.count,
                outcomes=self._outcomes,
                outcomes_repeated=self._outcomes_repeated,
                calls=self._calls,
                acknowledged=clients.acknowledged,
                unanswered=self._unanswered,
                refusals_without_ticket=self._refusals.count,
                overtaking_compared=clients.compared,
                oversold=tally.oversold,
                duplicates=tally.duplicates + self._duplicates,
                lost=self._lost + clients.lost,
                inversions=self._findings.count(Check.INVERSION) + self._findings.count(Check.GRANT_BEHIND_SOLD_OUT),
                believed=dict(self._believed.most_common()),
                settled=tally.issued + tally.parked + sum(tally.rejected.values()),
                first_settled_us=tally.first_settled_us,
                last_settled_us=tally.last_settled_us,
                standstill_s=self._pace.standstill_us / 1e6,
                standstill_ticket=str(self._pace.standstill_ticket) if self._pace.standstill_ticket else None,
                drained_after_s=self._pace.drained_after_s,
            )
        )

    def _record(self, record: Record, rows: list[VerdictRow], model: SequentialModel, published: Published) -> None:
        ticket = Ticket(record.partition, record.offset)
        self._records += 1
        expected = model.settle(record, self._dead_letters.reason_of(ticket))
        if isinstance(expected, ExpectParked) and expected.reason in TAKEN_FROM_DLQ:
            self._believed[expected.reason] += 1
        row = rows[0] if rows else None
        for each in rows:
            self._tally.add(each)
        if row is None:
            self._lost += 1
            self._findings.add(Check.NO_ROW, f"the record has no verdict; expected {expected}", ticket=ticket)
        else:
            compare(self._findings, record, expected, row)
            published.expect(record, row)
            self._pace.add(record, row)
            if isinstance(row, RejectedRow) and row.reason == "PARKED":
                self._dead_letters.settle(record, row)
        if len(rows) > 1:
            said = "; ".join(describe(each) for each in rows)
            self._findings.add(Check.MANY_ROWS, f"{len(rows)} verdicts: {said}", ticket=ticket)
        self._clients.settle(ticket, expected, row, self._tally)
        self._refusals.settle(record, expected, row, model)

    def _compare_believed(self) -> None:
        count, most = self._believed.total(), self._limits.believed_max
        if most is not None and count > most:
            self._findings.add(Check.TOO_MANY_BELIEVED, f"{count} by the DLQ's word alone, not at most {most}")

    def _without_record(self, rows: dict[int, list[VerdictRow]]) -> None:
        for offset in sorted(rows):
            for row in rows[offset]:
                # Still a grant that somebody holds.
                self._tally.add(row)
                self._findings.add(
                    Check.ROW_WITHOUT_RECORD, f"{describe(row)}, but no such record in the line", ticket=row.ticket
                )


def _by_offset(rows: Sequence[VerdictRow]) -> dict[int, list[VerdictRow]]:
    grouped: dict[int, list[VerdictRow]] = defaultdict(list)
    for row in rows:
        grouped[row.ticket.offset].append(row)
    return grouped
