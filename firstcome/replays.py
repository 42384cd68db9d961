"""ReplayService: long-running work on the log, as jobs that survive a restart of the service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import grpc
from coupon.v1 import replay_pb2, replay_pb2_grpc

from firstcome.calls import PAGE_SIZE_DEFAULT, Calls, pages
from firstcome.dead_letters import ANY, DeadLetterFilter
from firstcome.errors import error_of_status
from firstcome.values import new_request_id, optional_time, timestamp


class ReplayKind(StrEnum):
    """What a job does."""

    UNSPECIFIED = "UNSPECIFIED"  # also a kind that this client is too old to know
    REDRIVE = "REDRIVE"  # dead letters go through the line again
    AUDIT = "AUDIT"  # compares the log with the tables
    REPUBLISH = "REPUBLISH"  # outcomes go to another topic


class ReplayState(StrEnum):
    """Where a job stands."""

    UNSPECIFIED = "UNSPECIFIED"  # also a state that this client is too old to know
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class LogRange:
    """Which part of the log. Offsets by partition: the first, and the one behind the last."""

    start_time: datetime | None = None
    end_time: datetime | None = None
    start_offsets: Mapping[int, int] = field(default_factory=dict)
    end_offsets: Mapping[int, int] = field(default_factory=dict)
    coupon_id: str = ""

    def message(self) -> replay_pb2.LogRange:
        """Raises ValueError for a time without a zone."""
        return replay_pb2.LogRange(
            start_time=timestamp(self.start_time) if self.start_time else None,
            end_time=timestamp(self.end_time) if self.end_time else None,
            start_offsets=self.start_offsets,
            end_offsets=self.end_offsets,
            coupon_id=self.coupon_id,
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the log and the tables disagree."""

    ticket: str
    coupon_id: str
    user_id: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """A job at one moment. `matched_count`: how much there is to do; `differences`: the first 100 of them.

    `max_per_second` of 0: as fast as it goes. `error`: why it FAILED, "<reason>: <message>".
    """

    job_id: str
    kind: ReplayKind
    state: ReplayState
    target_topic: str
    max_per_second: int
    dry_run: bool
    matched_count: int
    done_count: int
    failed_count: int
    difference_count: int
    differences: tuple[Difference, ...]
    error: str
    create_time: datetime | None
    update_time: datetime | None
    end_time: datetime | None
    caller: str

    @property
    def ended(self) -> bool:
        return self.state in (ReplayState.SUCCEEDED, ReplayState.FAILED, ReplayState.CANCELLED)


