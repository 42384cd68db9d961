"""Replay jobs when the dlq that works on them dies, or freezes and wakes up again, with real dlq processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from coupon.v1 import dead_letter_pb2

from services.dlq.replay.job import JobLost
from services.dlq.replay.store import Asked, JobStore
from services.domain.model import ParkReason, Ticket
from services.runtime import wire
from services.runtime.postgres import create_engine
from stack import ServiceProcess, Stack, free_port
from tests.contract.issuing import System, eventually
from tests.contract.replaying import HOME, Job, Replays
from tests.contract.test_replay import all_in_state, dead_letters_are_filed, make_topic, outcomes_of_tables, published
from tests.integration import ledger_world as world

LETTERS = 200
PER_S = 50
"""The jobs take four seconds, in which both must have been seen at work."""


@pytest.fixture
async def dlqs(stack: Stack, fresh: System, tmp_path: Path) -> AsyncIterator[dict[int, str]]:
    """Two dlq processes; their addresses by process id."""
    made: list[ServiceProcess] = []
    addresses: list[str] = []
    for number in range(2):
        listen, health = free_port(), free_port()
        addresses.append(f"127.0.0.1:{listen}")
        env = fresh.environ(
            FIRSTCOME_LISTEN=addresses[-1],
            FIRSTCOME_HEALTH_LISTEN=f"127.0.0.1:{health}",
            FIRSTCOME_METRICS_LISTEN=f"127.0.0.1:{free_port()}",
            FIRSTCOME_RETRY_ATTEMPTS_MAX="1",
        )
        made.append(ServiceProcess("dlq", env, log_path=tmp_path / f"dlq-{number}.log", health_port=health))
    try:
        for process in made:
            process.start()
        for process in made:
            await asyncio.to_thread(process.wait_ready)
        yield {process.pid: address for process, address in zip(made, addresses, strict=True)}
    finally:
        for process in made:
            if process.running:
                process.kill(signal.SIGCONT)
            await asyncio.to_thread(process.stop)


async def parked(system: System) -> list[Ticket]:
    """Requests that a ledger failed on for no reason of theirs, parked by now."""
    line, dlq = system.topics.line, system.topics.dlq
    tickets = await system.put(line, HOME, world.create(LETTERS), *(world.issue(f"u{n}") for n in range(LETTERS)))
    records = await system.records(line, HOME)
    failed = [records[ticket.offset] for ticket in tickets[1:]]
    told = [wire.dead_letter_message(line, HOME, record, ParkReason.INTERNAL, "a bug") for record in failed]
    await system.put(dlq, HOME, *told)
    return tickets[1:]


async def worker_of(system: System, name: str) -> int:
    (row,) = await system.fetch("SELECT worker FROM replay_job WHERE id = $1", name.partition("/")[2])
    return int(row["worker"].partition(":")[2])


@pytest.mark.parametrize("accident", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_another_dlq_takes_over_and_everything_is_done_once(
    stack: Stack, fresh: System, dlqs: dict[int, str], accident: signal.Signals
) -> None:
    target = f"{fresh.topics.prefix}again"
    await make_topic(stack, target)
    letters = await parked(fresh)
    async with fresh.ledger():
        await fresh.settled()
        await dead_letters_are_filed(fresh)
        await all_in_state(fresh, letters, "PARKED")
        expected = await outcomes_of_tables(fresh)
        async with Replays(next(iter(dlqs.values()))) as replays:
            job = await replays.create(
                Job.REDRIVE, dead_letters=dead_letter_pb2.DeadLetterFilter(), max_per_second=PER_S
            )
            more = await replays.create(Job.REPUBLISH, target_topic=target, max_per_second=PER_S)

            async def both_begun() -> bool:
                return all([(await replays.get(one.name)).done_count for one in (job, more)])

            await eventually(both_begun)
            victim = await worker_of(fresh, job.name)
        (survivor,) = dlqs.keys() - {victim}
        os.kill(victim, accident)
        # As if the time had passed.
        await fresh.fetch("UPDATE replay_job SET lease_until = now() WHERE worker LIKE $1 RETURNING 1", f"%:{victim}")
        async with Replays(dlqs[survivor]) as replays:
            for name in (job.name, more.name):
                ended = [step async for step in replays.watch(name)][-1]
                assert (ended.state, ended.failed_count) == (Job.SUCCEEDED, 0), ended
                assert ended.done_count == ended.matched_count
            assert await worker_of(fresh, job.name) == survivor
            if accident is signal.SIGSTOP:
                os.kill(victim, signal.SIGCONT)
                await asyncio.sleep(1.5)  # more than it needs for its next step
            await all_in_state(fresh, letters, "RESOLVED")
            assert (await replays.run(Job.AUDIT)).difference_count == 0
    acts = await fresh.fetch("SELECT ticket_offset FROM dead_letter_action WHERE comment = $1", job.name)
    assert sorted(row["ticket_offset"] for row in acts) == [ticket.offset for ticket in letters]
    grants = await fresh.fetch("SELECT redrive_of FROM user_coupon")
    assert Counter(row["redrive_of"] for row in grants) == Counter(map(str, letters))
    found = await published(fresh, target)
    assert {one for one in found if one in expected} == expected
    assert {ce_id for ce_id, *_ in found} >= {ce_id for ce_id, *_ in expected}
    # What a dead worker had appended and not noted is told again, as the very same; no more than a batch of that.
    assert len(found) - len(set(found)) <= PER_S


@pytest.fixture
async def store(database: str) -> AsyncIterator[JobStore]:
    engine = create_engine(database, "test", pool_size=2)
    yield JobStore(engine)
    await engine.dispose()


async def test_a_frozen_worker_loses_its_job_wherever_it_froze(store: JobStore, database: str) -> None:
    kinds = frozenset({int(Job.AUDIT)})
    frozen = await asyncpg.connect(database, server_settings={"application_name": "test"})
    try:
        await store.create(Asked(Job(kind=Job.AUDIT), "one", b"hash"), "ann", 1)
        await frozen.execute("BEGIN")
        await frozen.execute("SELECT FROM replay_job FOR UPDATE")
        await frozen.prepare("SELECT 1")  # the server waits for the rest, without a time limit

        async def taken() -> bool:
            return await store.claim("second", kinds) is not None

        assert not await taken()
        await eventually(taken)
    finally:
        frozen.terminate()


async def test_who_was_replaced_changes_nothing(store: JobStore) -> None:
    asked = Asked(Job(kind=Job.AUDIT), "one", b"hash")
    created = await store.create(asked, "ann", 1)
    kinds = frozenset({int(Job.AUDIT)})
    assert await store.claim("first", frozenset({int(Job.REDRIVE)})) is None
    first = await store.claim("first", kinds)
    assert first is not None
    assert await store.claim("second", kinds) is None  # while the first is heard of
    await store.save(first, Job(kind=Job.AUDIT, done_count=5), "here", None)
    await store.release(first)
    second = await store.claim("second", kinds)
    assert second is not None
    assert (second.lease, second.checkpoint, second.job.done_count) == (first.lease + 1, "here", 5)
    before = await store.get(second.id)
    for late in (
        store.save(first, Job(kind=Job.AUDIT, done_count=99), "elsewhere", None),
        store.renew(first),
        store.end(first, Job(kind=Job.AUDIT, done_count=99), None),
    ):
        with pytest.raises(JobLost):
            await late
    await store.release(first)
    assert await store.claim("third", kinds) is None
    assert await store.get(second.id) == before
    await store.end(second, second.job, None)
    ended = await store.get(second.id)
    assert ended is not None
    assert (ended.state, ended.name) == (Job.SUCCEEDED, created.name)
    assert await store.cancel(second.id) is None
