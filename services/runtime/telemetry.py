"""Traces: a `traceparent` from the call through the line to the verdict, exported by OTLP when an endpoint is set.

Spans follow the messaging conventions of OpenTelemetry: `send T` (PRODUCER) where a request is put on the line,
`process T` (CONSUMER) for a settled batch with links to its sampled records, and, since links join no traces, one
`process T` in each sampled record's own trace. Without an endpoint the header is only passed on.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags

from services.domain.model import Parked
from services.runtime.kafka import TRACEPARENT, Record

FLUSH_TIMEOUT_MS = 3_000
LINKS_MAX = 128
"""Of one batch's span; OpenTelemetry keeps no more by default."""
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

_tracer: trace.Tracer = trace.NoOpTracer()
_always: trace.Tracer = trace.NoOpTracer()
_on = False


def configure(service: str) -> None:
    """Export spans by OTLP if the standard variables name an endpoint; sampling by OTEL_TRACES_SAMPLER."""
    global _tracer, _always, _on
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return
    resource = Resource.create({"service.name": f"firstcome-{service}"})
    processor = BatchSpanProcessor(OTLPSpanExporter())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    # What head sampling can't foresee, an error or a dead letter, is always kept, as a linked span of its own.
    always = TracerProvider(resource=resource, sampler=ALWAYS_ON)
    always.add_span_processor(processor)
    _tracer, _always, _on = provider.get_tracer("firstcome"), always.get_tracer("firstcome"), True
    AsyncPGInstrumentor().instrument()  # type: ignore[no-untyped-call]


def shutdown() -> None:
    """Send what is left, within FLUSH_TIMEOUT_MS; a dead collector must not hold up the end of a service."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        sending = threading.Thread(target=provider.shutdown, daemon=True)
        sending.start()
        sending.join(FLUSH_TIMEOUT_MS / 1000)


def server_interceptors() -> list[Any]:
    """gRPC server spans, if anything is exported."""
    return [aio_server_interceptor()] if _on else []  # type: ignore[no-untyped-call]


def traceparent(metadata: Sequence[tuple[str, str | bytes]] | None) -> bytes | None:
    """The header for what a call causes: the current span's, or the caller's own passed on."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        return _format(context)
    for name, value in metadata or ():
        if name == TRACEPARENT and isinstance(value, str) and _TRACEPARENT.fullmatch(value):
            return value.encode()
    return None


@contextlib.contextmanager
def send(topic: str, partition: int, key: str) -> Iterator[None]:
    """The PRODUCER span of putting a record on a topic; current within, so that `traceparent` gives its header."""
    if not _on:
        yield
        return
    attributes = {**_attributes(topic, "send", "send"), "messaging.kafka.message.key": key}
    attributes["messaging.destination.partition.id"] = str(partition)
    with _tracer.start_as_current_span(f"send {topic}", kind=SpanKind.PRODUCER, attributes=attributes):
        yield


@contextlib.contextmanager
def process_batch(topic: str, partition: int, records: Sequence[Record]) -> Iterator[None]:
    """The CONSUMER spans of settling a batch."""
    if not _on:
        yield
        return
    attributes = {
        **_attributes(topic, "process", "process"),
        "messaging.destination.partition.id": str(partition),
        "messaging.batch.message_count": len(records),
    }
    contexts = [(r, c) for r in records if (c := _parse(r.header(TRACEPARENT))) is not None and c.trace_flags.sampled]
    links = [Link(context) for _, context in contexts[:LINKS_MAX]]
    spans = [
        _tracer.start_span(
            f"process {topic}",
            context=trace.set_span_in_context(NonRecordingSpan(context)),
            kind=SpanKind.CONSUMER,
            attributes={**attributes, "messaging.kafka.offset": record.offset},
        )
        for record, context in contexts
    ]
    with _tracer.start_as_current_span(
        f"process {topic}", kind=SpanKind.CONSUMER, attributes=attributes, links=links
    ) as batch:
        try:
            yield
        except BaseException as error:
            for span in spans:
                _fail(span, error)
            raise
        finally:
            for span in spans:
                if batch.get_span_context().is_valid:
                    span.add_link(batch.get_span_context())
                span.end()


def dead_lettered(topic: str, partition: int, parked: Sequence[tuple[Record, Parked]]) -> None:
    """An always sampled span for each dead letter, linked to the trace of its record."""
    if not _on:
        return
    for record, verdict in parked:
        context = _parse(record.header(TRACEPARENT))
        span = _always.start_span(
            f"dead letter {topic}",
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            kind=SpanKind.INTERNAL,
            attributes={
                "messaging.system": "kafka",
                "messaging.destination.name": topic,
                "firstcome.ticket": f"{partition}-{record.offset}",
                "error.type": verdict.reason.value,
            },
            links=[Link(context)] if context else [],
        )
        span.set_status(StatusCode.ERROR, verdict.message)
        span.end()


def trace_id(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """The trace id in a record's headers."""
    for name, value in headers:
        if name == TRACEPARENT:
            context = _parse(value)
            return f"{context.trace_id:032x}" if context else None
    return None


def _attributes(topic: str, operation: str, operation_type: str) -> dict[str, str | int]:
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": topic,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation_type,
    }


def _fail(span: Span, error: BaseException) -> None:
    span.set_status(StatusCode.ERROR, type(error).__name__)
    span.set_attribute("error.type", type(error).__name__)


def _format(context: SpanContext) -> bytes:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}".encode()


def _parse(value: bytes | None) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch((value or b"").decode(errors="replace"))
    if match is None:
        return None
    context = SpanContext(
        int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(int(match[3], 16))
    )
    return context if context.is_valid else None