class Replays:
    """The jobs of one system. Every method raises FirstcomeError.

    A new job carries a `request_id`, made here unless given: after Unavailable repeat it with the error's, and there is
    one job. `timeout_s`: the deadline of the call, retries included; None: the connection's.
    """

    def __init__(self, channel: grpc.aio.Channel, calls: Calls) -> None:
        stub: Any = replay_pb2_grpc.ReplayServiceStub
        self._stub: Any = stub(channel)
        self._calls = calls

    async def redrive(
        self,
        dead_letters: DeadLetterFilter = ANY,
        *,
        max_per_second: int = 0,
        dry_run: bool = False,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> ReplayJob:
        """Sends the dead letters of a filter through the line again; with `dry_run` it only counts them."""
        job = replay_pb2.ReplayJob(
            kind="REDRIVE", dead_letters=dead_letters.message(), max_per_second=max_per_second, dry_run=dry_run
        )
        return await self._create(job, request_id, timeout_s)

    async def audit(
        self,
        part: LogRange | None = None,
        *,
        max_per_second: int = 0,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> ReplayJob:
        """Runs the log, or a part of it, through a sequential model and compares with the tables. Changes nothing."""
        job = replay_pb2.ReplayJob(
            kind="AUDIT", range=part.message() if part is not None else None, max_per_second=max_per_second
        )
        return await self._create(job, request_id, timeout_s)

    async def republish(
        self,
        target_topic: str,
        part: LogRange | None = None,
        *,
        max_per_second: int = 0,
        dry_run: bool = False,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> ReplayJob:
        """Publishes the outcomes of the log, or of a part of it, to another topic, with the same `ce_id`s."""
        job = replay_pb2.ReplayJob(
            kind="REPUBLISH",
            range=part.message() if part is not None else None,
            target_topic=target_topic,
            max_per_second=max_per_second,
            dry_run=dry_run,
        )
        return await self._create(job, request_id, timeout_s)

    async def get(self, job_id: str, *, timeout_s: float | None = None) -> ReplayJob:
        """The job now."""
        request = replay_pb2.GetReplayJobRequest(name=_name(job_id))
        return replay_job_from(await self._calls.unary(self._stub.GetReplayJob, request, timeout_s))

    def list(
        self, *, page_size: int = PAGE_SIZE_DEFAULT, timeout_s: float | None = None
    ) -> AsyncGenerator[ReplayJob, None]:
        """All jobs, a page at a time, each with the deadline."""

        async def fetch(token: str) -> tuple[Sequence[ReplayJob], str]:
            request = replay_pb2.ListReplayJobsRequest(page_size=page_size, page_token=token)
            answer = await self._calls.unary(self._stub.ListReplayJobs, request, timeout_s)
            return [replay_job_from(one) for one in answer.replay_jobs], answer.next_page_token

        return pages(fetch)

    async def cancel(self, job_id: str, *, timeout_s: float | None = None) -> ReplayJob:
        """Stops the job where it is; what is done stays done."""
        request = replay_pb2.CancelReplayJobRequest(name=_name(job_id))
        return replay_job_from(await self._calls.unary(self._stub.CancelReplayJob, request, timeout_s))

    def watch(self, job_id: str, *, timeout_s: float | None = None) -> AsyncGenerator[ReplayJob, None]:
        """The job now and at each step, until it has ended; a broken connection is replaced on the way.

        `timeout_s` of None: as long as it takes. Raises DeadlineExceeded when it is over, Unavailable when the service
        stays away.
        """
        request = replay_pb2.WatchReplayJobRequest(name=_name(job_id))
        return self._calls.watch(self._stub.WatchReplayJob, request, replay_job_from, timeout_s)

    async def _create(self, job: replay_pb2.ReplayJob, request_id: str | None, timeout_s: float | None) -> ReplayJob:
        request = replay_pb2.CreateReplayJobRequest(replay_job=job, request_id=request_id or new_request_id())
        return replay_job_from(await self._calls.unary(self._stub.CreateReplayJob, request, timeout_s))


def replay_job_from(message: replay_pb2.ReplayJob) -> ReplayJob:
    """The value of coupon.v1.ReplayJob."""
    return ReplayJob(
        job_id=message.name.removeprefix("replayJobs/"),
        kind=_kind(message.kind),
        state=_state(message.state),
        target_topic=message.target_topic,
        max_per_second=message.max_per_second,
        dry_run=message.dry_run,
        matched_count=message.matched_count,
        done_count=message.done_count,
        failed_count=message.failed_count,
        difference_count=message.difference_count,
        differences=tuple(
            Difference(one.ticket, one.coupon_id, one.user_id, one.expected, one.found) for one in message.differences
        ),
        error=str(error_of_status(message.error)) if message.HasField("error") else "",
        create_time=optional_time(message, "create_time"),
        update_time=optional_time(message, "update_time"),
        end_time=optional_time(message, "end_time"),
        caller=message.caller,
    )


def _name(job_id: str) -> str:
    return f"replayJobs/{job_id}"


def _kind(number: int) -> ReplayKind:
    kinds = replay_pb2.ReplayJob.Kind
    name = kinds.Name(number) if number in kinds.values() else ""
    return ReplayKind(name) if name in ReplayKind.__members__ else ReplayKind.UNSPECIFIED


def _state(number: int) -> ReplayState:
    states = replay_pb2.ReplayJob.State
    name = states.Name(number) if number in states.values() else ""
    return ReplayState(name) if name in ReplayState.__members__ else ReplayState.UNSPECIFIED
