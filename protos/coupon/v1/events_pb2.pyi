from coupon.v1 import coupon_pb2 as _coupon_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CouponIssueRequestedEvent(_message.Message):
    __slots__ = ("coupon_id", "user_id", "request_id")
    COUPON_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    coupon_id: str
    user_id: str
    request_id: str
    def __init__(self, coupon_id: _Optional[str] = ..., user_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CouponChangeRequestedEvent(_message.Message):
    __slots__ = ("coupon_id", "request_id", "action", "coupon", "update_paths", "stock_delta", "etag", "caller")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[CouponChangeRequestedEvent.Action]
        CREATE: _ClassVar[CouponChangeRequestedEvent.Action]
        UPDATE: _ClassVar[CouponChangeRequestedEvent.Action]
        ADJUST_STOCK: _ClassVar[CouponChangeRequestedEvent.Action]
        PAUSE: _ClassVar[CouponChangeRequestedEvent.Action]
        RESUME: _ClassVar[CouponChangeRequestedEvent.Action]
        CLOSE: _ClassVar[CouponChangeRequestedEvent.Action]
    ACTION_UNSPECIFIED: CouponChangeRequestedEvent.Action
    CREATE: CouponChangeRequestedEvent.Action
    UPDATE: CouponChangeRequestedEvent.Action
    ADJUST_STOCK: CouponChangeRequestedEvent.Action
    PAUSE: CouponChangeRequestedEvent.Action
    RESUME: CouponChangeRequestedEvent.Action
    CLOSE: CouponChangeRequestedEvent.Action
    COUPON_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    COUPON_FIELD_NUMBER: _ClassVar[int]
    UPDATE_PATHS_FIELD_NUMBER: _ClassVar[int]
    STOCK_DELTA_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    coupon_id: str
    request_id: str
    action: CouponChangeRequestedEvent.Action
    coupon: _coupon_pb2.Coupon
    update_paths: _containers.RepeatedScalarFieldContainer[str]
    stock_delta: int
    etag: str
    caller: str
    def __init__(self, coupon_id: _Optional[str] = ..., request_id: _Optional[str] = ..., action: _Optional[_Union[CouponChangeRequestedEvent.Action, str]] = ..., coupon: _Optional[_Union[_coupon_pb2.Coupon, _Mapping]] = ..., update_paths: _Optional[_Iterable[str]] = ..., stock_delta: _Optional[int] = ..., etag: _Optional[str] = ..., caller: _Optional[str] = ...) -> None: ...

class CouponIssuedEvent(_message.Message):
    __slots__ = ("coupon_id", "user_id", "request_id", "ticket", "sequence", "redrive_of")
    COUPON_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REDRIVE_OF_FIELD_NUMBER: _ClassVar[int]
    coupon_id: str
    user_id: str
    request_id: str
    ticket: str
    sequence: int
    redrive_of: str
    def __init__(self, coupon_id: _Optional[str] = ..., user_id: _Optional[str] = ..., request_id: _Optional[str] = ..., ticket: _Optional[str] = ..., sequence: _Optional[int] = ..., redrive_of: _Optional[str] = ...) -> None: ...

class CouponRejectedEvent(_message.Message):
    __slots__ = ("coupon_id", "user_id", "request_id", "ticket", "reason", "issued_ticket", "issued_sequence", "redrive_of")
    COUPON_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ISSUED_TICKET_FIELD_NUMBER: _ClassVar[int]
    ISSUED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REDRIVE_OF_FIELD_NUMBER: _ClassVar[int]
    coupon_id: str
    user_id: str
    request_id: str
    ticket: str
    reason: str
    issued_ticket: str
    issued_sequence: int
    redrive_of: str
    def __init__(self, coupon_id: _Optional[str] = ..., user_id: _Optional[str] = ..., request_id: _Optional[str] = ..., ticket: _Optional[str] = ..., reason: _Optional[str] = ..., issued_ticket: _Optional[str] = ..., issued_sequence: _Optional[int] = ..., redrive_of: _Optional[str] = ...) -> None: ...

class CouponChangedEvent(_message.Message):
    __slots__ = ("coupon_id", "request_id", "ticket", "reason", "coupon")
    COUPON_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUPON_FIELD_NUMBER: _ClassVar[int]
    coupon_id: str
    request_id: str
    ticket: str
    reason: str
    coupon: _coupon_pb2.Coupon
    def __init__(self, coupon_id: _Optional[str] = ..., request_id: _Optional[str] = ..., ticket: _Optional[str] = ..., reason: _Optional[str] = ..., coupon: _Optional[_Union[_coupon_pb2.Coupon, _Mapping]] = ...) -> None: ...
