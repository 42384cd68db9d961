"""A replay job as those see it who do its work: its progress, its rate, and the ways in which it ends early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from coupon.v1 import replay_pb2
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status

from services.runtime.postgres import Connection

DIFFERENCES_SHOWN_MAX = 100
SAVE_INTERVAL_S = 1.0
"""How often progress is noted where nothing else makes it be."""
TURNS_PER_S = 10


class JobLost(Exception):
    """The job is no longer ours to work on: it was cancelled, or another dlq has taken it over."""


class JobInterrupted(Exception):
    """The service stops: whoever takes the job over goes on from its checkpoint."""


class JobFailed(Exception):
    """The job can't be done; `status` says why."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status

    @classmethod
    def because(cls, code: int, message: str) -> JobFailed:
        return cls(Status(code=code, message=message))


def log_lost(message: str) -> JobFailed:
    """What the job would need is not in the log or in the tables any more."""
    return JobFailed.because(code_pb2.DATA_LOSS, message)


Save = Callable[[replay_pb2.ReplayJob, str, "Connection | None"], Awaitable[None]]
"""Store a job and its checkpoint while it is ours, on that connection if one is given. Raises JobLost, DatabaseAway."""


class HeldJob:
    """A job that this process has the lease of. `checkpoint` is where to go on, in the words of the job's kind."""

    def __init__(
        self, job_id: str, job: replay_pb2.ReplayJob, checkpoint: str, save: Save, stopping: asyncio.Event
    ) -> None:
        self.id = job_id
        self.job = job
        self.checkpoint = checkpoint
        self._save = save
        self._stopping = stopping
        self._saved_s = time.monotonic()
        self._due_s = 0.0

    @property
    def name(self) -> str:
        return f"replayJobs/{self.id}"

    def batch_max(self, most: int) -> int:
        """How much may be done in a turn, so that `turn` keeps the job's rate; at most `most`."""
        per_s = self.job.max_per_second
        return min(most, max(per_s // TURNS_PER_S, 1)) if per_s else most

    async def turn(self, batch_max: int) -> None:
        """Wait until so much more may be done. What was not used of earlier turns is lost, so that no second has more
        than the rate. Raises JobInterrupted."""
        per_s = self.job.max_per_second
        if per_s:
            now_s = time.monotonic()
            self._due_s = max(self._due_s, now_s)
            await self.wait(self._due_s - now_s)
            self._due_s += 1 / (per_s // batch_max)
        self.check()

    def check(self) -> None:
        """Raises JobInterrupted where the service stops."""
        if self._stopping.is_set():
            raise JobInterrupted

    async def save(self, db: Connection | None = None) -> None:
        """Note progress and checkpoint; with `db` in the transaction that it is in. Raises JobLost, DatabaseAway."""
        await self._save(self.job, self.checkpoint, db)
        self._saved_s = time.monotonic()

    async def save_sometimes(self) -> None:
        """Note progress if that was not done for a while. Raises JobLost, DatabaseAway."""
        if time.monotonic() - self._saved_s >= SAVE_INTERVAL_S:
            await self.save()

    async def wait(self, seconds: float) -> None:
        """So long, or until the service stops."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stopping.wait(), timeout=seconds)
            except TimeoutError:
                return
