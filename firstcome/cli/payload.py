"""A dead letter's bytes as a person can read them, and a corrected record from what a person writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from coupon.v1 import events_pb2
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from firstcome.dead_letters import DeadLetter

PACKAGE = "coupon.v1."
ISSUE_REQUESTED = f"{PACKAGE}CouponIssueRequestedEvent"
_LINE: Mapping[str, type[Message]] = {
    ISSUE_REQUESTED: events_pb2.CouponIssueRequestedEvent,
    f"{PACKAGE}CouponChangeRequestedEvent": events_pb2.CouponChangeRequestedEvent,
}
HEX_BYTES_MAX = 256


def type_of(letter: DeadLetter) -> str:
    """The message that the record's `ce_type` names; it may be none of ours."""
    return letter.headers.get("ce_type", b"").decode(errors="replace")


def payload(letter: DeadLetter) -> dict[str, Any] | None:
    """The value's fields by its type; None where it does not decode, or is of no type of the line."""
    made = _LINE.get(type_of(letter))
    if made is None:
        return None
    try:
        return json_format.MessageToDict(made.FromString(letter.value), preserving_proto_field_name=True)
    except (DecodeError, ValueError):
        return None


def readable(content: bytes) -> str:
    """As text where it is printable; else in hexadecimal, the first bytes of it."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and (text or not content):
        return text
    shown = content[:HEX_BYTES_MAX].hex(" ")
    more = f" … ({len(content):,} bytes)" if len(content) > HEX_BYTES_MAX else ""
    return f"0x {shown}{more}"


def corrected(text: str, ce_type: str) -> tuple[bytes, str]:
    """Value and type of a corrected record, from its fields as JSON, or @file with them. Raises typer.BadParameter."""
    full = ce_type if ce_type.startswith(PACKAGE) else PACKAGE + ce_type
    made = _LINE.get(full)
    if made is None:
        raise typer.BadParameter(f"--type is {ce_type!r}: it must be one of {', '.join(_LINE)}")
    try:
        if text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        fields = json.loads(text)
        return json_format.ParseDict(fields, made()).SerializeToString(), full
    except OSError as error:
        raise typer.BadParameter(f"--corrected: {error}") from error
    except (ValueError, json_format.ParseError) as error:
        raise typer.BadParameter(f"--corrected is no {full} as JSON: {error}") from error
