import datetime

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

class Issuance(_message.Message):
    __slots__ = ("name", "coupon", "user_id", "request_id", "state", "reject_reason", "ticket", "position_in_line", "sequence", "accept_time", "settle_time")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Issuance.State]
        ACCEPTED: _ClassVar[Issuance.State]
        ISSUED: _ClassVar[Issuance.State]
        REJECTED: _ClassVar[Issuance.State]
        PARKED: _ClassVar[Issuance.State]
    STATE_UNSPECIFIED: Issuance.State
    ACCEPTED: Issuance.State
    ISSUED: Issuance.State
    REJECTED: Issuance.State
    PARKED: Issuance.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUPON_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REJECT_REASON_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    POSITION_IN_LINE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_TIME_FIELD_NUMBER: _ClassVar[int]
    SETTLE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    coupon: str
    user_id: str
    request_id: str
    state: Issuance.State
    reject_reason: str
    ticket: str
    position_in_line: int
    sequence: int
    accept_time: _timestamp_pb2.Timestamp
    settle_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., coupon: _Optional[str] = ..., user_id: _Optional[str] = ..., request_id: _Optional[str] = ..., state: _Optional[_Union[Issuance.State, str]] = ..., reject_reason: _Optional[str] = ..., ticket: _Optional[str] = ..., position_in_line: _Optional[int] = ..., sequence: _Optional[int] = ..., accept_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., settle_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class IssueCouponRequest(_message.Message):
    __slots__ = ("coupon", "user_id", "request_id", "wait")
    COUPON_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    coupon: str
    user_id: str
    request_id: str
    wait: bool
    def __init__(self, coupon: _Optional[str] = ..., user_id: _Optional[str] = ..., request_id: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class BatchIssueCouponsRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[IssueCouponRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[IssueCouponRequest, _Mapping]]] = ...) -> None: ...

class BatchIssueCouponsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[IssueResult]
    def __init__(self, results: _Optional[_Iterable[_Union[IssueResult, _Mapping]]] = ...) -> None: ...

class IssueResult(_message.Message):
    __slots__ = ("issuance", "error")
    ISSUANCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    issuance: Issuance
    error: _status_pb2.Status
    def __init__(self, issuance: _Optional[_Union[Issuance, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class GetIssuanceRequest(_message.Message):
    __slots__ = ("name", "ticket")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    name: str
    ticket: str
    def __init__(self, name: _Optional[str] = ..., ticket: _Optional[str] = ...) -> None: ...

class WatchIssuanceRequest(_message.Message):
    __slots__ = ("name", "ticket")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    name: str
    ticket: str
    def __init__(self, name: _Optional[str] = ..., ticket: _Optional[str] = ...) -> None: ...

class ListIssuancesRequest(_message.Message):
    __slots__ = ("parent", "user_id", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    user_id: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., user_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListIssuancesResponse(_message.Message):
    __slots__ = ("issuances", "next_page_token")
    ISSUANCES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    issuances: _containers.RepeatedCompositeFieldContainer[Issuance]
    next_page_token: str
    def __init__(self, issuances: _Optional[_Iterable[_Union[Issuance, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
