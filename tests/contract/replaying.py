"""The stub of ReplayService, its calls in short, and a line on which everything happens that an audit must judge."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from coupon.v1 import replay_pb2, replay_pb2_grpc

from services.domain.model import Ticket
from tests.contract.issuing import DEADLINE_S, System, eventually
from tests.integration import ledger_world as world

Job = replay_pb2.ReplayJob
ENDED = (Job.SUCCEEDED, Job.FAILED, Job.CANCELLED)


class Replays:
    """The calls of one dlq's ReplayService."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub: Any = replay_pb2_grpc.ReplayServiceStub(self.channel)

    async def __aenter__(self) -> Replays:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    def create(self, kind: Any, request: str = "", **values: Any) -> Any:
        asked = replay_pb2.CreateReplayJobRequest(replay_job=Job(kind=kind, **values), request_id=request)
        return self.stub.CreateReplayJob(asked, timeout=DEADLINE_S)

    def get(self, name: str) -> Any:
        return self.stub.GetReplayJob(replay_pb2.GetReplayJobRequest(name=name), timeout=DEADLINE_S)

    def page(self, page_size: int = 0, page_token: str = "") -> Any:
        asked = replay_pb2.ListReplayJobsRequest(page_size=page_size, page_token=page_token)
        return self.stub.ListReplayJobs(asked, timeout=DEADLINE_S)

    def cancel(self, name: str) -> Any:
        return self.stub.CancelReplayJob(replay_pb2.CancelReplayJobRequest(name=name), timeout=DEADLINE_S)

    def watch(self, name: str) -> Any:
        return self.stub.WatchReplayJob(replay_pb2.WatchReplayJobRequest(name=name), timeout=60)

    async def run(self, kind: Any, **values: Any) -> Any:
        """The job as it has ended."""
        return await self.ended((await self.create(kind, **values)).name)

    async def ended(self, name: str) -> Any:
        async def over() -> Any:
            job = await self.get(name)
            return job if job.state in ENDED else None

        return await eventually(over)

    async def audit(self, **log_range: Any) -> list[tuple[str, str, str]]:
        """Tickets, what was expected and what was found, of an audit that ran to its end."""
        job = await self.run(Job.AUDIT, range=replay_pb2.LogRange(**log_range))
        assert job.state == Job.SUCCEEDED, job
        assert job.done_count == job.matched_count > 0
        assert job.difference_count == len(job.differences)
        return [(one.ticket, one.expected, one.found) for one in job.differences]

    async def steps(self, name: str) -> AsyncIterator[Any]:
        async for job in self.watch(name):
            yield job


HOME = world.HOME
COUPON = world.COUPON
OTHER = world.coupon_at(HOME, 1)


async def eventful(system: System, users: int = 5) -> dict[str, Ticket]:
    """A line with grants, refusals, repeats, changes, parked records and redrives; some tickets by what they are.

    To be made before a ledger begins: one of the records is on the DLQ already, for a reason that does not lie in it.
    """
    line = system.topics.line
    now_ms = time.time_ns() // 1_000_000
    created = world.create(users - 2, request="create")
    asked = [world.issue(f"user{number}") for number in range(users)]
    tickets = await system.put(
        line,
        HOME,
        created,
        *asked,
        world.issue("user0"),
        world.issue("user1", request="another"),
        created,
        world.change("UPDATE", name="Summer", paths=["display_name"]),
        world.change("ADJUST_STOCK", delta=1),
        world.change("ADJUST_STOCK", delta=-1_000),
        world.garbage(),
        world.issue("mismatched", key="another"),
        world.issue("late"),
        world.create(10, OTHER),
        world.issue("lost", OTHER),
    )
    names = ("created", *(f"user{number}" for number in range(users)), "repeat", "already", "recreated", "updated")
    found = dict(
        zip((*names, "adjusted", "refused", "garbage", "mismatched", "late", "other", "lost"), tickets, strict=True)
    )
    await system.dead_letter(found["lost"])  # as if its ledger had failed on it, for no reason that lies in the record
    (again,) = await system.put(line, HOME, world.redrive(world.issue("lost", OTHER), found["lost"], now_ms))
    (twice,) = await system.put(line, HOME, world.redrive(world.issue("lost", OTHER), found["lost"], now_ms))
    elsewhere = world.coupon_at((HOME + 1) % 4)
    await system.put(line, HOME, world.issue("astray", elsewhere))
    await system.put(line, (HOME + 1) % 4, world.create(1, elsewhere), world.issue("ann", elsewhere))
    return {**found, "again": again, "twice": twice}
