"""ReplayService: check the request, hand it on, nothing more. Any dlq answers for every job: the table has it all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from coupon.v1 import replay_pb2, replay_pb2_grpc

from services.dlq.replay import validation
from services.dlq.replay.store import JobStore, RequestIdReused, TooManyJobs, job_name
from services.runtime.auth import caller_name
from services.runtime.fields import PAGE_BYTES_MAX
from services.runtime.paging import page_token
from services.runtime.rpc_errors import Refusal, Violation, invalid, unavailable

UNENDED_JOBS_MAX = 100
WATCHERS_MAX = 200
WATCH_POLL_S = 0.5
_FILTER_KEY = "replay jobs"
_Job = replay_pb2.ReplayJob
_ENDED = frozenset({_Job.SUCCEEDED, _Job.FAILED, _Job.CANCELLED})


class ReplayServicer(replay_pb2_grpc.ReplayServiceServicer):
    def __init__(
        self,
        store: JobStore,
        partition_count: int,
        target_faults: Callable[[str], Awaitable[list[str]]],
        stopping: asyncio.Event,
    ) -> None:
        """`target_faults` says what is against a topic that there may be."""
        self._store = store
        self._partition_count = partition_count
        self._target_faults = target_faults
        self._stopping = stopping
        self._watchers = 0

    async def CreateReplayJob(self, request: replay_pb2.CreateReplayJobRequest, context: Any) -> _Job:  # noqa: N802
        wanted, faults = request.replay_job, list[str]()
        if wanted.kind == _Job.REPUBLISH and validation.is_target(wanted.target_topic):
            faults = await self._target_faults(wanted.target_topic)
        asked = validation.create(request, self._partition_count, faults)
        try:
            return await self._store.create(asked, caller_name(), UNENDED_JOBS_MAX)
        except RequestIdReused as error:
            description = "was used for another job; use a new one"
            raise invalid([Violation("request_id", description)], asked.request_id) from error
        except TooManyJobs as error:
            raise unavailable("OVERLOADED", f"{error}: cancel one, or wait", asked.request_id) from error

    async def GetReplayJob(self, request: replay_pb2.GetReplayJobRequest, context: Any) -> _Job:  # noqa: N802
        return await self._get(validation.job_id(request.name))

    async def ListReplayJobs(  # noqa: N802
        self, request: replay_pb2.ListReplayJobsRequest, context: Any
    ) -> replay_pb2.ListReplayJobsResponse:
        size, after = validation.job_list(request, _FILTER_KEY)
        jobs = await self._store.before(after, size + 1)
        page: list[_Job] = []
        page_bytes = 0
        for job in jobs[:size]:
            page_bytes += job.ByteSize()
            if page and page_bytes > PAGE_BYTES_MAX:
                break
            page.append(job)
        more = len(page) < len(jobs)
        token = page_token(_FILTER_KEY, page[-1].name.partition("/")[2]) if more else ""
        return replay_pb2.ListReplayJobsResponse(replay_jobs=page, next_page_token=token)

    async def CancelReplayJob(self, request: replay_pb2.CancelReplayJobRequest, context: Any) -> _Job:  # noqa: N802
        job_id = validation.job_id(request.name)
        cancelled = await self._store.cancel(job_id)
        if cancelled is not None:
            return cancelled
        state = _Job.State.Name((await self._get(job_id)).state)
        raise Refusal("WRONG_STATE", f"{job_name(job_id)} is {state}: it has ended", resource=job_name(job_id))

    async def WatchReplayJob(  # noqa: N802
        self, request: replay_pb2.WatchReplayJobRequest, context: Any
    ) -> AsyncIterator[_Job]:
        job_id = validation.job_id(request.name)
        if self._watchers >= WATCHERS_MAX:
            raise unavailable("OVERLOADED", f"{WATCHERS_MAX} calls watch jobs here already")
        self._watchers += 1
        try:
            told = None
            while told is None or told.state not in _ENDED:
                job = await self._get(job_id)
                if job != told:
                    told = job
                    yield job
                elif self._stopping.is_set():
                    raise unavailable("LEDGER_UNAVAILABLE", "this dlq stops: watch again, any other tells the same")
                else:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), timeout=WATCH_POLL_S)
        finally:
            self._watchers -= 1

    async def _get(self, job_id: str) -> _Job:
        job = await self._store.get(job_id)
        if job is None:
            raise Refusal("REPLAY_JOB_NOT_FOUND", f"there is no {job_name(job_id)}", resource=job_name(job_id))
        return job
