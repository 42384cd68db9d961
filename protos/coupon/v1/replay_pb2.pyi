import datetime

from coupon.v1 import dead_letter_pb2 as _dead_letter_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplayJob(_message.Message):
    __slots__ = ("name", "kind", "state", "dead_letters", "range", "target_topic", "max_per_second", "dry_run", "matched_count", "done_count", "failed_count", "difference_count", "differences", "error", "create_time", "update_time", "end_time", "caller")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[ReplayJob.Kind]
        REDRIVE: _ClassVar[ReplayJob.Kind]
        AUDIT: _ClassVar[ReplayJob.Kind]
        REPUBLISH: _ClassVar[ReplayJob.Kind]
    KIND_UNSPECIFIED: ReplayJob.Kind
    REDRIVE: ReplayJob.Kind
    AUDIT: ReplayJob.Kind
    REPUBLISH: ReplayJob.Kind
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ReplayJob.State]
        PENDING: _ClassVar[ReplayJob.State]
        RUNNING: _ClassVar[ReplayJob.State]
        SUCCEEDED: _ClassVar[ReplayJob.State]
        FAILED: _ClassVar[ReplayJob.State]
        CANCELLED: _ClassVar[ReplayJob.State]
    STATE_UNSPECIFIED: ReplayJob.State
    PENDING: ReplayJob.State
    RUNNING: ReplayJob.State
    SUCCEEDED: ReplayJob.State
    FAILED: ReplayJob.State
    CANCELLED: ReplayJob.State
    class Difference(_message.Message):
        __slots__ = ("ticket", "coupon_id", "user_id", "expected", "found")
        TICKET_FIELD_NUMBER: _ClassVar[int]
        COUPON_ID_FIELD_NUMBER: _ClassVar[int]
        USER_ID_FIELD_NUMBER: _ClassVar[int]
        EXPECTED_FIELD_NUMBER: _ClassVar[int]
        FOUND_FIELD_NUMBER: _ClassVar[int]
        ticket: str
        coupon_id: str
        user_id: str
        expected: str
        found: str
        def __init__(self, ticket: _Optional[str] = ..., coupon_id: _Optional[str] = ..., user_id: _Optional[str] = ..., expected: _Optional[str] = ..., found: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOPIC_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    MATCHED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DONE_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ReplayJob.Kind
    state: ReplayJob.State
    dead_letters: _dead_letter_pb2.DeadLetterFilter
    range: LogRange
    target_topic: str
    max_per_second: int
    dry_run: bool
    matched_count: int
    done_count: int
    failed_count: int
    difference_count: int
    differences: _containers.RepeatedCompositeFieldContainer[ReplayJob.Difference]
    error: _status_pb2.Status
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    caller: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ReplayJob.Kind, str]] = ..., state: _Optional[_Union[ReplayJob.State, str]] = ..., dead_letters: _Optional[_Union[_dead_letter_pb2.DeadLetterFilter, _Mapping]] = ..., range: _Optional[_Union[LogRange, _Mapping]] = ..., target_topic: _Optional[str] = ..., max_per_second: _Optional[int] = ..., dry_run: _Optional[bool] = ..., matched_count: _Optional[int] = ..., done_count: _Optional[int] = ..., failed_count: _Optional[int] = ..., difference_count: _Optional[int] = ..., differences: _Optional[_Iterable[_Union[ReplayJob.Difference, _Mapping]]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., caller: _Optional[str] = ...) -> None: ...

class LogRange(_message.Message):
    __slots__ = ("start_time", "end_time", "start_offsets", "end_offsets", "coupon_id")
    class StartOffsetsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class EndOffsetsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    START_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    END_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    COUPON_ID_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    start_offsets: _containers.ScalarMap[int, int]
    end_offsets: _containers.ScalarMap[int, int]
    coupon_id: str
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_offsets: _Optional[_Mapping[int, int]] = ..., end_offsets: _Optional[_Mapping[int, int]] = ..., coupon_id: _Optional[str] = ...) -> None: ...

class CreateReplayJobRequest(_message.Message):
    __slots__ = ("replay_job", "request_id")
    REPLAY_JOB_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    replay_job: ReplayJob
    request_id: str
    def __init__(self, replay_job: _Optional[_Union[ReplayJob, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetReplayJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListReplayJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReplayJobsResponse(_message.Message):
    __slots__ = ("replay_jobs", "next_page_token")
    REPLAY_JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    replay_jobs: _containers.RepeatedCompositeFieldContainer[ReplayJob]
    next_page_token: str
    def __init__(self, replay_jobs: _Optional[_Iterable[_Union[ReplayJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelReplayJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchReplayJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...
