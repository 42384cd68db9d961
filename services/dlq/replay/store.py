"""Replay jobs as rows, and the lease by which exactly one dlq works on each.

The lease is a number that grows with each claim. Whoever works on a job names it in every write, so a worker that was
replaced and wakes up again finds no row to change. All times are PostgreSQL's: the clocks of the dlqs do not matter.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from coupon.v1 import replay_pb2
from google.rpc.status_pb2 import Status
from sqlalchemy.ext.asyncio import AsyncEngine

from services.dlq.replay.job import JobLost
from services.runtime.postgres import END_FROZEN, Connection, connection
from services.runtime.wire import to_timestamp

LEASE_S = 10
"""So long nobody else takes a job of which nothing is heard."""
COLLECTION = "replayJobs"

_Job = replay_pb2.ReplayJob
RUNNING = _Job.State.Name(_Job.RUNNING)
CANCELLED = _Job.State.Name(_Job.CANCELLED)
FAILED = _Job.State.Name(_Job.FAILED)
SUCCEEDED = _Job.State.Name(_Job.SUCCEEDED)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants done. The hash is of all of it, so that a repeated call is known."""

    job: replay_pb2.ReplayJob
    request_id: str
    payload_hash: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that was not worked on, and is ours now. `checkpoint` is empty where nobody has begun."""

    id: str
    lease: int
    job: replay_pb2.ReplayJob
    checkpoint: str


class RequestIdReused(Exception):
    """The request_id made another job."""


class TooManyJobs(Exception):
    """As many jobs as there may be have not ended."""


class JobStore:
    """Every method raises DatabaseAway."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, asked: Asked, caller: str, unended_max: int) -> replay_pb2.ReplayJob:
        """Store it as PENDING; a repeated request_id gives its first job as it is now.

        Raises RequestIdReused, TooManyJobs.
        """
        values = _new_id(), _Job.Kind.Name(asked.job.kind), asked.job.SerializeToString(), asked.request_id
        async with connection(self._engine) as db, db.transaction():
            found = await db.fetchrow(_BY_REQUEST, asked.request_id)
            if found is None:
                row = await db.fetchrow(_INSERT, *values, caller, asked.payload_hash, unended_max)
                if row is not None:
                    return _job(row)
                found = await db.fetchrow(_BY_REQUEST, asked.request_id)  # a call at the same time was first
            if found is None:
                raise TooManyJobs(f"{unended_max} jobs have not ended")
            if found["payload_hash"] != asked.payload_hash:
                raise RequestIdReused(asked.request_id)
            return _job(found)

    async def get(self, job_id: str) -> replay_pb2.ReplayJob | None:
        async with connection(self._engine) as db:
            row = await db.fetchrow(_GET, job_id)
        return None if row is None else _job(row)

    async def before(self, job_id: str, limit: int) -> list[replay_pb2.ReplayJob]:
        """The newest jobs, or those that are older than the one of that id."""
        async with connection(self._engine) as db:
            return [_job(row) for row in await db.fetch(_BEFORE, job_id, limit)]

    async def cancel(self, job_id: str) -> replay_pb2.ReplayJob | None:
        """The job, stopped where it is; None if there is none that has not ended."""
        async with connection(self._engine) as db:
            row = await db.fetchrow(_CANCEL, job_id)
        return None if row is None else _job(row)

    async def claim(self, worker: str, kinds: frozenset[int]) -> Claimed | None:
        """The oldest job of these kinds on which nobody works, if there is one: it is ours from now on."""
        async with connection(self._engine) as db:
            await db.execute(END_FROZEN)  # it would keep its job, or the dead letters that the job is about
            row = await db.fetchrow(_CLAIM, worker, LEASE_S, [_Job.Kind.Name(kind) for kind in sorted(kinds)])
        return None if row is None else Claimed(row["id"], row["lease"], _job(row), row["checkpoint"])

    async def reload(self, claimed: Claimed) -> Claimed:
        """As it is stored: after a failure it may be unknown whether the last write took effect. Raises JobLost."""
        async with connection(self._engine) as db:
            row = await db.fetchrow(f"SELECT {_COLUMNS} FROM replay_job {_OURS}", claimed.id, claimed.lease)
        if row is None:
            raise _lost(claimed)
        return Claimed(claimed.id, claimed.lease, _job(row), row["checkpoint"])

    async def renew(self, claimed: Claimed) -> None:
        """Raises JobLost."""
        async with connection(self._engine) as db:
            _must_be_ours(claimed, await db.execute(_RENEW, claimed.id, claimed.lease, LEASE_S))

    async def release(self, claimed: Claimed) -> None:
        """Let another take it at once."""
        async with connection(self._engine) as db:
            await db.execute(_RENEW, claimed.id, claimed.lease, 0)

    async def save(self, claimed: Claimed, job: replay_pb2.ReplayJob, checkpoint: str, db: Connection | None) -> None:
        """Progress and checkpoint; with `db` in the transaction that it is in. Raises JobLost."""
        if db is None:
            async with connection(self._engine) as own:
                await self.save(claimed, job, checkpoint, own)
            return
        values = claimed.id, claimed.lease, LEASE_S, job.SerializeToString(), checkpoint
        _must_be_ours(claimed, await db.execute(_SAVE, *values))

    async def end(self, claimed: Claimed, job: replay_pb2.ReplayJob, error: Status | None) -> None:
        """FAILED with an error, else SUCCEEDED. Raises JobLost."""
        if error is not None:
            job.error.CopyFrom(error)
        state = SUCCEEDED if error is None else FAILED
        async with connection(self._engine) as db:
            _must_be_ours(claimed, await db.execute(_END, claimed.id, claimed.lease, state, job.SerializeToString()))


