"""Traces: one of a call, through the line, to the verdict, exported by OTLP when an endpoint is set.

The decision comes first: for a call that is not sampled there is a trace id for its logs and nothing else. Spans of
sampled ones are written down when they have ended. Names and attributes follow OpenTelemetry's conventions for rpc,
messaging and databases. Without an endpoint the caller's header is only passed on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode

from services.runtime import trace_context
from services.runtime.trace_context import NOT_SAMPLED, SAMPLED, child, current

FLUSH_TIMEOUT_MS = 3_000
QUEUE_SPANS_MAX = 16_384
"""About 25 MB while no collector takes them; what is more is dropped. OTEL_BSP_MAX_QUEUE_SIZE sets another."""

Attributes = Mapping[str, str | int]
_SCOPE = InstrumentationScope("firstcome")
_UNSET = Status(StatusCode.UNSET)


class _Exporting:
    """What spans go to, if anything is exported."""

    def __init__(self, service: str, kafka: str, postgres: str) -> None:
        self.resource = Resource.create({"service.name": f"firstcome-{service}"})
        queue = None if os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") else QUEUE_SPANS_MAX
        self.processor: SpanProcessor = BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=queue)
        self.sampler = TracerProvider(resource=self.resource).sampler  # by OTEL_TRACES_SAMPLER
        host, _, port = kafka.partition(",")[0].rpartition(":")
        self.kafka: Attributes = {"server.address": host, "server.port": int(port)} if port.isdecimal() else {}
        database = urlsplit(postgres)
        self.postgres: Attributes = {
            "db.system.name": "postgresql",
            "db.namespace": database.path.strip("/"),
            "server.address": database.hostname or "",
            "server.port": database.port or 5432,
        }


_exporting: _Exporting | None = None


def configure(service: str, kafka: str, postgres: str) -> None:
    """Export spans by OTLP if the standard variables name an endpoint; sampling by OTEL_TRACES_SAMPLER."""
    global _exporting
    wanted = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if wanted and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true":
        _exporting = _Exporting(service, kafka, postgres)


def shutdown() -> None:
    """Send what is left, within FLUSH_TIMEOUT_MS; a dead collector must not hold up the end of a service."""
    if _exporting is not None:
        sending = threading.Thread(target=_exporting.processor.shutdown, daemon=True)
        sending.start()
        sending.join(FLUSH_TIMEOUT_MS / 1000)


def is_on() -> bool:
    """Whether anything is exported."""
    return _exporting is not None


def emit(
    name: str,
    kind: SpanKind,
    context: SpanContext,
    parent: SpanContext | None,
    start_ns: int,
    end_ns: int,
    attributes: Attributes,
    *,
    links: Sequence[SpanContext] = (),
    error: str | None = None,
) -> None:
    """Write down a span that has ended. `error` becomes its error.type."""
    if _exporting is None:
        return
    span = ReadableSpan(
        name,
        context,
        parent,
        _exporting.resource,
        attributes if error is None else {**attributes, "error.type": error},
        links=[Link(one) for one in links],
        kind=kind,
        status=_UNSET if error is None else Status(StatusCode.ERROR, error),
        start_time=start_ns,
        end_time=end_ns,
        instrumentation_scope=_SCOPE,
    )
    _exporting.processor.on_end(span)


def messaging(topic: str, partition: int | None, operation: str, operation_type: str) -> dict[str, str | int]:
    """The attributes of a span of Kafka's; `partition` is None where there are several."""
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": topic,
        **({} if partition is None else {"messaging.destination.partition.id": str(partition)}),
        "messaging.operation.name": operation,
        "messaging.operation.type": operation_type,
        **(_exporting.kafka if _exporting is not None else {}),
    }


def database(summary: str, batch: int) -> dict[str, str | int]:
    """The attributes of a span of PostgreSQL's; its name is the summary."""
    return {
        "db.query.summary": summary,
        "db.operation.batch.size": batch,
        **(_exporting.postgres if _exporting is not None else {}),
    }


def traceparent() -> bytes | None:
    """The header for what a call causes: the span under way, or the caller's own passed on.

    None where nobody keeps the trace and no caller has begun it: a header of each record would cost the ledger a tenth.
    """
    context = current.get()
    if context is not None and context.trace_flags & SAMPLED:
        return trace_context.header(context)
    parent = trace_context.from_metadata(trace_context.incoming.get())
    if parent is None:
        return None
    return trace_context.header(parent if context is None else context)


# Calls


