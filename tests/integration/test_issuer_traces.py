"""One trace from the call through the line to the verdict, and logs that carry it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from services.runtime.kafka import TRACEPARENT as HEADER
from services.runtime.kafka import Topics
from stack import Services, Stack, free_port
from tests.contract.issuing import (
    TRACE,
    TRACEPARENT,
    Client,
    Issuance,
    System,
    eventually,
    home,
    new_id,
    refused,
)
from tests.integration.test_issuer_away import Wire

SERVER = trace_pb2.Span.SPAN_KIND_SERVER
PRODUCER = trace_pb2.Span.SPAN_KIND_PRODUCER
CONSUMER = trace_pb2.Span.SPAN_KIND_CONSUMER
CALLER_SPAN = TRACEPARENT.split("-")[2]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans by OTLP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, trace_pb2.Span]] = []

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            for scope in resource.scope_spans:
                self.spans += [(names[0], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, kind: Any, trace: str) -> list[tuple[str, trace_pb2.Span]]:
        return [(service, span) for service, span in self.spans if span.kind == kind and span.trace_id.hex() == trace]


@pytest.fixture
async def fresh(stack: Stack, database: str, topics: Topics) -> AsyncIterator[System]:
    made = System(stack, database, topics)
    yield made
    await made.close()


async def test_without_an_exporter_the_callers_header_is_passed_on(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as client, fresh.ledger():
        await client.create(coupon_id)
        for user, header in (("ann", TRACEPARENT), ("bob", "nonsense"), ("cem", "")):
            metadata = (("traceparent", header),) if header else None
            answer = await client.issue(coupon_id, user, wait=True, metadata=metadata)
            offset = int(answer.ticket.split("-")[1])
            expected = TRACEPARENT.encode() if user == "ann" else None
            record = (await fresh.records(fresh.topics.line, home(coupon_id)))[offset]
            assert record.header(HEADER) == expected
            outcomes = await fresh.records(fresh.topics.outcomes, home(coupon_id))
            (outcome,) = [o for o in outcomes.values() if (o.header("ce_id") or b"").endswith(b"/%d" % offset)]
            assert outcome.header(HEADER) == expected


async def test_one_trace_from_the_call_to_the_verdict(fresh: System, tmp_path: Path) -> None:
    coupon_id = new_id()
    collector, port = Collector(), free_port()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    wire = Wire(fresh.dsn)
    await wire.join()
    services = Services(
        fresh.stack.kafka_bootstrap,
        fresh.dsn,
        names=("issuer", "ledger"),
        topic_prefix=fresh.topics.prefix,
        log_dir=tmp_path,
        env={
            "FIRSTCOME_POSTGRES_DSN": wire.dsn,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        },
    )
    await asyncio.to_thread(services.start)
    try:
        client = Client(services.issuer_address)
        await client.create(coupon_id)
        traced = (("traceparent", TRACEPARENT),)
        answer = await client.issue(coupon_id, "ann", wait=True, metadata=traced)
        offset = int(answer.ticket.split("-")[1])

        async def arrived() -> bool:
            kinds = (
                SERVER,
                PRODUCER,
                CONSUMER,
            )
            return all(collector.of(kind, TRACE) for kind in kinds)

        await eventually(arrived)
        ((server_of, called),) = collector.of(SERVER, TRACE)
        ((sender, sent),) = collector.of(PRODUCER, TRACE)
        ((settler, settled),) = collector.of(CONSUMER, TRACE)
        assert (server_of, sender, settler) == ("firstcome-issuer", "firstcome-issuer", "firstcome-ledger")
        assert "IssueCoupon" in called.name
        assert (sent.name, settled.name) == (f"send {fresh.topics.line}", f"process {fresh.topics.line}")
        assert called.parent_span_id.hex() == CALLER_SPAN
        assert sent.parent_span_id == called.span_id
        assert settled.parent_span_id == sent.span_id
        # The line and the outcome carry the sender's span.
        expected = f"00-{TRACE}-{sent.span_id.hex()}-01".encode()
        assert (await fresh.records(fresh.topics.line, home(coupon_id)))[offset].header(HEADER) == expected
        outcomes = await fresh.records(fresh.topics.outcomes, home(coupon_id))
        assert expected in [outcome.header(HEADER) for outcome in outcomes.values()]

        # A collector that is away costs nothing.
        await server.stop(grace=None)
        assert (await client.issue(coupon_id, "bob", wait=True, metadata=traced)).state == Issuance.ISSUED

        # What goes wrong in a call is logged with its trace.
        await wire.cut()
        other = TRACEPARENT.replace(TRACE, "1" * 32)
        failure = await refused(client.issue(coupon_id, "cem", metadata=(("traceparent", other),)))
        assert failure.reason == "DATABASE_UNAVAILABLE"
        await client.channel.close()

        async def logged() -> list[Any]:
            lines = (tmp_path / "issuer.log").read_text().splitlines()
            said = [json.loads(line) for line in lines if line.startswith("{")]
            return [one for one in said if one.get("event") == "issue_unavailable"]

        (line, *_) = await eventually(logged)
        assert (line["trace_id"], line["service"], line["level"]) == ("1" * 32, "issuer", "warning")
        assert line["span_id"]
        await wire.join()
    finally:
        await asyncio.to_thread(services.stop)
        await wire.cut()
        await server.stop(grace=None)
    for name in ("issuer", "ledger"):
        assert services.processes[name].returncode == 0
