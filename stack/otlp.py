"""A small receiver of traces by OTLP over gRPC: it keeps the spans in memory, for demo and tests."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Final

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from stack import ports

SPANS_MAX: Final = 200_000
"""Kept; what comes after is not."""
_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it came. Ids are hexadecimal; `parent_id` is empty for a root, `error` where there was none."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int]
    links: tuple[tuple[str, str], ...]
    error: str


class TraceReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """A context manager. `keep` may take fewer than all."""

    def __init__(self, port: int | None = None, *, keep: Callable[[Span], bool] = lambda span: True) -> None:
        self.port = port or ports.free_port()
        self.endpoint = f"http://{ports.HOST}:{self.port}"
        self._keep = keep
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None

    @property
    def spans(self) -> list[Span]:
        """All of them so far."""
        with self._lock:
            return list(self._spans)

    def traces(self) -> dict[str, list[Span]]:
        """By trace id, each in the order in which they began."""
        found: defaultdict[str, list[Span]] = defaultdict(list)
        for span in sorted(self.spans, key=lambda span: span.start_ns):
            found[span.trace_id].append(span)
        return dict(found)

    def start(self) -> None:
        """Raises RuntimeError if the port is taken."""
        self._server = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(f"{ports.HOST}:{self.port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(grace=None).wait()

    def __enter__(self) -> "TraceReceiver":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        came = [
            _span(_text(resource.resource.attributes, "service.name"), span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        kept = [span for span in came if self._keep(span)]
        with self._lock:
            self._spans += kept[: SPANS_MAX - len(self._spans)]
        return trace_service_pb2.ExportTraceServiceResponse()


def _span(service: str, span: trace_pb2.Span) -> Span:
    values = {one.key: one.value for one in span.attributes}
    return Span(
        service=service,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes={k: v.int_value if v.HasField("int_value") else v.string_value for k, v in values.items()},
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        error=span.status.message if span.status.code == trace_pb2.Status.STATUS_CODE_ERROR else "",
    )


def _text(attributes: Sequence[common_pb2.KeyValue], key: str) -> str:
    return next((one.value.string_value for one in attributes if one.key == key), "")
