"""One fault from its beginning to the checker's verdict."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from aiokafka.errors import KafkaError

from chaos.clients import Clients, LookedUp, Unanswered, clients
from chaos.fault import Fault
from chaos.plan import make_plan
from chaos.world import Engines, NotAsExpected, World
from checker import HistoryError, HistoryWriter, Limits, Report, TopicError, verify
from stack import StackError

FAULT_TIMEOUT_S = 150.0
ANSWERED_WITHIN_S = 60.0
"""How long after the rush's end callers go on asking."""
DRAINED_WITHIN_S = 30.0
LOOK_UPS = 100
LOOK_UPS_AT_ONCE = 20
_FAILURES = (
    NotAsExpected,
    Unanswered,
    StackError,
    TopicError,
    HistoryError,
    KafkaError,
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    grpc.aio.AioRpcError,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault. `findings` is empty if all held."""

    name: str
    seconds: float
    requests: int
    uncertain: int
    report: Report | None
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    folder: Path = field(default_factory=Path)

    @property
    def ok(self) -> bool:
        return not self.findings


async def run(fault: Fault, engines: Engines, seed: int, folder: Path) -> Outcome:
    """Start a system, let the rush begin, do what the fault does, mend it, and let the checker judge.

    Logs and the history are in `folder`. Raises nothing that a fault may cause: that is a finding.
    """
    began_s = time.monotonic()
    rng = random.Random(f"{seed} {fault.name}")
    seen = _Seen()
    try:
        if not fault.setup.clustered:
            engines.drop_cluster()
        await engines.mend()
        async with World(engines, fault.setup, folder) as world:
            seen.world = world
            await _rush(fault, world, rng, seen)
    except* _FAILURES as failures:
        seen.findings += [f"{type(error).__name__}: {error}" for error in _leaves(failures)]
    world_findings = seen.world.findings if seen.world else []
    people = seen.people
    return Outcome(
        fault.name,
        time.monotonic() - began_s,
        people.requests if people else 0,
        sum(people.uncertain.values()) if people else 0,
        seen.report,
        tuple(seen.world.notes) if seen.world else (),
        (*seen.findings, *world_findings),
        folder,
    )


@dataclass(slots=True)
class _Seen:
    world: World | None = None
    people: Clients | None = None
    report: Report | None = None
    findings: list[str] = field(default_factory=list)


async def _rush(fault: Fault, world: World, rng: random.Random, seen: _Seen) -> None:
    plan = make_plan(rng, fault.setup.rush_s)
    history_path = world.folder / "history.jsonl"
    with HistoryWriter(history_path) as history:
        async with clients(world.issuer_addresses, history, random.Random(rng.random())) as people:
            seen.people = world.clients = people
            await asyncio.gather(*(people.create(coupon) for coupon in plan.coupons))
            world.open()
            rush = asyncio.create_task(people.rush(plan, ANSWERED_WITHIN_S))
            try:
                async with asyncio.timeout(FAULT_TIMEOUT_S):
                    await fault.inject(world, rng)
                if not fault.stands:
                    return
                await world.mend()
                await rush
            finally:
                rush.cancel()
                await asyncio.gather(rush, return_exceptions=True)
            await world.until_drained()
            await _look_up(people, rng)
            world.look_for_the_dead()
    seen.findings += [f"{count} unanswered: {what}" for what, count in people.unanswered.most_common(5)]
    limits = Limits(
        healed_at_s=world.healed_at_s,
        drained_within_s=DRAINED_WITHIN_S,
        standstill_s_max=fault.standstill_s_max,
        believed_max=fault.believed_max,
    )
    seen.report = await verify(
        world.kafka_bootstrap,
        world.dsn,
        topic_prefix=world.prefix,
        history=history_path,
        drain_timeout_s=DRAINED_WITHIN_S,
        limits=limits,
    )
    for result in seen.report.broken:
        seen.findings += [f"{result.promise.name}: {finding}" for finding in result.examples[:5]]
    seen.findings += await _compare_look_ups(world, people.looked_up)


async def _look_up(people: Clients, rng: random.Random) -> None:
    """Ask for some of the tickets, now that all of them have a verdict."""
    asked = rng.sample(sorted(people.accepted.items()), min(LOOK_UPS, len(people.accepted)))
    for start in range(0, len(asked), LOOK_UPS_AT_ONCE):
        part = asked[start : start + LOOK_UPS_AT_ONCE]
        await asyncio.gather(*(people.look_up(request, ticket) for ticket, request in part))


async def _compare_look_ups(world: World, looked_up: list[LookedUp]) -> list[str]:
    """What GetIssuance told, during the rush and behind it, against the tables."""
    rows: Mapping[str, Any] = {row["ticket"]: row for row in await world.fetch(_VERDICTS)}
    findings = []
    for one in looked_up:
        row, answer = rows.get(one.ticket), one.answer
        if row is None:
            findings.append(f"GetIssuance knows {one.ticket} as {answer.state}; the tables do not")
        elif answer.state == "ACCEPTED" or row["reason"] == "PARKED":
            continue  # not settled by then; a parked one is answered by its redrive
        elif answer.state == "ISSUED":
            if row["reason"] not in ("ISSUED", "REPEATED") or row["sequence"] != answer.sequence:
                findings.append(f"GetIssuance said ISSUED {answer.sequence} of {one.ticket}; the row is {dict(row)}")
        elif (answer.state, answer.reason) != ("REJECTED", row["reason"]):
            findings.append(f"GetIssuance said {answer.state} {answer.reason} of {one.ticket}; the row is {dict(row)}")
    return findings[:5]


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


_VERDICTS = """
SELECT ticket_partition || '-' || ticket_offset AS ticket, 'ISSUED' AS reason, sequence FROM user_coupon
UNION ALL
SELECT ticket_partition || '-' || ticket_offset, reason, issued_sequence FROM rejected_issue"""
