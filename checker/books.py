"""The port through which the audit sees the system: three topics and the tables, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from checker.records import CouponRow, DeadLetterRow, Record, VerdictRow


class Books(Protocol):
    """A standing system as it can be read. Records come in offset order, in batches, once from the beginning.

    The rows are those of one moment (one snapshot).
    """

    @property
    def line_topic(self) -> str: ...

    @property
    def partition_count(self) -> int: ...

    def line(self, partition: int) -> AsyncIterator[Sequence[Record]]: ...

    def dead_letters(self, partition: int) -> AsyncIterator[Sequence[Record]]: ...

    def outcomes(self, partition: int) -> AsyncIterator[Sequence[Record]]: ...

    async def outcomes_begin(self, partition: int) -> int:
        """The first offset that retention has left of the outcomes."""
        ...

    async def verdicts(self, partition: int, start: int, end: int | None) -> Sequence[VerdictRow]:
        """All rows of the three verdict tables with start <= ticket offset < end (None: no end)."""
        ...

    async def verdicts_elsewhere(self) -> Sequence[VerdictRow]:
        """Rows under partitions that the line does not have, the preloaded ones left out; at most 1,000 a table."""
        ...

    async def coupons(self) -> Sequence[CouponRow]:
        """All coupons but the preloaded ones."""
        ...

    def dead_letter_rows(self) -> AsyncIterator[Sequence[DeadLetterRow]]: ...
