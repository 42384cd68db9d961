"""ReplayService over the wire, on real engines."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from coupon.v1 import dead_letter_pb2, replay_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from services.domain.model import ParkReason, Ticket
from services.runtime import wire
from services.runtime.settled import settled_between
from stack import Stack
from tests.conftest import TEST_PARTITIONS
from tests.contract.issuing import System, eventually, new_id, refused, request_id, shape
from tests.contract.replaying import COUPON, HOME, OTHER, Job, Replays, eventful
from tests.integration import ledger_world as world

LogRange = replay_pb2.LogRange
Filter = dead_letter_pb2.DeadLetterFilter
INVALID = ("INVALID_ARGUMENT", "INVALID_FIELD", {"BadRequest"})


@pytest.fixture(scope="module")
async def replays(system: System) -> AsyncIterator[Replays]:
    async with system.dlq() as running, Replays(running.address) as client:
        yield client


async def change_row(system: System, statement: str) -> None:
    assert await system.fetch(f"{statement} RETURNING 1"), statement


async def test_an_audit_finds_nothing_in_healthy_books_and_names_each_changed_row(fresh: System) -> None:
    at = await eventful(fresh)
    async with fresh.ledger(), fresh.dlq() as running, Replays(running.address) as replays:
        await fresh.settled()
        await dead_letters_are_filed(fresh)
        assert await replays.audit() == []
        ticket = "ticket_partition = %d AND ticket_offset = %d"

        async def named(statement: str, undo: str) -> list[tuple[str, str, str]]:
            await change_row(fresh, statement)
            found = await replays.audit()
            await change_row(fresh, undo)
            return found

        winner = f"WHERE {ticket % at['user1']}"
        assert await named(
            f"UPDATE user_coupon SET sequence = 77 {winner}", f"UPDATE user_coupon SET sequence = 2 {winner}"
        ) == [(str(at["user1"]), "user_coupon: sequence=2", "user_coupon: sequence=77")]
        # The model is not misled by what it finds: only the row itself is named, not what the ledger told user1 later.
        mine = world.request_id("user1")
        other = world.request_id("another")
        assert await named(
            f"UPDATE user_coupon SET request_id = '{other}' {winner}",
            f"UPDATE user_coupon SET request_id = '{mine}' {winner}",
        ) == [(str(at["user1"]), f"user_coupon: request_id={mine}", f"user_coupon: request_id={other}")]
        refusal = f"WHERE {ticket % at['user4']}"
        assert await named(
            f"UPDATE rejected_issue SET reason = 'PAUSED' {refusal}",
            f"UPDATE rejected_issue SET reason = 'SOLD_OUT' {refusal}",
        ) == [(str(at["user4"]), "rejected_issue: reason=SOLD_OUT", "rejected_issue: reason=PAUSED")]
        change = f"WHERE {ticket % at['updated']}"
        assert await named(
            f"UPDATE coupon_change SET caller = 'mallory' {change}",
            f"UPDATE coupon_change SET caller = 'operator' {change}",
        ) == [(str(at["updated"]), "coupon_change: caller=operator", "coupon_change: caller=mallory")]
        coupon = f"WHERE coupon_id = '{COUPON}'"
        assert await named(
            f"UPDATE coupon SET remaining = remaining + 1, total = total + 1 {coupon}",
            f"UPDATE coupon SET remaining = remaining - 1, total = total - 1 {coupon}",
        ) == [(str(at["adjusted"]), "coupon: total=4 remaining=0", "coupon: total=5 remaining=1")]
        progress = f"WHERE topic = '{fresh.topics.line}' AND partition = {HOME}"
        ((_, expected, found),) = await named(
            f"UPDATE ledger_progress SET last_checksum = last_checksum + 1 {progress}",
            f"UPDATE ledger_progress SET last_checksum = last_checksum - 1 {progress}",
        )
        assert "ledger_progress of the line" in expected
        assert expected != found
        letter = f"WHERE {ticket % at['garbage']}"
        ((named_ticket, _, found),) = await named(
            rf"UPDATE dead_letter SET key = '\x00' {letter}", rf"UPDATE dead_letter SET key = '\x6bff30' {letter}"
        )
        assert (named_ticket, found.split()[1]) == (str(at["garbage"]), "key=00")


async def test_an_audit_names_missing_and_extra_rows_and_is_not_misled_by_them(fresh: System) -> None:
    at = await eventful(fresh)
    async with fresh.ledger(), fresh.dlq() as running, Replays(running.address) as replays:
        await fresh.settled()
        await dead_letters_are_filed(fresh)
        home, end = HOME, (await fresh.ends())[HOME]
        # user1's grant moves to the record of user4, who was refused: one is missing, one is too many.
        moved = at["user4"]
        await change_row(
            fresh,
            f"UPDATE user_coupon SET ticket_offset = {moved.offset} WHERE user_id = 'user1' AND coupon_id = '{COUPON}'",
        )
        await change_row(
            fresh,
            "INSERT INTO rejected_issue (ticket_partition, ticket_offset, reason, accepted_at) "
            f"VALUES ({home}, {end + 5}, 'SOLD_OUT', now())",
        )
        await change_row(
            fresh,
            "INSERT INTO rejected_issue (ticket_partition, ticket_offset, reason, accepted_at) "
            "VALUES (99, 1, 'X', now())",
        )
        await change_row(fresh, f"DELETE FROM coupon WHERE coupon_id = '{OTHER}'")
        found = {ticket: (expected, seen) for ticket, expected, seen in await replays.audit()}
        assert found[str(at["user1"])][0].startswith("user_coupon: user_id=user1")
        assert found[str(at["user1"])][1] == "no row"
        assert found[str(moved)][0] == "no row"
        assert "user_id=user1" in found[str(moved)][1]
        assert found[f"{home}-{end + 5}"][0] == found["99-1"][0] == "no row"
        assert found[str(at["other"])][1] == "no row"  # the coupon's row
        assert len(found) == 5
        # A part of the log, or one coupon, is judged by the model of all that is before it.
        assert await replays.audit(coupon_id=OTHER) == [(str(at["other"]), *found[str(at["other"])])]
        only = {"start_offsets": {home: moved.offset}, "end_offsets": {home: moved.offset + 1}}
        assert await replays.audit(**only) == [(str(moved), *found[str(moved)])]


async def dead_letters_are_filed(system: System) -> None:
    async def filed() -> bool:
        ends = [max(await system.records(system.topics.dlq, p), default=-1) + 1 for p in range(TEST_PARTITIONS)]
        rows = await system.fetch(
            "SELECT partition, next_offset FROM ledger_progress WHERE topic = $1", system.topics.dlq
        )
        read = {row["partition"]: row["next_offset"] for row in rows}
        return all(read.get(partition, 0) >= end for partition, end in enumerate(ends))

    await eventually(filed)


async def test_an_audit_while_traffic_runs_finds_nothing(fresh: System) -> None:
    async with fresh.ledger(), fresh.dlq() as running, Replays(running.address) as replays:
        await fresh.put(fresh.topics.line, HOME, world.create(1_500))
        await fresh.settled()  # else the first audit may find nothing to look at yet
        over = asyncio.Event()

        async def traffic() -> int:
            count = 0
            while not over.is_set():
                part = [world.issue(f"user{number % 2_000}") for number in range(count, count + 50)]
                await fresh.put(fresh.topics.line, HOME, *part, world.garbage(count))
                count += len(part)
            return count

        running_traffic = asyncio.create_task(traffic())
        try:
            for _ in range(2):
                assert await replays.audit() == []
        finally:
            over.set()
            assert await running_traffic > 100


async def test_a_redrive_takes_what_matches_once_and_keeps_to_its_rate(fresh: System) -> None:
    per_s = 20
    async with fresh.dlq(FIRSTCOME_RETRY_ATTEMPTS_MAX="1") as running, Replays(running.address) as replays:
        tickets = await fresh.put(
            fresh.topics.line, HOME, world.create(100), *(world.issue(f"u{n}") for n in range(30))
        )
        garbage = (await fresh.put(fresh.topics.line, HOME, world.garbage()))[0]
        records = await fresh.records(fresh.topics.line, HOME)
        await fresh.put(
            fresh.topics.dlq,
            HOME,
            *(
                wire.dead_letter_message(
                    fresh.topics.line, HOME, records[ticket.offset], ParkReason.INTERNAL, "its ledger had a bug"
                )
                for ticket in tickets[1:]
            ),
        )
        async with fresh.ledger():
            await fresh.settled()
            await dead_letters_are_filed(fresh)
            some = Filter(reason="INTERNAL")
            dry = await replays.run(Job.REDRIVE, dead_letters=some, dry_run=True)
            assert (dry.state, dry.matched_count, dry.done_count) == (Job.SUCCEEDED, 30, 0)
            assert {row["state"] for row in await fresh.fetch("SELECT state FROM dead_letter")} == {"PARKED"}
            began = time.monotonic()
            job = await replays.create(Job.REDRIVE, dead_letters=some, max_per_second=per_s)
            steps = [step async for step in replays.steps(job.name)]
            took_s = time.monotonic() - began
            assert steps[-1].state == Job.SUCCEEDED
            assert (steps[-1].matched_count, steps[-1].done_count, steps[-1].failed_count) == (30, 30, 0)
            assert len(steps) > 2
            assert per_s * (took_s + 1) >= 30
            await all_in_state(fresh, tickets[1:], "RESOLVED")
            actions = await fresh.fetch("SELECT * FROM dead_letter_action WHERE comment = $1", job.name)
            assert Counter((row["caller"], row["action"]) for row in actions) == {("local", "RETRYING"): 30}
            assert len({row["ticket_offset"] for row in actions}) == 30
            times = sorted(row["acted_at"].timestamp() for row in actions)
            assert all(later - earlier >= 0.9 for earlier, later in zip(times, times[per_s:], strict=False))
            # The garbage fails again, and is not this job's to try once more.
            everything = await replays.run(Job.REDRIVE, dead_letters=Filter())
            assert (everything.matched_count, everything.done_count) == (1, 1)
            await all_in_state(fresh, [garbage], "PARKED", failures=2)
            assert await replays.audit() == []


async def all_in_state(system: System, tickets: Sequence[Ticket], state: str, failures: int = 1) -> None:
    async def there() -> bool:
        rows = await system.fetch(
            "SELECT ticket_partition, ticket_offset FROM dead_letter WHERE state = $1 AND attempt_count = $2",
            state,
            failures,
        )
        return {Ticket(*row) for row in rows} >= set(tickets)

    await eventually(there)


async def test_a_cancelled_redrive_stops_where_it_is(fresh: System) -> None:
    async with fresh.ledger(), fresh.dlq() as running, Replays(running.address) as replays:
        await fresh.put(fresh.topics.line, HOME, *(world.garbage(number) for number in range(50)))
        await fresh.settled()
        await dead_letters_are_filed(fresh)
        job = await replays.create(Job.REDRIVE, dead_letters=Filter(), max_per_second=10)
        async for step in replays.steps(job.name):
            if step.done_count:
                break
        cancelled = await replays.cancel(job.name)
        assert cancelled.state == Job.CANCELLED
        assert cancelled.HasField("end_time")
        assert 0 < cancelled.done_count < cancelled.matched_count == 50
        await asyncio.sleep(1.0)  # more than the worker would need for its next step
        assert await replays.get(job.name) == cancelled
        actions = await fresh.fetch("SELECT 1 FROM dead_letter_action WHERE comment = $1", job.name)
        assert len(actions) == cancelled.done_count
        failure = await refused(replays.cancel(job.name))
        assert shape(failure) == ("FAILED_PRECONDITION", "WRONG_STATE", {"PreconditionFailure"})
        assert failure.resource == job.name


async def make_topic(
    stack: Stack, name: str, partitions: int = TEST_PARTITIONS, config: Mapping[str, str] | None = None
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=dict(config or {}))])
    finally:
        await admin.close()


async def outcomes_of_tables(system: System) -> set[tuple[str, int, bytes | None, bytes]]:
    found = set()
    connection = await asyncpg.connect(system.dsn)
    try:
        for partition in range(TEST_PARTITIONS):
            for one in await settled_between(connection, partition, 0, 1 << 40):
                told = one.outcome
                ce_id = f"{system.topics.line}/{partition}/{told.offset}"
                found.add((ce_id, partition, told.key, told.value))
    finally:
        await connection.close()
    return found


async def published(system: System, topic: str) -> list[tuple[str, int, bytes | None, bytes]]:
    found: list[tuple[str, int, bytes | None, bytes]] = []
    for partition in range(TEST_PARTITIONS):
        found += [
            ((record.header("ce_id") or b"").decode(), partition, record.key, record.value or b"")
            for record in (await system.records(topic, partition)).values()
        ]
    return found


async def test_a_new_consumer_of_a_republication_has_what_the_tables_have(fresh: System, stack: Stack) -> None:
    await eventful(fresh)
    async with fresh.ledger(), fresh.dlq() as running, Replays(running.address) as replays:
        await fresh.settled()
        whole, some = (f"{fresh.topics.prefix}{name}" for name in ("whole", "some"))
        for topic in (whole, some):
            await make_topic(stack, topic)
        expected = await outcomes_of_tables(fresh)
        dry = await replays.run(Job.REPUBLISH, target_topic=whole, dry_run=True)
        assert (dry.matched_count, dry.done_count) == (len(expected), 0)
        assert await published(fresh, whole) == []
        job = await replays.run(Job.REPUBLISH, target_topic=whole)
        assert (job.state, job.matched_count, job.done_count) == (Job.SUCCEEDED, len(expected), len(expected))
        found = await published(fresh, whole)
        assert len(found) == len(expected)
        assert set(found) == expected
        assert set(await published(fresh, fresh.topics.outcomes)) == expected
        originals = await fresh.records(fresh.topics.outcomes, HOME)
        assert {record.headers for record in originals.values()} == {
            record.headers for record in (await fresh.records(whole, HOME)).values()
        }
        job = await replays.run(Job.REPUBLISH, target_topic=some, range=LogRange(coupon_id=OTHER), max_per_second=100)
        mine = {one for one in expected if one[2] == OTHER.encode()}
        assert (job.state, job.matched_count, job.done_count) == (Job.SUCCEEDED, len(mine), len(mine))
        assert set(await published(fresh, some)) == mine
        # Verdicts that are not there can't be told: the job says so instead of leaving them out.
        await change_row(fresh, f"DELETE FROM user_coupon WHERE coupon_id = '{COUPON}' AND user_id = 'user0'")
        job = await replays.run(Job.REPUBLISH, target_topic=some)
        assert (job.state, job.error.code) == (Job.FAILED, code_pb2.DATA_LOSS)
        assert "AUDIT" in job.error.message


async def test_a_range_of_time_is_of_the_records_that_came_then(fresh: System) -> None:
    async with fresh.ledger(), fresh.dlq() as running, Replays(running.address) as replays:
        await fresh.put(fresh.topics.line, HOME, world.create(10), world.issue("early"))
        await asyncio.sleep(0.02)
        middle = Timestamp()
        middle.GetCurrentTime()
        await asyncio.sleep(0.02)
        await fresh.put(fresh.topics.line, HOME, world.issue("late"))
        await fresh.settled()
        for log_range, count in (
            (LogRange(), 3),
            (LogRange(end_time=middle), 2),
            (LogRange(start_time=middle), 1),
            (LogRange(start_offsets={HOME: 1}, end_time=middle), 1),
            (LogRange(start_offsets={(HOME + 1) % TEST_PARTITIONS: 0}), 0),
            (LogRange(coupon_id=new_id()), 0),
        ):
            job = await replays.run(Job.AUDIT, range=log_range)
            assert (job.state, job.matched_count, job.done_count, job.difference_count) == (
                Job.SUCCEEDED,
                count,
                count,
                0,
            )


async def test_a_job_is_made_once_for_a_request_id(replays: Replays) -> None:
    mine = request_id()
    first = await replays.create(Job.AUDIT, mine, range=LogRange(coupon_id="nobody"))
    again = await replays.create(Job.AUDIT, mine, range=LogRange(coupon_id="nobody"))
    assert (again.name, again.create_time, again.caller) == (first.name, first.create_time, "local")
    failure = await refused(replays.create(Job.AUDIT, mine, range=LogRange(coupon_id="somebody")))
    assert shape(failure) == INVALID
    assert (failure.fields, failure.metadata) == (["request_id"], {"request_id": mine})
    await replays.ended(first.name)


async def test_jobs_are_listed_newest_first_page_by_page(replays: Replays) -> None:
    names = [(await replays.create(Job.AUDIT, dry_run=True)).name for _ in range(3)]
    for name in names:
        await replays.ended(name)
    seen: list[str] = []
    token = ""
    while len(seen) < len(names):
        page = await replays.page(2, token)
        seen += [job.name for job in page.replay_jobs]
        token = page.next_page_token
    assert set(seen[:3]) == set(names)
    assert seen == sorted(seen, reverse=True)
    failure = await refused(replays.page(-1, "nonsense"))
    assert (shape(failure), set(failure.fields)) == (INVALID, {"page_size", "page_token"})


@pytest.mark.parametrize("call", ["get", "cancel", "watch"])
async def test_an_unknown_job(replays: Replays, call: str) -> None:
    async def answer(name: str) -> None:
        if call == "watch":
            _ = [step async for step in replays.watch(name)]
        else:
            await getattr(replays, call)(name)

    name = "replayJobs/0123456789ab-01234567"
    failure = await refused(answer(name))
    assert shape(failure) == ("NOT_FOUND", "REPLAY_JOB_NOT_FOUND", {"ResourceInfo"})
    assert failure.resource == name
    failure = await refused(answer("replayJobs/nonsense"))
    assert (shape(failure), failure.fields) == (INVALID, ["name"])


BAD_TIME = Timestamp(seconds=10**15)
BAD_JOBS: list[tuple[dict[str, Any], set[str]]] = [
    ({"kind": 0, "max_per_second": -1}, {"kind", "max_per_second"}),
    ({"kind": 77}, {"kind"}),
    ({"kind": Job.REDRIVE, "range": LogRange(), "target_topic": "x"}, {"dead_letters", "range", "target_topic"}),
    (
        {
            "kind": Job.REDRIVE,
            "dead_letters": Filter(
                state=dead_letter_pb2.DeadLetter.RESOLVED,
                reason="BAD",
                coupon_id="a b",
                user_id="\0",
                failed_after=BAD_TIME,
            ),
        },
        {f"dead_letters.{name}" for name in ("state", "reason", "coupon_id", "user_id", "failed_after")},
    ),
    ({"kind": Job.AUDIT, "dead_letters": Filter(), "target_topic": "x"}, {"dead_letters", "target_topic"}),
    (
        {
            "kind": Job.AUDIT,
            "max_per_second": 10**7,
            "range": LogRange(
                start_time=Timestamp(seconds=2),
                end_time=Timestamp(seconds=1),
                start_offsets={0: -1, 4: 0, 1: 5},
                end_offsets={1: 4},
                coupon_id="a/b",
            ),
        },
        {
            "max_per_second",
            "range.end_time",
            "range.start_offsets[0]",
            "range.start_offsets[4]",
            "range.end_offsets[1]",
            "range.coupon_id",
        },
    ),
    ({"kind": Job.REPUBLISH}, {"target_topic"}),
    ({"kind": Job.REPUBLISH, "target_topic": "no topic"}, {"target_topic"}),
    ({"kind": Job.REPUBLISH, "target_topic": "not-there"}, {"target_topic"}),
    ({"kind": Job.REPUBLISH, "target_topic": "other.coupon.issue-requests.v1"}, {"target_topic"}),
    ({"kind": Job.REPUBLISH, "target_topic": "coupon.issue-requests.v1.dlq"}, {"target_topic"}),
]


@pytest.mark.parametrize(("job", "fields"), BAD_JOBS, ids=range(len(BAD_JOBS)))
async def test_every_bad_field_is_named_at_once(replays: Replays, job: dict[str, Any], fields: set[str]) -> None:
    asked = replay_pb2.CreateReplayJobRequest(replay_job=Job(**job), request_id="x")
    failure = await refused(replays.stub.CreateReplayJob(asked, timeout=10))
    assert shape(failure) == INVALID
    assert set(failure.fields) == {"request_id", *(f"replay_job.{name}" for name in fields)}


async def test_topics_that_would_not_keep_the_outcomes_are_refused(
    replays: Replays, system: System, stack: Stack
) -> None:
    few, compacted = (f"{system.topics.prefix}{name}" for name in ("few", "compacted"))
    await make_topic(stack, few, 1)
    await make_topic(stack, compacted, config={"cleanup.policy": "compact", "max.message.bytes": "1000"})
    for topic, faults in ((few, 1), (compacted, 2), (system.topics.outcomes, 1)):
        failure = await refused(replays.create(Job.REPUBLISH, target_topic=topic))
        assert (shape(failure), failure.fields) == (INVALID, ["replay_job.target_topic"] * faults)


async def test_what_others_take_or_hold_meanwhile_is_not_done_twice_and_not_forgotten(fresh: System) -> None:
    async with fresh.ledger(), fresh.dlq() as running, Replays(running.address) as replays:
        first, second, third = await fresh.put(fresh.topics.line, HOME, *(world.garbage(number) for number in range(3)))
        await all_in_state(fresh, [first, second, third], "PARKED")
        held = await asyncpg.connect(fresh.dsn)
        at = "WHERE ticket_partition = $1 AND ticket_offset = $2"
        try:
            async with held.transaction():
                await held.execute(f"UPDATE dead_letter SET state = 'DISCARDED' {at}", *first)
                await held.execute(f"SELECT 1 FROM dead_letter {at} FOR UPDATE", *second)
                job = await replays.create(Job.REDRIVE, dead_letters=Filter())
                await all_in_state(fresh, [third], "PARKED", failures=2)
                assert (await replays.get(job.name)).done_count == 1
            ended = await replays.ended(job.name)
        finally:
            await held.close()
        assert (ended.matched_count, ended.done_count, ended.failed_count) == (3, 2, 1)
        await all_in_state(fresh, [second], "PARKED", failures=2)
        await all_in_state(fresh, [first], "DISCARDED")