def job_name(job_id: str) -> str:
    return f"{COLLECTION}/{job_id}"


def _new_id() -> str:
    """Ids sort by time, to the millisecond of the dlq that made them."""
    return f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(4)}"


def _must_be_ours(claimed: Claimed, status: str) -> None:
    if status != "UPDATE 1":
        raise _lost(claimed)


def _lost(claimed: Claimed) -> JobLost:
    return JobLost(f"{job_name(claimed.id)} has ended or is worked on by another dlq")


def _job(row: Any) -> replay_pb2.ReplayJob:
    """What is stored, and what the columns know better."""
    job = _Job.FromString(row["job"])
    job.name = job_name(row["id"])
    job.state = _Job.State.Value(row["state"])  # type: ignore[assignment]
    job.caller = row["caller"]
    job.create_time.CopyFrom(to_timestamp(row["create_time"]))
    job.update_time.CopyFrom(to_timestamp(row["update_time"]))
    if job.state in (_Job.SUCCEEDED, _Job.FAILED, _Job.CANCELLED):
        job.end_time.CopyFrom(job.update_time)  # what has ended does not change
    return job


_COLUMNS = "id, state, job, caller, payload_hash, checkpoint, lease, create_time, update_time"
_BY_REQUEST = f"SELECT {_COLUMNS} FROM replay_job WHERE request_id = $1"
# Two at the same moment may both find room: the limit is there to bound the table's work, not to be exact.
_INSERT = f"""
INSERT INTO replay_job (id, kind, state, job, request_id, caller, payload_hash)
SELECT $1, $2, 'PENDING', $3, $4, $5, $6
WHERE (SELECT count(*) FROM replay_job WHERE state IN ('PENDING', 'RUNNING')) < $7
ON CONFLICT (request_id) WHERE request_id IS NOT NULL DO NOTHING RETURNING {_COLUMNS}"""
_GET = f"SELECT {_COLUMNS} FROM replay_job WHERE id = $1"
_BEFORE = f"SELECT {_COLUMNS} FROM replay_job WHERE $1 = '' OR id < $1 ORDER BY id DESC LIMIT $2"
_CANCEL = f"""
UPDATE replay_job SET state = '{CANCELLED}', update_time = now()
WHERE id = $1 AND state IN ('PENDING', 'RUNNING') RETURNING {_COLUMNS}"""
_CLAIM = f"""
UPDATE replay_job SET state = '{RUNNING}', worker = $1, lease = lease + 1,
    lease_until = now() + make_interval(secs => $2), update_time = now()
WHERE id = (
    SELECT id FROM replay_job
    WHERE kind = ANY($3::text[]) AND (state = 'PENDING' OR (state = '{RUNNING}' AND lease_until < now()))
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}"""
_OURS = f"WHERE id = $1 AND lease = $2 AND state = '{RUNNING}'"
_RENEW = f"UPDATE replay_job SET lease_until = now() + make_interval(secs => $3) {_OURS}"
_SAVE = f"""
UPDATE replay_job SET job = $4, checkpoint = $5, update_time = now(),
    lease_until = now() + make_interval(secs => $3) {_OURS}"""
_END = f"UPDATE replay_job SET state = $3, job = $4, lease_until = NULL, update_time = now() {_OURS}"
