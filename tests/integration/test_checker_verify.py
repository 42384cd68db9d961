"""The checker on real topics and tables, with books that were put there by hand: no service runs."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from checker import Check, Report, TopicError, verify
from checker import audit as checker_audit
from checker.records import ChangeRow, IssuedRow, Record
from checker.topics import extents, read
from services.runtime.kafka import Topics
from stack import Stack
from tests.integration import ledger_world
from tests.unit.checker_world import World, coupon_at

GARBAGE = ((b"x", b""), (b"x", None), (None, b"\xff"))


async def put(stack: Stack, topic: str, records: list[list[Record]]) -> list[list[Record]]:
    """Append the records; returns them as the broker then has them."""
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for partition, line in enumerate(records):
            for record in line:
                await producer.send(
                    topic, key=record.key, value=record.value, headers=list(record.headers), partition=partition
                )
        await producer.flush()
    finally:
        await producer.stop()
    found = (await extents(stack.kafka_bootstrap, [topic]))[topic]
    return [
        [record async for batch in read(stack.kafka_bootstrap, topic, partition, extent) for record in batch]
        for partition, extent in enumerate(found)
    ]


def time(micros: int | None) -> datetime | None:
    return None if micros is None else datetime.fromtimestamp(micros / 1e6, UTC)


async def fill(connection: asyncpg.Connection[Any], world: World, topics: Topics) -> None:
    for row in world.rows:
        place = (row.ticket.partition, row.ticket.offset)
        times = (time(row.accepted_us), time(row.settled_us))
        if isinstance(row, IssuedRow):
            values = (row.user_id, row.coupon_id, row.request_id, row.sequence, *place, row.redrive_of, *times)
            await insert(connection, "user_coupon", values)
        elif isinstance(row, ChangeRow):
            stored = (row.coupon_id, row.request_id, b"hash", row.result, row.outcome, row.caller, row.redrive_of)
            await insert(connection, "coupon_change", (*place, *stored, *times))
        else:
            ids = (row.coupon_id, row.user_id, row.request_id)
            why = (row.reason, row.detail, row.issued_ticket, row.issued_sequence, row.redrive_of)
            await insert(connection, "rejected_issue", (*place, *ids, *why, *times))
    for coupon in world.coupon_rows:
        stock = (coupon.display_name, coupon.total, coupon.remaining, coupon.issued)
        window = (time(coupon.start_us), time(coupon.end_us), coupon.switch, coupon.etag)
        times = (time(coupon.create_us), time(coupon.update_us))
        await insert(connection, "coupon", (coupon.coupon_id, coupon.partition, *stock, *window, *times))
    now = datetime.now(UTC)
    for letter in world.dead_letter_table:
        headers = json.dumps(
            [[name, None if text is None else base64.b64encode(text).decode()] for name, text in letter.headers]
        )
        head = (letter.ticket.partition, letter.ticket.offset, letter.state, letter.reason, "", None, None, None, None)
        body = (1, letter.key, letter.value, headers, None, now, now, now, None, 1)
        await insert(connection, "dead_letter", (*head, *body))
    for topic, logs in ((topics.line, world.lines), (topics.dlq, world.dlq)):
        for partition, log in enumerate(logs):
            await insert(connection, "ledger_progress", (topic, partition, len(log), len(log), 0, None, None, None))


async def insert(connection: asyncpg.Connection[Any], table: str, values: tuple[Any, ...]) -> None:
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    await connection.execute(f"INSERT INTO {table} VALUES ({places})", *values)


class Standing:
    """Topics and tables of a settled sale: one coupon of 2 a partition, three people, garbage of three kinds."""

    def __init__(self, stack: Stack, topics: Topics, dsn: str) -> None:
        self.stack, self.topics, self.dsn = stack, topics, dsn

    async def build(self) -> None:
        partitions = len((await extents(self.stack.kafka_bootstrap, [self.topics.line]))[self.topics.line])
        draft = World(partitions=partitions, line_topic=self.topics.line)
        for partition in range(partitions):
            coupon_id = coupon_at(partition, partitions=partitions)
            draft.create(coupon_id, 2)
            for number, user_id in enumerate(("ann", "bob", "cyd", "ann")):
                draft.issue(coupon_id, user_id, number)
        for key, value in GARBAGE:
            draft.put(0, key, value, (("ce_type", b"coupon.v1.CouponIssueRequestedEvent"), ("odd", None)))
        world = World(partitions=partitions, line_topic=self.topics.line)
        world.lines = await put(self.stack, self.topics.line, draft.lines)
        world.settle()
        world.dlq = await put(self.stack, self.topics.dlq, world.dlq)
        await put(self.stack, self.topics.outcomes, world.published)
        connection = await asyncpg.connect(self.dsn)
        try:
            await fill(connection, world, self.topics)
        finally:
            await connection.close()

    async def execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def report(self) -> Report:
        return await verify(self.stack.kafka_bootstrap, self.dsn, topic_prefix=self.topics.prefix, drain_timeout_s=0)


@pytest.fixture
async def standing(stack: Stack, topics: Topics, database: str) -> Standing:
    system = Standing(stack, topics, database)
    await system.build()
    return system


def broken(report: Report) -> set[Check]:
    return {finding.check for result in report.results for finding in result.examples}


async def test_real_topics_and_tables_that_agree_break_no_promise(standing: Standing) -> None:
    report = await standing.report()
    assert report.held, [str(finding) for result in report.results for finding in result.examples]
    counts = report.counts
    assert (counts.records, counts.issued, counts.parked, counts.changes) == (23, 8, 3, 4)
    assert counts.rejected == {"SOLD_OUT": 4, "ALREADY_ISSUED": 4}


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("DELETE FROM user_coupon WHERE ticket_partition = 1 AND ticket_offset = 1", Check.NO_ROW),
        ("DELETE FROM coupon_change WHERE ticket_partition = 1", Check.NO_ROW),
        ("UPDATE user_coupon SET ticket_offset = 77 WHERE ticket_partition = 1 AND ticket_offset = 1", Check.NO_ROW),
        ("UPDATE user_coupon SET ticket_partition = 9 WHERE ticket_partition = 1", Check.ROW_WITHOUT_RECORD),
        ("UPDATE coupon SET total = total + 1, remaining = remaining + 1", Check.COUPON_DIFFERS),
        ("UPDATE rejected_issue SET reason = 'PAUSED' WHERE reason = 'SOLD_OUT'", Check.WRONG_VERDICT),
        ("UPDATE rejected_issue SET accepted_at = accepted_at + interval '1 ms'", Check.WRONG_VERDICT),
        ("DELETE FROM dead_letter", Check.DEAD_LETTER_NOT_STORED),
        ("""UPDATE dead_letter SET headers = '[["odd", "AA=="]]'""", Check.DEAD_LETTER_DIFFERS),
        ("UPDATE ledger_progress SET next_offset = next_offset - 1", Check.NOT_DRAINED),
        ("UPDATE ledger_progress SET published_offset = 0", Check.NOT_DRAINED),
        ("DELETE FROM ledger_progress", Check.NOT_DRAINED),
    ],
)
async def test_planted_bug_in_the_tables_is_caught(standing: Standing, statement: str, check: Check) -> None:
    await standing.execute(statement)
    assert check in broken(await standing.report())


async def test_repeated_outcomes_are_lawful_and_new_ones_are_not(standing: Standing) -> None:
    bootstrap, outcomes = standing.stack.kafka_bootstrap, standing.topics.outcomes
    extent = (await extents(bootstrap, [outcomes]))[outcomes][1]
    records = [record async for batch in read(bootstrap, outcomes, 1, extent) for record in batch]
    await put(standing.stack, outcomes, [[], records])
    report = await standing.report()
    assert report.held
    assert report.counts.outcomes_repeated == len(records)
    stray = Record(1, 0, 0, b"k", b"", (("ce_id", f"{standing.topics.line}/1/99".encode()),))
    await put(standing.stack, outcomes, [[], [stray]])
    assert broken(await standing.report()) == {Check.OUTCOME_WITHOUT_ROW}


async def test_missing_topic_is_said(stack: Stack, database: str) -> None:
    with pytest.raises(TopicError, match="does not exist"):
        await verify(stack.kafka_bootstrap, database, topic_prefix="nobody.", drain_timeout_s=0)


@pytest.mark.parametrize(("statement", "status"), [("SELECT 1", 0), ("DELETE FROM dead_letter", 1)])
async def test_command_says_by_its_exit_status_whether_all_held(
    standing: Standing, statement: str, status: int
) -> None:
    await standing.execute(statement)
    command = [sys.executable, "-m", "checker", "--kafka", standing.stack.kafka_bootstrap, "--postgres", standing.dsn]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--topic-prefix", standing.topics.prefix, "--json", "--drain-timeout", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    report = json.loads(done.stdout)
    assert report["held"] is (status == 0)
    assert report["counts"]["records"] == 23


async def test_a_line_that_grows_while_it_is_compared_is_compared_again(
    stack: Stack, database: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by redrives, which come when nobody calls any more."""
    system = ledger_world.World(stack, database, topics)
    rounds = 0

    async def audit(*arguments: Any) -> Report:
        nonlocal rounds
        rounds += 1
        report = await checker_audit.audit(*arguments)
        if rounds == 1:
            await system.settle(ledger_world.issue("b"))
        return report

    try:
        await system.settle(ledger_world.create(2), ledger_world.issue("a"))
        # The package's own attribute of that name is the function.
        monkeypatch.setattr(sys.modules["checker.verify"], "audit", audit)
        report = await verify(stack.kafka_bootstrap, database, topic_prefix=topics.prefix, drain_timeout_s=2)
    finally:
        await system.close()
    assert [str(finding) for finding in report.findings] == []
    assert (rounds, report.counts.records, report.counts.issued) == (2, 3, 2)
