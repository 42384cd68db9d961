"""Puts dead letters that are due back into the line, and notes the verdicts that their redrives get."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from services.dlq.rows import FIRST
from services.dlq.store import DeadLetterStore, Due
from services.domain.dead_letter import DeadLetter, RetryPolicy, postpone
from services.domain.model import Ticket
from services.runtime import batch_traces, metrics, wire
from services.runtime.kafka import KafkaAway, Message, RecordProducer, home_partition
from services.runtime.log import get_logger
from services.runtime.pace import Pace
from services.runtime.postgres import DatabaseAway

log = get_logger(__name__)

REDRIVE_RECORDS_MAX = 100
"""How many rows one transaction locks."""
RESOLVE_ROWS_MAX = 1_000
REDRIVE_TICK_S = 0.2
RESOLVE_TICK_S = 1.0
SWEEP_ROWS_MAX = 1_000
SWEEP_TICK_S = 5.0
"""Of looking, a part at a time, for parked ones whose redrive has a verdict: only a restored database has such."""
PUBLISH_TIMEOUT_S = 2.0
"""Of the producer's appends: they happen inside a transaction that the server ends after 3 s of silence."""


class RedriveScheduler:
    """Redrives and resolves, beside any number of others: rows that another has locked are left to it."""

    def __init__(
        self,
        store: DeadLetterStore,
        producer: RecordProducer,
        line_topic: str,
        partition_count: int,
        policy: RetryPolicy,
        clock_us: Callable[[], int],
    ) -> None:
        """`producer` must give up within PUBLISH_TIMEOUT_S; the policy's backoff also is of what can't be published."""
        self._store = store
        self._producer = producer
        self._line_topic = line_topic
        self._partition_count = partition_count
        self._policy = policy
        self._clock_us = clock_us
        self._refused: KafkaAway | None = None
        self._shelved = False
        self._swept = FIRST

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping`. Away is not broken: whatever fails is tried again after a while."""
        await asyncio.gather(
            self._repeat(self._redrive, REDRIVE_TICK_S, stopping),
            self._repeat(self._resolve, RESOLVE_TICK_S, stopping),
            self._repeat(self._sweep, SWEEP_TICK_S, stopping),
        )

    async def _repeat(self, act: Callable[[], Awaitable[bool]], tick_s: float, stopping: asyncio.Event) -> None:
        """Do it every `tick_s`, at once where it says that there is more, later after a failure."""
        pace = Pace(stopping)
        while not stopping.is_set():
            try:
                more = await act()
                pace.succeeded()
            except (KafkaAway, DatabaseAway) as error:
                log.warning("redriving_interrupted", error=f"{type(error).__name__}: {error}")
                self._shelved = self._shelved and not isinstance(error, DatabaseAway)
                await pace.failed()
            except Exception:
                # Not foreseen; nothing was committed, so the next try starts from the same rows.
                log.exception("redriving_failed")
                await pace.failed()
            else:
                if not more:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stopping.wait(), timeout=tick_s)

    async def _redrive(self) -> bool:
        if not self._shelved:
            await self._shelve()
        await self._producer.start()  # here, for inside the transaction there is no time to connect
        self._refused = None
        now_us = self._clock_us()
        count = await self._store.redrive_due(now_us, REDRIVE_RECORDS_MAX, self._publish, self._postpone)
        if self._refused is not None:
            raise self._refused  # what was published is marked by now; for the rest Kafka gets time
        return count == REDRIVE_RECORDS_MAX

    async def _shelve(self) -> None:
        """At the start, and when PostgreSQL was away: it may be an older database now, from before somebody discarded
        what it has as RETRYING. What should have been redriven long ago waits for an operator then."""
        before_us = self._clock_us() - self._policy.age_us_max
        while shelved := await self._store.shelve_overdue(before_us, RESOLVE_ROWS_MAX):
            for ticket in shelved:
                log.warning("dead_letter_shelved", ticket=str(ticket))
        self._shelved = True

    async def _resolve(self) -> bool:
        resolved = await self._store.resolve(RESOLVE_ROWS_MAX)
        _log_resolved(resolved)
        return len(resolved) == RESOLVE_ROWS_MAX

    async def _sweep(self) -> bool:
        resolved, last = await self._store.resolve_parked(self._swept, SWEEP_ROWS_MAX)
        _log_resolved(resolved)
        self._swept = last or FIRST
        return False

    async def _publish(self, due: Sequence[Due]) -> Mapping[Ticket, Ticket]:
        """The new tickets, by the original, of those that the broker has acknowledged."""
        by_partition: defaultdict[int, list[Due]] = defaultdict(list)
        for one in sorted(due, key=lambda one: one.letter.original):  # who came first stays in front
            by_partition[self._target(one)].append(one)
        published: dict[Ticket, Ticket] = {}
        for part in await asyncio.gather(*(self._append(*item) for item in by_partition.items())):
            published.update(part)
        return published

    async def _append(self, partition: int, due: Sequence[Due]) -> Mapping[Ticket, Ticket]:
        messages = [_message(one) for one in due]
        began_ns = time.time_ns()
        try:
            appended = await self._producer.append(self._line_topic, partition, messages)
        except KafkaAway as error:
            # It may be in the line all the same: the same record again then, which the ledger settles as REPEATED.
            log.warning("redrives_postponed", partition=partition, count=len(due), error=str(error))
            self._refused = error
            return {}
        metrics.REDRIVES.add(len(due))
        log.info("dead_letters_redriven", partition=partition, count=len(due), first=str(due[0].letter.original))
        tickets = [Ticket(partition, one.offset) for one in appended]
        for one, ticket in zip(due, tickets, strict=True):
            batch_traces.redriven(self._line_topic, partition, one.content.headers, ticket.offset, began_ns)
            log.debug("redriven", ticket=str(one.letter.original), redrive_ticket=str(ticket))
        return {one.letter.original: ticket for one, ticket in zip(due, tickets, strict=True)}

    def _target(self, due: Due) -> int:
        """Where the record belongs: with its coupon, or where it was if nobody can tell its coupon."""
        if due.coupon_partition is not None:
            return due.coupon_partition
        coupon_id = due.content.coupon_id if due.correction is None else due.correction.coupon_id
        if coupon_id is not None:
            return home_partition(coupon_id.encode(), self._partition_count)
        return due.letter.original.partition

    def _postpone(self, letter: DeadLetter) -> DeadLetter:
        return postpone(letter, self._policy.backoff, now_us=self._clock_us(), random01=random.random())


def _log_resolved(tickets: Sequence[Ticket]) -> None:
    metrics.RESOLVED.add(len(tickets))
    for ticket in tickets:
        log.debug("dead_letter_resolved", ticket=str(ticket))
    if tickets:
        log.info("dead_letters_resolved", count=len(tickets), first=str(tickets[0]))


def _message(due: Due) -> Message:
    """Fixed by the row alone, so that a second publication is the very same record."""
    key, value, headers = due.content.key, due.content.value, due.content.headers
    if due.correction is not None:
        key, value, headers = due.correction.coupon_id.encode(), due.correction.value, due.correction.headers
    record_ms = due.content.record_us // 1_000
    return wire.redrive_message(due.letter.original, record_ms, due.letter.attempt_count, key, value, headers)
