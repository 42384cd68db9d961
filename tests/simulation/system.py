"""The whole system in memory, in small steps that may fail: line, tables, ledgers, dlq, and all that can be lost.

What decides is the real thing: `wire.decode`, `decide`, `park_known`, the dead letter's machine and the messages of
`wire`. What is played is the other side: Kafka as lists that only grow, PostgreSQL as values that change at COMMIT,
processes as objects whose memory a crash empties. A step that is not taken is a process that is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from checker.findings import Report
from checker.history import Asked, History, Told
from checker.records import CouponRow, DeadLetterRow
from checker.records import Record as CheckedRecord
from checker.records import Ticket as CheckedTicket
from services.domain import dead_letter, decide
from services.domain.dead_letter import DeadLetter, DeadLetterState, Failure, RetryPolicy
from services.domain.model import (
    Changed,
    Coupon,
    CouponId,
    Decision,
    Grant,
    Issued,
    IssueRequest,
    LineRecord,
    LineState,
    Parked,
    ParkReason,
    PastChange,
    Rejected,
    RequestId,
    Ticket,
    UserId,
    Verdict,
)
from services.domain.retry import Backoff
from services.runtime import kafka, wire
from services.runtime.kafka import Message, Record
from tests.unit.checker_world import LINE_TOPIC, START_MS, World, row_of

HOME = 0
"""The one partition."""
POLICY = RetryPolicy(attempts_max=3, backoff=Backoff(0.001, 0.004), age_us_max=60_000)


@dataclass(frozen=True)
class Flaws:
    """What a mutation breaks. The system of the tests has none of them."""

    no_compare_and_set: bool = False
    offset_before_transaction: bool = False
    outcomes_before_commit: bool = False
    dead_letters_not_read: bool = False
    nothing_published_again: bool = False
    unknown_is_accepted: bool = False
    redrive_noted_first: bool = False


class Fate(Enum):
    """How a step to another side ends. UNKNOWN: the answer is lost; DONE or not is then open to the one who asked."""

    DONE = "done"
    UNKNOWN_DONE = "unknown, done"
    UNKNOWN_LOST = "unknown, lost"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"

    @property
    def happens(self) -> bool:
        return self in (Fate.DONE, Fate.UNKNOWN_DONE, Fate.CRASH_AFTER)


class BooksWrong(AssertionError):
    """A key or a check of the tables has refused rows: nothing that the ledger should ever try."""


@dataclass
class Tables:
    """All that is committed. `rows` holds the three tables of verdicts."""

    coupons: dict[CouponId, Coupon] = field(default_factory=dict)
    rows: list[Verdict] = field(default_factory=list)
    next_offset: int = 0
    published_offset: int = 0
    dlq_offset: int = 0
    filed_offset: int = 0
    letters: dict[Ticket, DeadLetter] = field(default_factory=dict)
    contents: dict[Ticket, wire.DeadLetterRecord] = field(default_factory=dict)
    failures: set[tuple[Ticket, Ticket]] = field(default_factory=set)

    def copy(self) -> Tables:
        return replace(
            self,
            coupons=dict(self.coupons),
            rows=list(self.rows),
            letters=dict(self.letters),
            contents=dict(self.contents),
            failures=set(self.failures),
        )

    def state(self) -> LineState:
        """What the ledger reads before it decides."""
        grants: dict[tuple[CouponId, UserId], Grant] = {}
        changes: dict[tuple[CouponId, RequestId], PastChange] = {}
        redriven: dict[Ticket, Grant | None] = {}
        for row in self.rows:
            if isinstance(row, Issued):
                won = Grant(row.request_id, row.sequence, Ticket(HOME, row.offset))
                grants[row.coupon_id, row.user_id] = won
                if row.redrive_of is not None:
                    redriven.setdefault(row.redrive_of, won)
            elif isinstance(row, Rejected) and row.redrive_of is not None:
                redriven.setdefault(row.redrive_of, row.grant)
            elif isinstance(row, Changed) and not row.repeated:
                changes[row.coupon_id, row.request_id] = PastChange(row.payload_hash, row.outcome)
        return LineState(HOME, dict(self.coupons), frozenset(), grants, changes, redriven)

    def store(self, decision: Decision) -> None:
        """Insert the verdicts and update the coupons. Raises BooksWrong, as the tables' keys and checks would."""
        for verdict in decision.verdicts:
            for row in self.rows:
                if row.offset == verdict.offset and isinstance(row, Issued | Changed) and type(row) is type(verdict):
                    raise BooksWrong(f"a second row of {verdict.offset}")
                if not (isinstance(row, Issued) and isinstance(verdict, Issued)):
                    continue
                same = row.user_id == verdict.user_id or row.sequence == verdict.sequence
                if same and row.coupon_id == verdict.coupon_id:
                    raise BooksWrong(f"{verdict} beside {row}")
            self.rows.append(verdict)
        for coupon in decision.coupons:
            if coupon.remaining < 0 or coupon.total != coupon.remaining + coupon.issued:
                raise BooksWrong(f"{coupon}")
            self.coupons[coupon.coupon_id] = coupon