@dataclass(slots=True)
class Call:
    """A call under way: its own span and the caller's."""

    context: SpanContext
    parent: SpanContext | None
    start_ns: int


def begin_call(method: str) -> Call | None:
    """The server's span of a call, current from now on. `method`: as /package.Service/Method."""
    if _exporting is None:
        return None
    parent = trace_context.from_metadata(trace_context.incoming.get())
    above = None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent))
    trace_id = trace_context.trace_id_under(parent)
    sampling = _exporting.sampler.should_sample(above, trace_id, method[1:], SpanKind.SERVER)
    context = trace_context.span(trace_id, SAMPLED if sampling.decision is Decision.RECORD_AND_SAMPLE else NOT_SAMPLED)
    current.set(context)
    return Call(context, parent, time.time_ns())


def end_call(call: Call | None, method: str, code: str, reason: str) -> None:
    """The call is answered. An INTERNAL error is kept in any case, in a trace of its own if its own is not sampled."""
    if call is None:
        return
    sampled = bool(call.context.trace_flags & SAMPLED)
    internal = code == "INTERNAL"
    if not sampled and not internal:
        return
    attributes = {"rpc.system.name": "grpc", "rpc.method": method[1:], "rpc.response.status_code": code}
    error = None if code == "OK" else reason or code
    context, parent = (call.context, call.parent) if sampled else (child(None), None)
    links = [] if sampled else [call.context]
    worked_ns = call.start_ns, time.time_ns()
    emit(method[1:], SpanKind.SERVER, context, parent, *worked_ns, attributes, links=links, error=error)


# Within a call


@contextlib.contextmanager
def _step(name: str, kind: SpanKind, parent: SpanContext, attributes: Attributes) -> Iterator[None]:
    context, start_ns = child(parent), time.time_ns()
    token = current.set(context)
    error = None
    try:
        yield
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        current.reset(token)
        emit(name, kind, context, parent, start_ns, time.time_ns(), attributes, error=error)


def _sampled() -> SpanContext | None:
    context = current.get()
    return context if context is not None and context.trace_flags & SAMPLED else None


def send(topic: str, partition: int, key: str) -> contextlib.AbstractContextManager[None]:
    """The PRODUCER span of putting a record on a topic; current within, so that `traceparent` names it."""
    if (parent := _sampled()) is None:
        return contextlib.nullcontext()
    return _step(f"send {topic}", SpanKind.PRODUCER, parent, _of_sent(topic, partition, key))


def _of_sent(topic: str, partition: int | None, key: str) -> dict[str, str | int]:
    return {**messaging(topic, partition, "send", "send"), "messaging.kafka.message.key": key}


def step(name: str) -> contextlib.AbstractContextManager[None]:
    """A part of the work without a convention of its own."""
    if (parent := _sampled()) is None:
        return contextlib.nullcontext()
    return _step(name, SpanKind.INTERNAL, parent, {})


# Within a call, by others than its own task: written down afterwards


@dataclass(frozen=True, slots=True)
class Sending:
    """What a call is about to put on a topic: the header of its records, and the PRODUCER span if that is kept."""

    traceparent: bytes | None
    span: SpanContext | None = None


_UNTRACED = Sending(None)


def begin_send() -> Sending:
    """Before it is known when that will be."""
    if (parent := _sampled()) is None:
        header = traceparent()
        return _UNTRACED if header is None else Sending(header)
    span = child(parent)
    return Sending(trace_context.header(span), span)


def end_send(
    sending: Sending,
    topic: str,
    partition: int | None,
    key: str,
    *,
    count: int,
    offset: int,
    start_ns: int,
    error: str | None,
) -> None:
    """`count` records were put there until now, the first of them at that offset (-1: nobody knows)."""
    parent = _sampled()
    if sending.span is None or parent is None:
        return
    attributes = _of_sent(topic, partition, key)
    if count > 1:
        attributes["messaging.batch.message_count"] = count
    if offset >= 0:
        attributes["messaging.kafka.offset"] = offset
    emit(f"send {topic}", SpanKind.PRODUCER, sending.span, parent, start_ns, time.time_ns(), attributes, error=error)


def queried(summary: str, count: int, start_ns: int, end_ns: int, error: str | None) -> None:
    """The CLIENT span of asking PostgreSQL about `count` things, the wait for others to ask with included."""
    if (parent := _sampled()) is not None:
        emit(summary, SpanKind.CLIENT, child(parent), parent, start_ns, end_ns, database(summary, count), error=error)
