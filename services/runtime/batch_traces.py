"""Traces of records that are worked on in batches.

A batch has a trace of its own, with links to the sampled records in it; and since links join no traces, each of these
has its part in its own trace, too. Many with the same traceparent, as of one call, have one part together. A record
that is not sampled costs nothing, but each dead letter leaves a span.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from opentelemetry.trace import SpanContext, SpanKind

from services.domain.model import Parked
from services.runtime import telemetry
from services.runtime.kafka import Record
from services.runtime.telemetry import Attributes, emit, messaging
from services.runtime.trace_context import HEADER, SAMPLED, child, is_sampled, parse

LINKS_MAX = 128
"""Of one batch's span; OpenTelemetry keeps no more by default."""
APART_MAX = 16
"""So many records of one traceparent have spans of their own: those of a sampled call of 1,000 cost a batch path of
which one call in a hundred is sampled a tenth of its speed."""

Headers = Sequence[tuple[str, bytes | None]]
Traces = Mapping[int, bytes]
"""The traceparents of records, by offset; an empty one is none."""


def traceparents(records: Iterable[Record]) -> Traces:
    """The traces that records name: one cheap look, for most name none."""
    naming = {record.offset: record for record in records for name, _ in record.headers if name == HEADER}
    return {offset: value for offset, record in naming.items() if (value := record.header(HEADER))}


def only(traces: Traces, offsets: Iterable[int]) -> Traces:
    """Those of the records at these offsets."""
    return {offset: traces[offset] for offset in offsets if offset in traces}


@contextlib.contextmanager
def process(
    topic: str, partition: int, count: int, traces: Traces, polled_ns: tuple[int, int], query: str
) -> Iterator[None]:
    """Work on a batch of so many records, read from `polled_ns[0]` to `polled_ns[1]`, in a transaction that `query`
    describes in short."""
    if not telemetry.is_on():
        yield
        return
    began_ns = time.time_ns()
    try:
        yield
    except BaseException as error:
        _write(topic, partition, count, traces, polled_ns, began_ns, query, type(error).__name__)
        raise
    _write(topic, partition, count, traces, polled_ns, began_ns, query, None)


def sent(topic: str, partition: int, traces: Traces, began_ns: int) -> None:
    """What the records caused was sent to a topic: outcomes, dead letters."""
    if not telemetry.is_on():
        return
    attributes, ended_ns = messaging(topic, partition, "send", "send"), time.time_ns()
    for offsets, context in _sampled(traces):
        place = _tickets(partition, offsets)
        emit(f"send {topic}", SpanKind.PRODUCER, child(context), context, began_ns, ended_ns, {**attributes, **place})


def redriven(topic: str, partition: int, headers: Headers, offset: int, began_ns: int) -> None:
    """A dead letter with these headers was put into the line again."""
    if not telemetry.is_on():
        return
    value = next((value for name, value in headers if name == HEADER), None)
    if is_sampled(value) and (context := parse(value)) is not None:
        attributes = {**messaging(topic, partition, "send", "send"), "messaging.kafka.offset": offset}
        emit(f"send {topic}", SpanKind.PRODUCER, child(context), context, began_ns, time.time_ns(), attributes)


def dead_lettered(topic: str, partition: int, parked: Sequence[tuple[Record, Parked]]) -> None:
    """A span for each dead letter: in its record's trace if that is sampled, else in one of its own with a link."""
    if not telemetry.is_on():
        return
    now_ns = time.time_ns()
    for record, verdict in parked:
        context = parse(record.header(HEADER))
        attributes: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.destination.name": topic,
            "firstcome.ticket": f"{partition}-{record.offset}",
        }
        parent = context if context is not None and context.trace_flags & SAMPLED else None
        links = [context] if context is not None and parent is None else []
        name, error = f"dead letter {topic}", verdict.reason.value
        emit(name, SpanKind.INTERNAL, child(parent), parent, now_ns, now_ns, attributes, links=links, error=error)


def trace_id(headers: Headers) -> str | None:
    """The trace id in a record's headers."""
    context = next((parse(value) for name, value in headers if name == HEADER), None)
    return None if context is None else f"{context.trace_id:032x}"


def _sampled(traces: Traces) -> list[tuple[Sequence[int], SpanContext]]:
    """Those that are kept: the span that sent the records at these offsets, one or more than APART_MAX."""
    senders: dict[bytes, list[int]] = defaultdict(list)
    for offset, value in traces.items():
        if is_sampled(value):
            senders[value].append(offset)
    kept: list[tuple[Sequence[int], SpanContext]] = []
    for value, offsets in senders.items():
        if (context := parse(value)) is not None:
            parts = [[offset] for offset in offsets] if len(offsets) <= APART_MAX else [offsets]
            kept += [(part, context) for part in parts]
    return kept


def _tickets(partition: int, offsets: Sequence[int]) -> dict[str, str | int]:
    """Which records a span is about; of many, the first and how many they are."""
    first: dict[str, str | int] = {"firstcome.ticket": f"{partition}-{offsets[0]}"}
    return first if len(offsets) == 1 else {**first, "messaging.batch.message_count": len(offsets)}


def _write(
    topic: str,
    partition: int,
    count: int,
    traces: Traces,
    polled_ns: tuple[int, int],
    began_ns: int,
    query: str,
    error: str | None,
) -> None:
    kept = _sampled(traces)
    if not kept and error is None:
        return
    ended_ns = time.time_ns()
    polling, working = f"poll {topic}", f"process {topic}"
    poll, work = messaging(topic, partition, "poll", "receive"), messaging(topic, partition, "process", "process")
    stored = telemetry.database(query, count)

    receipt = child(None)
    batch = child(receipt)
    links = [context for _, context in kept[:LINKS_MAX]]
    size: Attributes = {"messaging.batch.message_count": count}
    worked_ns = began_ns, ended_ns
    emit(polling, SpanKind.CLIENT, receipt, None, *polled_ns, {**poll, **size}, links=links)
    emit(working, SpanKind.CONSUMER, batch, receipt, *worked_ns, {**work, **size}, links=links, error=error)
    emit(query, SpanKind.CLIENT, child(batch), batch, *worked_ns, stored, error=error)

    since_read_ns = polled_ns[1], ended_ns
    for offsets, sender in kept:
        place: Attributes = {"messaging.kafka.offset": offsets[0], **_tickets(partition, offsets)}
        own = child(sender)
        emit(polling, SpanKind.CLIENT, child(sender), sender, *polled_ns, {**poll, **place})
        emit(working, SpanKind.CONSUMER, own, sender, *since_read_ns, {**work, **place}, links=[batch], error=error)
        emit(query, SpanKind.CLIENT, child(own), own, *worked_ns, stored, error=error)