@dataclass
class _Transaction:
    decision: Decision
    end: int
    published_offset: int
    dlq_offset: int


@dataclass
class _Batch:
    records: Sequence[Record]
    verdicts: Sequence[Verdict]

    @property
    def end(self) -> int:
        return self.records[-1].offset + 1


class Ledger:
    """One process's work on the partition, in the steps between which it can be killed."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.crash()

    def crash(self) -> None:
        """Everything in memory is gone; PostgreSQL rolls back what was open."""
        self._system.roll_back(self)
        self.position: int | None = None
        self._known: dict[int, wire.DeadLetterRecord] = {}
        self._published_offset = 0
        self._dlq_offset = 0
        self._again: tuple[int, int, set[int]] | None = None
        self._read: list[tuple[Record, LineRecord]] = []
        self.transaction: _Transaction | None = None
        self._unpublished: list[_Batch] = []
        self._letters_out = False

    @property
    def is_publishing(self) -> bool:
        """Whether it has verdicts that are committed and not published."""
        return bool(self._unpublished)

    def step(self, fate: Fate, size: int, cursed: Callable[[int], bool]) -> None:
        """The next thing that it does. `size` is how many records it reads; at `cursed` ones it fails by itself."""
        if fate is Fate.CRASH_BEFORE:
            self.crash()
        elif self.position is None:
            self._take_position()
        elif self._again is not None:
            self._publish_again(fate)
        elif self.transaction is not None:
            self._commit(fate)
        elif len(self._unpublished) == 2 or (self._unpublished and not self._has_more()):
            self._publish(fate)
        elif self._read:
            self._begin(fate)
        elif self._has_more():
            self._read_batch(size, cursed)
        else:
            self._acknowledge(fate)
        if fate is Fate.CRASH_AFTER:
            self.crash()

    def _has_more(self) -> bool:
        return bool(self._read) or (self.position is not None and self.position < len(self._system.line))

    def _take_position(self) -> None:
        tables, system = self._system.tables, self._system
        self.position = tables.next_offset
        published: set[int] = set()
        end = len(system.dlq)
        for record in [] if system.flaws.dead_letters_not_read else system.dlq[tables.dlq_offset : end]:
            found = wire.parse_dead_letter(record)
            assert found is not None
            if found.failed.offset >= self.position:
                self._known[found.failed.offset] = found
            else:
                published.add(found.failed.offset)
        self._dlq_offset = tables.dlq_offset if self._known else end
        self._published_offset = tables.published_offset
        self._again = (tables.published_offset, self.position, published)

    def _publish_again(self, fate: Fate) -> None:
        assert self._again is not None
        begin, end, published = self._again
        rows = {row.offset: row for row in self._system.tables.rows}
        records = [] if self._system.flaws.nothing_published_again else self._system.line[begin:end]
        missing = [record.offset for record in records if record.offset not in rows]
        if missing and self._system.tables.next_offset != self.position:
            self.crash()  # the database was restored meanwhile
            return
        if missing:
            raise BooksWrong(f"halted: settled without a verdict: {missing}")
        if self._append(fate, records, [rows[record.offset] for record in records], published):
            self._again, self._published_offset = None, end

    def _read_batch(self, size: int, cursed: Callable[[int], bool]) -> None:
        assert self.position is not None
        for record in self._system.line[self.position : self.position + size]:
            ((decoded,), _) = wire.decode_all([record])
            known = self._known.get(record.offset)
            if known is not None:
                decoded = decide.park_known(decoded, known.reason, known.message)
            elif isinstance(decoded, IssueRequest) and cursed(record.offset):
                decoded = decide.park(decoded, ParkReason.INTERNAL, "boom")
            self._read.append((record, decoded))

    def _begin(self, fate: Fate) -> None:
        """The compare-and-set, whose row lock lasts until the transaction ends; and the decision behind it."""
        system, end = self._system, self._read[-1][0].offset + 1
        if not system.lock(self):
            return
        if system.tables.next_offset != self.position and not system.flaws.no_compare_and_set:
            self.crash()  # overtaken: from the table's position again
            return
        decision = system.decide(system.tables.state(), [decoded for _, decoded in self._read])
        self.transaction = _Transaction(decision, end, self._published_offset, self._dlq_offset)
        if system.flaws.offset_before_transaction:
            system.tables.next_offset = end
        if system.flaws.outcomes_before_commit:
            self._append(Fate.DONE, [record for record, _ in self._read], decision.verdicts, set())

    def _commit(self, fate: Fate) -> None:
        assert self.transaction is not None
        if fate.happens:
            self._system.commit(self, self.transaction)
        if fate is Fate.UNKNOWN_DONE or not fate.happens:
            self.crash()
            return
        batch = _Batch([record for record, _ in self._read], self.transaction.decision.verdicts)
        self.position, self.transaction, self._read = self.transaction.end, None, []
        self._known = {offset: found for offset, found in self._known.items() if offset >= batch.end}
        if self._system.flaws.outcomes_before_commit:
            self._published_offset = batch.end
        else:
            self._unpublished.append(batch)

    def _publish(self, fate: Fate) -> None:
        batch = self._unpublished[0]
        if self._append(fate, batch.records, batch.verdicts, set()):
            self._unpublished.pop(0)
            self._published_offset = batch.end

    def _append(self, fate: Fate, records: Sequence[Record], verdicts: Sequence[Verdict], published: set[int]) -> bool:
        """Dead letters, then outcomes, in two steps; whether both are acknowledged by now."""
        system = self._system
        parked = [
            (record, verdict)
            for record, verdict in zip(records, verdicts, strict=True)
            if isinstance(verdict, Parked) and not verdict.known and record.offset not in published
        ]
        if parked and not self._letters_out:
            if fate.happens:
                for record, verdict in parked:
                    letter = wire.dead_letter_message(LINE_TOPIC, HOME, record, verdict.reason, verdict.message)
                    system.append(system.dlq, letter)
            if fate is not Fate.DONE:
                self.crash()
                return False
            self._letters_out = True
            return False
        if fate.happens:
            for record, told in zip(records, (wire.outcome(HOME, verdict) for verdict in verdicts), strict=True):
                message = wire.outcome_message(LINE_TOPIC, HOME, told, record.header(kafka.TRACEPARENT))
                system.append(system.outcomes, message)
        if fate is not Fate.DONE:
            self.crash()
            return False
        if parked and not self._known:
            self._dlq_offset = len(system.dlq)
        self._letters_out = False
        return True

    def _acknowledge(self, fate: Fate) -> None:
        tables = self._system.tables
        if self._system.locked_by not in (None, self):
            return
        if tables.next_offset != self.position:
            self.crash()
        elif fate.happens:
            tables.published_offset, tables.dlq_offset = self._published_offset, self._dlq_offset


class System:
    """The topics, the tables, and what happens to them."""

    def __init__(self, flaws: Flaws, *, ledgers: int = 2) -> None:
        self.flaws = flaws
        self.decide = decide.decide
        self.now_ms = START_MS
        self.line: list[Record] = []
        self.dlq: list[Record] = []
        self.outcomes: list[Record] = []
        self.delayed: list[Message] = []
        self.tables = Tables()
        self.backup = Tables()
        self.locked_by: Ledger | None = None
        self.ledgers = [Ledger(self) for _ in range(ledgers)]
        self.history = History()

    # Kafka

    def append(self, log: list[Record], message: Message) -> int:
        self.now_ms += 1
        log.append(Record(len(log), self.now_ms, message.key, message.value, tuple(message.headers)))
        return len(log) - 1

    def send(self, coupon_id: str, user_id: str, request_id: str, message: Message, fate: Fate, *, late: bool) -> None:
        """A caller's request through an issuer. Whatever is not acknowledged may be in the line: now, later, never."""
        self.now_ms += 1
        key = coupon_id, user_id, request_id
        asked = self.history.asked.setdefault(key, Asked(*key, self.now_ms * 1_000_000))
        asked.calls += 1
        self.history.calls += 1
        sent_ms = self.now_ms
        offset = len(self.line)
        if fate.happens and late and fate is not Fate.DONE:
            self.delayed.append(message)
        elif fate.happens:
            offset = self.append(self.line, message)
        if fate is Fate.DONE or self.flaws.unknown_is_accepted:
            self.now_ms += 1
            told = Told(asked, sent_ms * 1_000_000, self.now_ms * 1_000_000, "ACCEPTED", None, None)
            self.history.told.setdefault(CheckedTicket(HOME, offset), []).append(told)

    # PostgreSQL

    def lock(self, ledger: Ledger) -> bool:
        """The lock of the progress's row; False where another transaction has it."""
        if self.locked_by is None or self.flaws.no_compare_and_set:
            self.locked_by = ledger
        return self.locked_by is ledger

    def commit(self, ledger: Ledger, transaction: _Transaction) -> None:
        self.tables.store(transaction.decision)
        self.tables.next_offset = transaction.end
        self.tables.published_offset = transaction.published_offset
        self.tables.dlq_offset = transaction.dlq_offset
        self.roll_back(ledger)

    def roll_back(self, ledger: Ledger) -> None:
        if self.locked_by is ledger:
            self.locked_by = None

    def end_transaction(self) -> None:
        """PostgreSQL ends a session that holds its lock for too long: its ledger hears of it when it comes back."""
        if self.locked_by is not None:
            self.locked_by.crash()

    def back_up(self) -> None:
        self.backup = self.tables.copy()

    def restore(self) -> None:
        """The database is the older copy; open transactions are gone with the server.

        Assumed of whoever restores: ledgers that are frozen, having been overtaken or between COMMIT and publication,
        are ended first. When they wake up they may otherwise decide or publish, beside a better release and from the
        restored tables, what differs by their own failures (INTERNAL) alone: the compare-and-set can't tell that the
        position which they remember has been reached for a second time.
        """
        self.end_transaction()
        for ledger in self.ledgers:
            if ledger.position != self.tables.next_offset or ledger.is_publishing:
                ledger.crash()
        self.tables = self.backup.copy()

    # The dlq

    def file(self, size: int) -> None:
        """Store the next dead letters of the DLQ topic: one transaction."""
        tables = self.tables
        for record in self.dlq[tables.filed_offset : tables.filed_offset + size]:
            tables.filed_offset = record.offset + 1
            found = wire.parse_dead_letter(record)
            assert found is not None
            key = found.original, found.failed
            if key in tables.failures:
                continue
            tables.failures.add(key)
            failure = Failure(found.original, found.failed, found.reason, found.message, record.timestamp_ms * 1000)
            if found.failed == found.original or found.original not in tables.contents:
                tables.contents[found.original] = found
            filed = dead_letter.file(
                tables.letters.get(found.original), failure, POLICY, now_us=self.now_ms * 1000, random01=0.5
            )
            tables.letters[found.original] = filed.letter

    def redrive(self, fate: Fate) -> None:
        """Publish the first dead letter that is due, then mark it; a crash between the two publishes it again."""
        tables = self.tables
        for original, letter in sorted(tables.letters.items()):
            due_us = letter.next_attempt_us
            if letter.state is not DeadLetterState.RETRYING or due_us is None or due_us > self.now_ms * 1000:
                continue
            content = tables.contents[original]
            message = wire.redrive_message(
                original,
                content.record_timestamp_ms,
                letter.attempt_count,
                content.key,
                content.value,
                content.original_headers,
            )
            if self.flaws.redrive_noted_first:
                tables.letters[original] = dead_letter.redrive(letter, Ticket(HOME, len(self.line)))
            if not fate.happens:
                if fate is Fate.UNKNOWN_LOST and not self.flaws.redrive_noted_first:
                    tables.letters[original] = self._postponed(letter)
                return
            offset = self.append(self.line, message)
            if fate is Fate.DONE:
                tables.letters[original] = dead_letter.redrive(letter, Ticket(HOME, offset))
            elif fate is Fate.UNKNOWN_DONE:
                tables.letters[original] = self._postponed(letter)
            return

    def _postponed(self, letter: DeadLetter) -> DeadLetter:
        return dead_letter.postpone(letter, POLICY.backoff, now_us=self.now_ms * 1000, random01=0.5)

    def resolve(self) -> None:
        """Note the verdicts that redrives have got."""
        for row in self.tables.rows:
            if isinstance(row, Parked) or row.redrive_of is None:
                continue
            letter = self.tables.letters.get(row.redrive_of)
            if letter is not None and letter.state is DeadLetterState.REDRIVEN:
                self.tables.letters[row.redrive_of] = dead_letter.resolve(letter, Ticket(HOME, row.offset))

    # The end

    def drain(self) -> None:
        """Everything is well again, and stays so: all processes start anew and work until nothing is left to do."""
        while self.delayed:
            self.append(self.line, self.delayed.pop())
        for ledger in self.ledgers:
            ledger.crash()
        ledger = Ledger(self)
        for _ in range(1_000):
            before = len(self.line), len(self.dlq), self.tables.copy()
            for _ in range(8):
                ledger.step(Fate.DONE, 100, lambda offset: False)
            self.file(100)
            self.redrive(Fate.DONE)
            self.resolve()
            self.now_ms += 5
            if before == (len(self.line), len(self.dlq), self.tables) and self._is_at_rest():
                return
        raise AssertionError("it does not come to rest")

    def _is_at_rest(self) -> bool:
        tables = self.tables
        return (
            tables.next_offset == tables.published_offset == len(self.line)
            and tables.filed_offset == len(self.dlq)
            and all(letter.state is not DeadLetterState.RETRYING for letter in tables.letters.values())
        )

    async def judge(self) -> Report:
        """What the checker says of the topics and tables. Uses up the history."""
        world = World(partitions=1)
        logs = (world.lines, self.line), (world.dlq, self.dlq), (world.published, self.outcomes)
        for checked, log in logs:
            checked[HOME] = [CheckedRecord(HOME, *record) for record in log]
        world.rows = sorted((row_of(HOME, row) for row in self.tables.rows), key=lambda row: row.ticket)
        world.coupon_rows = [
            CouponRow(
                one.coupon_id,
                one.partition,
                one.display_name,
                one.total,
                one.remaining,
                one.issued,
                one.start_us,
                one.end_us,
                one.switch.value,
                one.etag,
                one.create_us,
                one.update_us,
            )
            for one in self.tables.coupons.values()
        ]
        world.dead_letter_table = [
            DeadLetterRow(
                CheckedTicket(*original),
                letter.state.value,
                letter.reason.value,
                letter.attempt_count,
                self.tables.contents[original].key,
                self.tables.contents[original].value,
                self.tables.contents[original].original_headers,
            )
            for original, letter in self.tables.letters.items()
        ]
        return await world.report(self.history)
