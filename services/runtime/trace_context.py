"""Which trace the work at hand belongs to: W3C Trace Context, in calls' metadata and records' headers."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from contextvars import ContextVar

from opentelemetry.trace import SpanContext, TraceFlags

HEADER = "traceparent"
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
NOT_SAMPLED = TraceFlags(TraceFlags.DEFAULT)
Metadata = Sequence[tuple[str, str | bytes]]
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

current: ContextVar[SpanContext | None] = ContextVar("trace", default=None)
"""The span under way, sampled or not."""
incoming: ContextVar[Metadata] = ContextVar("incoming", default=())
"""What the call brought. It is looked at only where a trace is asked for: most calls' is not."""


def trace_of_call() -> SpanContext | None:
    """The span under way, or else the caller's own."""
    return current.get() or from_metadata(incoming.get())


def from_metadata(metadata: Metadata | None) -> SpanContext | None:
    """The caller's span, if a valid one was named."""
    for name, value in metadata or ():
        if name == HEADER:
            return parse(value)
    return None


def parse(value: bytes | str | None) -> SpanContext | None:
    """The span that a header names, if it is a valid one."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value or ""
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    flags = TraceFlags(int(match[3], 16))
    context = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags)
    return context if context.is_valid else None


def is_sampled(value: bytes | None) -> bool:
    """Whether the header says that its trace is kept: cheap, for most are not."""
    return value is not None and len(value) == 55 and value[-1] & 1 == 1


def header(context: SpanContext) -> bytes:
    """The header that names the span."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}".encode()


def child(parent: SpanContext | None) -> SpanContext:
    """A new sampled span of the parent's trace, or of a new one."""
    return span(trace_id_under(parent), SAMPLED)


def trace_id_under(parent: SpanContext | None) -> int:
    """The parent's, or a new one."""
    return parent.trace_id if parent is not None else random.getrandbits(128) or 1


def span(trace_id: int, flags: TraceFlags) -> SpanContext:
    """A new span of that trace."""
    return SpanContext(trace_id, random.getrandbits(64) or 1, is_remote=False, trace_flags=flags)
