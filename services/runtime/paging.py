"""Page tokens: opaque, and bound to the filter of the list that gave them."""

from __future__ import annotations

import base64
import binascii
import hashlib

_CHECK_BYTES = 8
TOKEN_LENGTH_MAX = 1_024


def page_token(filter_key: str, after: str) -> str:
    """The token of the page behind the row `after`, for the list with that filter."""
    return base64.urlsafe_b64encode(_check(filter_key, after) + after.encode()).decode().rstrip("=")


def parse_page_token(filter_key: str, token: str) -> str | None:
    """The row behind which the page begins; "" for the first; None for a token of another list or filter."""
    if not token:
        return ""
    try:
        if len(token) > TOKEN_LENGTH_MAX:
            return None
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        after = raw[_CHECK_BYTES:].decode()
    except (binascii.Error, ValueError):
        return None
    return after if raw[:_CHECK_BYTES] == _check(filter_key, after) else None


def _check(filter_key: str, after: str) -> bytes:
    return hashlib.sha256(f"{filter_key}\0{after}".encode()).digest()[:_CHECK_BYTES]
