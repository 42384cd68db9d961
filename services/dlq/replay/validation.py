"""Requests to values: every bad field is found and named at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from coupon.v1 import replay_pb2

from services.dlq.replay.store import COLLECTION, Asked
from services.dlq.validation import letter_filter
from services.domain.dead_letter import DeadLetterState
from services.runtime.fields import Fields
from services.runtime.kafka import Topics

PER_SECOND_MAX = 1_000_000
PAGE_SIZE_MAX = 100
"""A job may show a hundred differences."""
_KINDS = {
    replay_pb2.ReplayJob.REDRIVE: frozenset({"dead_letters"}),
    replay_pb2.ReplayJob.AUDIT: frozenset({"range"}),
    replay_pb2.ReplayJob.REPUBLISH: frozenset({"range", "target_topic"}),
}
"""What each kind is told beside its rate and whether it is a dry run."""
_REDRIVEN = (DeadLetterState.PARKED, DeadLetterState.RETRYING)
_ID = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")
_TOPIC = re.compile(r"[A-Za-z0-9._\-]{1,249}")


def job_id(name: str) -> str:
    """The id in replayJobs/{id}. Raises Refusal."""
    fields = Fields()
    collection, _, found = name.partition("/")
    if collection != COLLECTION or not is_job_id(found):
        fields.bad("name", f"must be {COLLECTION}/{{id}}, as CreateReplayJob gave it")
    fields.finish()
    return found


def is_job_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def job_list(request: replay_pb2.ListReplayJobsRequest, filter_key: str) -> tuple[int, str]:
    """Page size, and the id behind which the page begins. Raises Refusal."""
    fields = Fields()
    size = min(fields.page_size(request.page_size), PAGE_SIZE_MAX)
    after = fields.page_token(filter_key, request.page_token, is_job_id)
    fields.finish()
    return size, after


def is_target(topic: str) -> bool:
    """Whether outcomes may be published to a topic of that name: never to what a system like this one lives by."""
    lives_by = Topics()
    own = (lives_by.line, lives_by.dlq, lives_by.outcomes)
    return _TOPIC.fullmatch(topic) is not None and not topic.startswith("__") and not topic.endswith(own)


def create(request: replay_pb2.CreateReplayJobRequest, partition_count: int, target_faults: Sequence[str]) -> Asked:
    """The job that is asked for; what only the service sets of it is not taken over. `target_faults`: what is against
    the target topic, where its name is one. Raises Refusal."""
    fields, given = Fields(), request.replay_job
    request_id = fields.request_id(request.request_id)
    job = replay_pb2.ReplayJob(kind=given.kind, max_per_second=given.max_per_second, dry_run=given.dry_run)
    if not request.HasField("replay_job"):
        fields.bad("replay_job", "is required")
    elif given.kind not in _KINDS:
        fields.bad("replay_job.kind", "must be REDRIVE, AUDIT or REPUBLISH")
    else:
        kind, told = replay_pb2.ReplayJob.Kind.Name(given.kind), _KINDS[given.kind]
        for field in ("dead_letters", "range", "target_topic"):
            present = bool(given.target_topic) if field == "target_topic" else given.HasField(field)
            if present and field not in told:
                fields.bad(f"replay_job.{field}", f"must not be set for {kind}")
        if "dead_letters" in told:
            _dead_letters(fields, given)
            job.dead_letters.CopyFrom(given.dead_letters)
        if "range" in told:
            _range(fields, given.range, partition_count)
            job.range.CopyFrom(given.range)
        if "target_topic" in told:
            _target(fields, given.target_topic, target_faults)
            job.target_topic = given.target_topic
    if not 0 <= given.max_per_second <= PER_SECOND_MAX:
        fields.bad("replay_job.max_per_second", f"must be from 0 (as fast as it goes) to {PER_SECOND_MAX}")
    fields.finish(request_id)
    return Asked(job, request_id, hashlib.sha256(job.SerializeToString(deterministic=True)).digest())


def _dead_letters(fields: Fields, given: replay_pb2.ReplayJob) -> None:
    if not given.HasField("dead_letters"):
        fields.bad("replay_job.dead_letters", "is required; an empty one means all that are parked")
    prefix = "replay_job.dead_letters."
    wanted = letter_filter(fields, prefix, given.dead_letters)
    if wanted.state is not None and wanted.state not in _REDRIVEN:
        fields.bad(f"{prefix}state", f"must be one of {', '.join(_REDRIVEN)}, or not set, which means PARKED")


def _range(fields: Fields, given: replay_pb2.LogRange, partition_count: int) -> None:
    prefix = "replay_job.range."
    start = fields.time(f"{prefix}start_time", given.start_time)
    end = fields.time(f"{prefix}end_time", given.end_time)
    if given.HasField("start_time") and given.HasField("end_time") and end <= start:
        fields.bad(f"{prefix}end_time", "must be after start_time")
    for name, offsets in (("start_offsets", given.start_offsets), ("end_offsets", given.end_offsets)):
        for partition, offset in sorted(offsets.items()):
            if not 0 <= partition < partition_count:
                fields.bad(f"{prefix}{name}[{partition}]", f"must name a partition from 0 to {partition_count - 1}")
            elif offset < 0:
                fields.bad(f"{prefix}{name}[{partition}]", "must not be negative")
            elif name == "end_offsets" and offset < given.start_offsets.get(partition, 0):
                fields.bad(f"{prefix}{name}[{partition}]", "must not be before the start offset")
    if given.coupon_id:
        fields.identifier(f"{prefix}coupon_id", given.coupon_id)


def _target(fields: Fields, topic: str, faults: Sequence[str]) -> None:
    field = "replay_job.target_topic"
    if not topic:
        fields.bad(field, "is required")
    elif not is_target(topic):
        fields.bad(field, "must be a topic's name, and no topic that a system like this one works with")
    for fault in faults:
        fields.bad(field, fault)
