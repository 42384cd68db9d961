"""What an operator can do about each reason."""

from __future__ import annotations

from collections.abc import Mapping

from firstcome.errors import DeadlineExceeded, FirstcomeError, Overloaded, Reason, Unavailable

_ADVICE: Mapping[str, str] = {
    Reason.ALREADY_ISSUED: "`firstcome issuances get COUPON USER` shows it",
    Reason.SOLD_OUT: "`firstcome coupons adjust COUPON --by N` adds stock",
    Reason.NOT_OPEN: "`firstcome coupons update COUPON --start TIME` moves the opening",
    Reason.ENDED: "`firstcome coupons update COUPON --end TIME` moves the end",
    Reason.PAUSED: "`firstcome coupons resume COUPON` ends the pause",
    Reason.CLOSED: "a closed coupon stays closed; create another",
    Reason.INSUFFICIENT_STOCK: "take no more than what `firstcome coupons get COUPON` shows as left",
    Reason.COUPON_NOT_FOUND: "`firstcome coupons ls` shows what there is",
    Reason.ISSUANCE_NOT_FOUND: "the user does not have it; a request without a grant is found by its --ticket alone",
    Reason.COUPON_EXISTS: "`firstcome coupons get COUPON` shows it; choose another id, or update it",
    Reason.ETAG_MISMATCH: "get it again, look at what has changed, and repeat with its etag",
    Reason.PARKED: "`firstcome dlq show TICKET` says why, and what can be done",
    Reason.WRONG_STATE: "`firstcome dlq show TICKET` or `firstcome replay show JOB` says where it stands",
    Reason.DEAD_LETTER_NOT_FOUND: "`firstcome dlq ls` shows what there is",
    Reason.REPLAY_JOB_NOT_FOUND: "`firstcome replay ls` shows what there is",
    Reason.UNAUTHENTICATED: "give a valid token by --token-file, or a certificate by --cert and --key",
    Reason.ROLE_MISSING: "use a token that has the role for this",
}


def advice(error: FirstcomeError) -> str:
    """A sentence, or "" where the error itself says all."""
    again = "repeat the command"
    if error.request_id:
        again += f" with --request-id {error.request_id}: that is harmless whether or not it was done"
    if isinstance(error, DeadlineExceeded):
        return f"there was no answer in time: check --address (--dlq), or give more by --timeout; then {again}"
    if error.reason == "UNAVAILABLE":
        return f"check --address (--dlq) and whether the service runs (and whether it wants TLS: --ca); then {again}"
    if isinstance(error, Unavailable | Overloaded):
        after = f" in {error.retry_after_s:g} s" if error.retry_after_s else " later"
        return again + after if not error.request_id else f"{after.strip()}, {again}"
    return _ADVICE.get(error.reason, "")
