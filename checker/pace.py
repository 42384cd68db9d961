"""How steadily the line was settled: the longest standstill, and when it was drained after healing."""

from __future__ import annotations

from dataclasses import dataclass

from checker.findings import Check, Findings
from checker.published import Published
from checker.records import Record, Ticket, VerdictRow


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be asked of a run beyond the promises. Moments are seconds since the epoch, as of `time.time()`.

    `healed_at_s`: when the last fault was over; all that the line had taken by then must be settled and published
    within `drained_within_s` of it. `standstill_since_s`: standstills that ended before do not count. Findings are
    standstills longer than `standstill_s_max`, and more than `believed_max` records that are INTERNAL or UNSTORABLE by
    the DLQ's word alone. None: not asked.
    """

    healed_at_s: float | None = None
    drained_within_s: float = 60.0
    standstill_since_s: float | None = None
    standstill_s_max: float | None = None
    believed_max: int | None = None

    @property
    def healed_us(self) -> int | None:
        return None if self.healed_at_s is None else round(self.healed_at_s * 1e6)


class Pace:
    """Follows the times at which records were settled, by the database's clock, partition by partition."""

    def __init__(self, findings: Findings, limits: Limits) -> None:
        self._findings = findings
        self._limits = limits
        self._since_us = (limits.standstill_since_s or 0) * 1e6
        self._partition_settled_us: dict[int, int] = {}
        self._drained_us = 0
        self.standstill_us = 0
        self.standstill_ticket: Ticket | None = None

    @property
    def drained_after_s(self) -> float | None:
        healed_us = self._limits.healed_us
        return None if healed_us is None else max(self._drained_us - healed_us, 0) / 1e6

    def add(self, record: Record, row: VerdictRow) -> None:
        """The next record of its partition and its row.

        It stood at the line's head from when it came or the one before it was settled, whichever was later, until it
        was settled: for so long its partition stood still, however busy the others were.
        """
        accepted_us = record.timestamp_ms * 1000
        before_us = self._partition_settled_us.get(record.partition, 0)
        waited_us = row.settled_us - max(before_us, accepted_us)
        if waited_us > self.standstill_us and row.settled_us >= self._since_us:
            self.standstill_us, self.standstill_ticket = waited_us, row.ticket
        self._partition_settled_us[record.partition] = max(before_us, row.settled_us)
        healed_us = self._limits.healed_us
        if healed_us is not None and accepted_us <= healed_us:
            self._drained_us = max(self._drained_us, row.settled_us)

    def finish_partition(self, published: Published) -> None:
        """To be called behind the last outcome of the partition."""
        healed_us = self._limits.healed_us
        if healed_us is not None:
            self._drained_us = max(self._drained_us, published.all_told_us(healed_us))

    def finish(self) -> None:
        """To be called behind the last record of all."""
        drained_after_s, within_s = self.drained_after_s, self._limits.drained_within_s
        if drained_after_s is not None and drained_after_s > within_s:
            message = f"drained {drained_after_s:.1f} s after healing, not within {within_s:g} s"
            self._findings.add(Check.DRAINED_LATE, message)
        most_s = self._limits.standstill_s_max
        if most_s is not None and self.standstill_us > most_s * 1e6:
            message = f"waited {self.standstill_us / 1e6:.1f} s at the head of its line, not at most {most_s:g} s"
            self._findings.add(Check.STANDSTILL, message, ticket=self.standstill_ticket)
