"""Reads the tables by SQL of its own, all within one snapshot."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import asyncpg

from checker.records import (
    PRELOADED_PARTITION,
    ChangeRow,
    CouponRow,
    DeadLetterRow,
    IssuedRow,
    Progress,
    RejectedRow,
    Ticket,
    VerdictRow,
)

CONNECT_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_S = 300.0
ELSEWHERE_ROWS_MAX = 1_000
DEAD_LETTERS_AT_ONCE = 500
_OFFSET_MAX = 2**63 - 1


def _us(column: str) -> str:
    return f"(extract(epoch FROM {column}) * 1000000)::bigint"


_SELECT_ISSUED = (
    "SELECT ticket_partition, ticket_offset, coupon_id, user_id, request_id, sequence, redrive_of, "
    f"{_us('accepted_at')}, {_us('issued_at')} FROM user_coupon"
)
_SELECT_REJECTED = (
    "SELECT ticket_partition, ticket_offset, coupon_id, user_id, request_id, reason, detail, issued_ticket, "
    f"issued_sequence, redrive_of, {_us('accepted_at')}, {_us('rejected_at')} FROM rejected_issue"
)
_SELECT_CHANGES = (
    "SELECT ticket_partition, ticket_offset, coupon_id, request_id, result, outcome, caller, redrive_of, "
    f"{_us('accepted_at')}, {_us('changed_at')} FROM coupon_change"
)
_SELECTS = ((_SELECT_ISSUED, IssuedRow), (_SELECT_REJECTED, RejectedRow), (_SELECT_CHANGES, ChangeRow))
_BY_TICKET = " WHERE ticket_partition = $1 AND ticket_offset >= $2 AND ticket_offset < $3"
# Two ranges of the ticket's index rather than an OR, which might read a table of ten million preloaded rows.
_BEHIND = " WHERE ticket_partition >= $1 LIMIT $2"
_BEFORE = " WHERE ticket_partition < $1 LIMIT $2"
_SELECT_COUPONS = (
    "SELECT coupon_id, topic_partition, display_name, total, remaining, issued_count, "
    f"{_us('start_time')}, {_us('end_time')}, state, etag, {_us('create_time')}, {_us('update_time')} "
    f"FROM coupon WHERE etag NOT LIKE '{PRELOADED_PARTITION}-%' ORDER BY coupon_id"
)
_SELECT_DEAD_LETTERS = (
    "SELECT ticket_partition, ticket_offset, state, reason, attempt_count, key, value, headers FROM dead_letter "
    "WHERE (ticket_partition, ticket_offset) > ($1, $2) ORDER BY ticket_partition, ticket_offset LIMIT $3"
)


class Tables:
    """One connection. From `snapshot()` until `live()`, reads see one moment of the database."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection
        self._transaction: Any = None

    @classmethod
    async def connect(cls, dsn: str) -> Tables:
        """Raises OSError, asyncpg.PostgresError."""
        # A service's DSN may name SQLAlchemy's driver.
        plain = dsn.replace("postgresql+asyncpg://", "postgresql://", 1)
        connection = await asyncpg.connect(
            plain,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S,
            server_settings={"application_name": "firstcome-checker", "idle_in_transaction_session_timeout": "0"},
        )
        return cls(connection)

    async def __aenter__(self) -> Tables:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close(timeout=CONNECT_TIMEOUT_S)

    async def snapshot(self) -> None:
        """From now on, see the database as it is now."""
        await self.live()
        self._transaction = self._connection.transaction(isolation="repeatable_read", readonly=True)
        await self._transaction.start()

    async def live(self) -> None:
        """From now on, see the database as it is at each read."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await transaction.rollback()

    async def progress(self) -> Sequence[Progress]:
        """The rows of `ledger_progress`."""
        rows = await self._connection.fetch(
            "SELECT topic, partition, next_offset, published_offset FROM ledger_progress"
        )
        return [Progress(*row) for row in rows]

    async def verdicts(self, partition: int, start: int, end: int | None) -> Sequence[VerdictRow]:
        """The rows of all three verdict tables with start <= ticket offset < end."""
        found: list[VerdictRow] = []
        for select, kind in _SELECTS:
            rows = await self._connection.fetch(
                select + _BY_TICKET, partition, start, _OFFSET_MAX if end is None else end
            )
            found += [kind(Ticket(row[0], row[1]), *tuple(row)[2:]) for row in rows]
        return found

    async def verdicts_elsewhere(self, partition_count: int) -> Sequence[VerdictRow]:
        """Rows under partitions that do not exist; at most ELSEWHERE_ROWS_MAX of each table."""
        found: list[VerdictRow] = []
        for select, kind in _SELECTS:
            rows = [
                *await self._connection.fetch(select + _BEHIND, partition_count, ELSEWHERE_ROWS_MAX),
                *await self._connection.fetch(select + _BEFORE, PRELOADED_PARTITION, ELSEWHERE_ROWS_MAX),
            ]
            found += [kind(Ticket(row[0], row[1]), *tuple(row)[2:]) for row in rows]
        return found

    async def coupons(self) -> Sequence[CouponRow]:
        """The rows of `coupon` but the preloaded ones."""
        return [CouponRow(*row) for row in await self._connection.fetch(_SELECT_COUPONS)]

    async def dead_letter_rows(self) -> AsyncIterator[Sequence[DeadLetterRow]]:
        """All rows of `dead_letter`, by ticket, in batches."""
        behind = (-(2**31), 0)
        while rows := await self._connection.fetch(_SELECT_DEAD_LETTERS, *behind, DEAD_LETTERS_AT_ONCE):
            yield [
                DeadLetterRow(Ticket(row[0], row[1]), row[2], row[3], row[4], row[5], row[6], _headers(row[7]))
                for row in rows
            ]
            behind = (rows[-1][0], rows[-1][1])


def _headers(stored: str) -> tuple[tuple[str, bytes | None], ...]:
    """The column's ``[[name, base64 or null], …]``."""
    return tuple((name, None if text is None else base64.b64decode(text)) for name, text in json.loads(stored))
