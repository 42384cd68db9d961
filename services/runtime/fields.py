"""Requests to values: every bad field is found and named at once."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from services.domain.model import (
    DISPLAY_NAME_LENGTH_MAX,
    ID_LENGTH_MAX,
    CouponId,
    RequestId,
    is_id,
    is_request_id,
    printable,
)
from services.runtime.paging import parse_page_token
from services.runtime.rpc_errors import Violation, invalid

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000
PAGE_BYTES_MAX = 2 * 1024 * 1024
"""A page of a list ends early there."""
ID_RULE = "must be 1 to 128 of A-Z a-z 0-9 . _ ~ @ : + -"
_SECONDS_MIN = -62_135_596_800
_SECONDS_MAX = 253_402_300_799


def new_request_id() -> RequestId:
    """A random UUID for a caller who gave none; the library's own way to it takes twice as long."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return RequestId(f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}")


def coupon_id_in(name: str) -> CouponId | None:
    """The id in coupons/{coupon_id}, None for what is no such name."""
    collection, _, coupon_id = name.partition("/")
    return CouponId(coupon_id) if collection == "coupons" and is_id(coupon_id) else None


class Fields:
    """Collects violations; `finish` raises them all."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._violations: list[Violation] = []

    def bad(self, field: str, description: str) -> None:
        self._violations.append(Violation(self._prefix + field, description))

    def identifier(self, field: str, text: str) -> str:
        if not is_id(text):
            self.bad(field, ID_RULE)
        return text

    def coupon_name(self, field: str, text: str) -> CouponId:
        if coupon_id_in(text) is None:
            self.bad(field, f"must be coupons/{{coupon_id}}, where the id {ID_RULE}")
        return CouponId(text.partition("/")[2])

    def request_id(self, text: str) -> RequestId:
        """The caller's, or a new one for none."""
        if not text:
            return new_request_id()
        if not is_request_id(text):
            self.bad("request_id", "must be a UUID, as in 123e4567-e89b-12d3-a456-426614174000")
        return RequestId(text)

    def time(self, field: str, message: Timestamp) -> tuple[int, int]:
        """Seconds and microseconds."""
        if not (_SECONDS_MIN <= message.seconds <= _SECONDS_MAX and 0 <= message.nanos <= 999_999_999):
            self.bad(field, "must be a time from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z")
        return message.seconds, message.nanos // 1000

    def page_size(self, asked: int) -> int:
        """The default for 0; over-large sizes are coerced."""
        if asked < 0:
            self.bad("page_size", "must not be negative")
        return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)

    def page_token(self, filter_key: str, token: str, is_key: Callable[[str], bool]) -> str:
        """The key behind which the page begins; anyone can make a token, so the key is checked as well."""
        after = parse_page_token(filter_key, token)
        if after is None or (after and not is_key(after)):
            self.bad("page_token", "must be a next_page_token of this list with the same filter")
        return after or ""

    def display_name(self, field: str, text: str) -> None:
        if len(text) > DISPLAY_NAME_LENGTH_MAX:
            self.bad(field, f"must be at most {DISPLAY_NAME_LENGTH_MAX} characters")
        if any(unicodedata.category(c) == "Cc" for c in text):
            self.bad(field, "must have no control characters")

    def finish(self, request_id: str = "") -> None:
        """Raises Refusal if there was a violation."""
        if self._violations:
            raise invalid(self._violations, printable(request_id, ID_LENGTH_MAX))
