"""Works on replay jobs, beside any number of other dlqs: each job is held by one of them at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Protocol

from coupon.v1 import replay_pb2
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status

from services.dlq.replay.job import HeldJob, JobFailed, JobInterrupted, JobLost
from services.dlq.replay.store import Claimed, JobStore, job_name
from services.domain.model import printable
from services.runtime import metrics
from services.runtime.kafka import KafkaAway, OutOfLog
from services.runtime.log import get_logger
from services.runtime.pace import Pace
from services.runtime.postgres import Connection, DatabaseAway

log = get_logger(__name__)

CLAIM_TICK_S = 1.0
RENEW_S = 3.0
"""A sign of life well within a lease, whatever the work waits for."""
JOBS_AT_ONCE_MAX: Mapping[int, int] = {
    replay_pb2.ReplayJob.REDRIVE: 4,
    # Those two use the processor, which the dlq's own work also needs.
    replay_pb2.ReplayJob.AUDIT: 1,
    replay_pb2.ReplayJob.REPUBLISH: 1,
}
"""Of a dlq, by kind, so that a long audit holds up no redrive."""
CLAIMS_MAX = 100
"""How often a job may be taken over: one that ends its dlq each time must not end all of them for ever."""


class Work(Protocol):
    async def run(self, held: HeldJob) -> None:
        """Go on from the checkpoint to the end.

        Raises JobLost, JobInterrupted, JobFailed; KafkaAway, DatabaseAway and OutOfLog mean to try again later.
        """


class JobRunner:
    def __init__(self, store: JobStore, works: Mapping[int, Work], worker: str) -> None:
        """`works` by kind; `worker` names this dlq in the table, for people."""
        self._store = store
        self._works = works
        self._worker = worker
        self._running: dict[asyncio.Task[None], int] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping`; what is under way then goes to another dlq at its next step."""
        pace = Pace(stopping)
        try:
            while not stopping.is_set():
                try:
                    more = await self._claim(stopping)
                    pace.succeeded()
                except DatabaseAway as error:
                    log.warning("claiming_interrupted", error=str(error))
                    await pace.failed()
                    continue
                except Exception:  # not foreseen: jobs wait, and the dlq's other work goes on
                    log.exception("claiming_failed")
                    await pace.failed()
                    continue
                if not more:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stopping.wait(), timeout=CLAIM_TICK_S)
        finally:
            if self._running:
                await asyncio.gather(*self._running, return_exceptions=True)

    async def _claim(self, stopping: asyncio.Event) -> bool:
        """Take a job that may be run now; whether there was one."""
        busy = list(self._running.values())
        free = frozenset(kind for kind, most in JOBS_AT_ONCE_MAX.items() if busy.count(kind) < most)
        claimed = await self._store.claim(self._worker, free) if free else None
        if claimed is None:
            return False
        log.info("replay_job_taken", job=job_name(claimed.id), lease=claimed.lease)
        task = asyncio.create_task(self._hold(claimed, stopping), name=job_name(claimed.id))
        self._running[task] = claimed.job.kind
        task.add_done_callback(lambda ended: self._running.pop(ended))
        return True

    async def _hold(self, claimed: Claimed, stopping: asyncio.Event) -> None:
        """Work on the job until it has ended, is lost, or the service stops."""
        renewing = asyncio.create_task(self._keep(claimed))
        try:
            await self._work(claimed, stopping)
        except JobLost as error:
            log.info("replay_job_left", reason=str(error))
        except JobInterrupted:
            with contextlib.suppress(DatabaseAway):
                await self._store.release(claimed)
            log.info("replay_job_handed_over", job=job_name(claimed.id))
        except Exception:
            log.exception("replay_job_dropped", job=job_name(claimed.id))  # its lease runs out
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _work(self, claimed: Claimed, stopping: asyncio.Event) -> None:
        pace = Pace(stopping)
        error: Status | None = None
        while True:
            held = self._held(claimed, stopping)
            try:
                if claimed.lease > CLAIMS_MAX:
                    raise JobFailed.because(code_pb2.ABORTED, f"given up after {CLAIMS_MAX} dlqs took it over")
                await self._works[claimed.job.kind].run(held)
                break
            except (KafkaAway, DatabaseAway, OutOfLog) as away:
                log.warning("replay_job_interrupted", job=held.name, error=f"{type(away).__name__}: {away}")
                claimed = await self._again(claimed, stopping, pace)
            except JobFailed as failed:
                error = failed.status
                break
            except (JobLost, JobInterrupted):
                raise
            except Exception as unforeseen:
                log.exception("replay_job_failed", job=held.name)
                message = printable(f"{type(unforeseen).__name__}: {unforeseen}")
                error = Status(code=code_pb2.INTERNAL, message=message)
                break
        await self._end(claimed, held, error, stopping, pace)

    async def _end(
        self, claimed: Claimed, held: HeldJob, error: Status | None, stopping: asyncio.Event, pace: Pace
    ) -> None:
        while True:
            try:
                await self._store.end(claimed, held.job, error)
                break
            except DatabaseAway:
                await pace.failed()
                if stopping.is_set():
                    raise JobInterrupted from None
        metrics.REPLAY_DONE.add(held.job.done_count, replay_pb2.ReplayJob.Kind.Name(held.job.kind))
        metrics.REPLAY_DIFFERENCES.add(held.job.difference_count)
        counts = {"done": held.job.done_count, "failed": held.job.failed_count, "different": held.job.difference_count}
        log.info("replay_job_ended", job=held.name, error=error.message if error is not None else None, **counts)

    async def _again(self, claimed: Claimed, stopping: asyncio.Event, pace: Pace) -> Claimed:
        """The job as it is stored, after a while: of what was being written it may be unknown whether it took effect.

        Raises JobLost, JobInterrupted.
        """
        while True:
            await pace.failed()
            if stopping.is_set():
                raise JobInterrupted
            with contextlib.suppress(DatabaseAway):
                return await self._store.reload(claimed)

    async def _keep(self, claimed: Claimed) -> None:
        """Signs of life. Where the job is lost the work finds out by itself, at its next write."""
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._store.renew(claimed)
            except JobLost:
                return
            except DatabaseAway as error:
                log.warning("replay_job_not_renewed", job=job_name(claimed.id), error=str(error))

    def _held(self, claimed: Claimed, stopping: asyncio.Event) -> HeldJob:
        async def save(job: replay_pb2.ReplayJob, checkpoint: str, db: Connection | None) -> None:
            await self._store.save(claimed, job, checkpoint, db)

        return HeldJob(claimed.id, claimed.job, claimed.checkpoint, save, stopping)
