"""One trace from the call through the line to the verdict, and logs that carry it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from coupon.v1 import issuer_pb2

from services.runtime.kafka import TRACEPARENT as HEADER
from services.runtime.kafka import Message, Topics
from stack import Link, Services, Stack
from stack.otlp import Span, TraceReceiver
from tests.contract.issuing import (
    TRACE,
    TRACEPARENT,
    Client,
    Issuance,
    System,
    eventually,
    home,
    issue_message,
    new_id,
    refused,
    request_id,
)

CALLER_SPAN = TRACEPARENT.split("-")[2]
ISSUE = "coupon.v1.IssuerService/IssueCoupon"
BATCH = "coupon.v1.IssuerService/BatchIssueCoupons"
LOOK_UP = "SELECT ledger_progress coupon user_coupon"
SETTLE = "UPDATE ledger_progress; SELECT coupon user_coupon; COPY user_coupon rejected_issue; UPDATE coupon"
FILE = "UPDATE ledger_progress; INSERT dead_letter_action dead_letter"
CROWD = 60
LARGE = 40
"""More requests of one call than have spans of their own."""


@pytest.fixture
async def fresh(stack: Stack, database: str, topics: Topics) -> AsyncIterator[System]:
    made = System(stack, database, topics)
    yield made
    await made.close()


def header(sampled: bool = True) -> tuple[str, str]:
    """A trace id of its own, and its traceparent."""
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{CALLER_SPAN}-{int(sampled):02d}"


def services_of(
    system: System, dsn: str, receiver: TraceReceiver, log_dir: Path, *names: str, export_s: int = 10
) -> Services:
    return Services(
        system.stack.kafka_bootstrap,
        system.dsn,
        names=names,
        topic_prefix=system.topics.prefix,
        log_dir=log_dir,
        env={
            "FIRSTCOME_POSTGRES_DSN": dsn,
            "FIRSTCOME_RETRY_BACKOFF_BASE_MS": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_EXPORTER_OTLP_TIMEOUT": str(export_s),
        },
    )


def one(spans: list[Span], name: str, kind: str) -> Span:
    (found,) = [span for span in spans if (span.name, span.kind) == (name, kind)]
    return found


async def test_without_an_exporter_the_callers_header_is_passed_on(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.issuer() as client, fresh.ledger():
        await client.create(coupon_id)
        for user, traceparent in (("ann", TRACEPARENT), ("bob", "nonsense"), ("cem", "")):
            metadata = (("traceparent", traceparent),) if traceparent else None
            answer = await client.issue(coupon_id, user, wait=True, metadata=metadata)
            offset = int(answer.ticket.split("-")[1])
            expected = TRACEPARENT.encode() if user == "ann" else None
            record = (await fresh.records(fresh.topics.line, home(coupon_id)))[offset]
            assert record.header(HEADER) == expected
            outcomes = await fresh.records(fresh.topics.outcomes, home(coupon_id))
            (outcome,) = [o for o in outcomes.values() if (o.header("ce_id") or b"").endswith(b"/%d" % offset)]
            assert outcome.header(HEADER) == expected


async def test_each_sampled_ticket_of_a_rush_is_one_trace_with_all_its_parts(fresh: System, tmp_path: Path) -> None:
    coupon_id, topics = new_id(), fresh.topics
    with TraceReceiver() as receiver:
        services = services_of(fresh, fresh.dsn, receiver, tmp_path, "issuer", "ledger", "dlq")
        await asyncio.to_thread(services.start)
        try:
            client = Client(services.issuer_address)
            await client.create(coupon_id, total=CROWD // 2)
            kept = dict(header() for _ in range(CROWD))
            unkept = dict(header(sampled=False) for _ in range(CROWD))

            async def issue(user: str, traceparent: str, wait: bool) -> str:
                try:
                    metadata = (("traceparent", traceparent),)
                    return str((await client.issue(coupon_id, user, wait=wait, metadata=metadata)).ticket)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                        raise
                    return ""

            callers = [(t, h, n % 2 == 0) for n, (t, h) in enumerate((kept | unkept).items())]
            tickets = dict(
                zip(
                    (trace for trace, _, _ in callers),
                    await asyncio.gather(*(issue(f"user-{t}", h, wait) for t, h, wait in callers)),
                    strict=True,
                )
            )
            batched, metadata = header()
            large, large_metadata = header()
            coupon = f"coupons/{coupon_id}"
            await client.adjust(coupon_id, 10 + LARGE)
            for number, traceparent in ((3, metadata), (LARGE, large_metadata)):
                asked = [issuer_pb2.IssueCouponRequest(coupon=coupon, user_id=f"b{number}-{n}") for n in range(number)]
                request = issuer_pb2.BatchIssueCouponsRequest(requests=asked)
                answer = await client.issuer.BatchIssueCoupons(
                    request, timeout=20, metadata=(("traceparent", traceparent),)
                )
                assert [result.WhichOneof("result") for result in answer.results] == ["issuance"] * number
                first_of_large = answer.results[0].issuance.ticket
            # Two that can't be processed: a kept one, and one that nobody would know of.
            partition = home(coupon_id)
            bad = dict([header(), header(sampled=False)])
            broken = [Message(b"k", b"\xff", [(HEADER, traceparent.encode())]) for traceparent in bad.values()]
            dead = [str(ticket) for ticket in await fresh.put(topics.line, partition, *broken)]
            # An internal one, which is put into the line again by itself.
            retried, traceparent = header()
            sent = issue_message(coupon_id, "late", request_id())
            message = Message(sent.key, sent.value, [*sent.headers, (HEADER, traceparent.encode())])
            await client.channel.close()

            def whole(trace: str, ticket: str) -> bool:
                spans = receiver.traces().get(trace, [])
                return {f"send {topics.outcomes}", ISSUE} <= {span.name for span in spans} or not ticket

            async def arrived() -> bool:
                traces = receiver.traces()
                dead_letters = {s.attributes.get("firstcome.ticket") for s in receiver.spans if "dead letter" in s.name}
                filed = [s for s in traces.get(next(iter(bad)), []) if s.name == FILE]
                return all(whole(t, tickets[t]) for t in kept) and dead_letters == set(dead) and bool(filed)

            await eventually(arrived)
            await _redrive_of_internal(fresh, receiver, partition, message, retried)
        finally:
            await asyncio.to_thread(services.stop)
    traces = receiver.traces()

    in_line = [trace for trace in kept if tickets[trace]]
    assert len(in_line) >= CROWD // 4
    for trace in kept:
        spans = traces[trace]
        served = one(spans, ISSUE, "SERVER")
        assert served.parent_id == CALLER_SPAN
        assert served.attributes["rpc.system.name"] == "grpc"
        looked_up = one(spans, LOOK_UP, "CLIENT")
        assert looked_up.parent_id == served.span_id
        if not tickets[trace]:
            assert served.error == "SOLD_OUT"
            continue
        send = one(spans, f"send {topics.line}", "PRODUCER")
        poll, process = one(spans, f"poll {topics.line}", "CLIENT"), one(spans, f"process {topics.line}", "CONSUMER")
        stored, told = one(spans, SETTLE, "CLIENT"), one(spans, f"send {topics.outcomes}", "PRODUCER")
        assert [s.parent_id for s in (send, poll, process, stored, told)] == [
            served.span_id, send.span_id, send.span_id, process.span_id, send.span_id,
        ]  # fmt: skip
        assert {s.service for s in (served, looked_up, send)} == {"firstcome-issuer"}
        assert {s.service for s in (poll, process, stored, told)} == {"firstcome-ledger"}
        assert {s.attributes["firstcome.ticket"] for s in (poll, process, told)} == {tickets[trace]}
        assert stored.attributes["db.system.name"] == "postgresql"
        # The span of the whole batch links to this one, and this one to it.
        ((batch_trace, batch_span),) = process.links
        whole_batch = next(s for s in traces[batch_trace] if s.span_id == batch_span)
        assert (trace, send.span_id) in whole_batch.links
        assert {s.name for s in traces[batch_trace]} == {f"poll {topics.line}", f"process {topics.line}", SETTLE}
    assert not unkept.keys() & traces.keys()

    one(traces[batched], BATCH, "SERVER")
    batch_sent = one(traces[batched], f"send {topics.line}", "PRODUCER")
    assert batch_sent.attributes["messaging.batch.message_count"] == 3
    assert len([s for s in traces[batched] if s.name == f"process {topics.line}"]) == 3
    for name, kind in ((f"process {topics.line}", "CONSUMER"), (f"send {topics.outcomes}", "PRODUCER")):
        together = one(traces[large], name, kind)
        assert together.parent_id == one(traces[large], f"send {topics.line}", "PRODUCER").span_id
        assert together.attributes["messaging.batch.message_count"] == LARGE
        assert together.attributes["firstcome.ticket"] == first_of_large

    known, unknown = bad
    named = {s.name for s in traces[known]}
    assert {f"dead letter {topics.line}", f"send {topics.dlq}", f"process {topics.dlq}", FILE} <= named
    assert unknown not in traces
    (lonely,) = [s for s in receiver.spans if (unknown, CALLER_SPAN) in s.links]
    assert (lonely.name, lonely.error) == (f"dead letter {topics.line}", "WRONG_TYPE")


async def _redrive_of_internal(
    system: System, receiver: TraceReceiver, partition: int, message: Message, trace: str
) -> None:
    """The record is told on the DLQ as failed by chance: the dlq puts it into the line again, in the same trace."""
    (ticket,) = await system.put(system.topics.line, partition, message)
    await system.dead_letter(ticket)

    async def redriven() -> bool:
        names = [(span.service, span.name) for span in receiver.traces().get(trace, [])]
        return ("firstcome-dlq", f"send {system.topics.line}") in names and names.count(
            ("firstcome-ledger", f"process {system.topics.line}")
        ) == 2

    await eventually(redriven)


async def test_what_goes_wrong_in_a_call_is_logged_with_its_trace_and_a_dead_collector_costs_nothing(
    fresh: System, tmp_path: Path
) -> None:
    coupon_id = new_id()
    receiver = TraceReceiver()
    receiver.start()
    async with Link.to_postgres(fresh.dsn) as way:
        services = services_of(fresh, way.dsn(fresh.dsn), receiver, tmp_path, "issuer", "ledger", export_s=1)
        await asyncio.to_thread(services.start)
        try:
            client = Client(services.issuer_address)
            await client.create(coupon_id)
            traced = (("traceparent", TRACEPARENT),)
            answer = await client.issue(coupon_id, "ann", wait=True, metadata=traced)
            offset = int(answer.ticket.split("-")[1])

            async def arrived() -> Span | None:
                spans = receiver.traces().get(TRACE, [])
                return next((span for span in spans if span.name == f"send {fresh.topics.line}"), None)

            sent = await eventually(arrived)
            # The line and the outcome carry the sender's span.
            expected = f"00-{TRACE}-{sent.span_id}-01".encode()
            assert (await fresh.records(fresh.topics.line, home(coupon_id)))[offset].header(HEADER) == expected
            outcomes = await fresh.records(fresh.topics.outcomes, home(coupon_id))
            assert expected in [outcome.header(HEADER) for outcome in outcomes.values()]

            receiver.stop()
            assert (await client.issue(coupon_id, "bob", wait=True, metadata=traced)).state == Issuance.ISSUED

            way.go_down()
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
            way.heal()
        finally:
            await asyncio.to_thread(services.stop)
            receiver.stop()
    for name in ("issuer", "ledger"):
        assert services.processes[name].returncode == 0
