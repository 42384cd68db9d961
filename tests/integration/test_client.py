"""The client and the command line against the real services, started once for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from coupon.v1 import events_pb2
from typer.testing import CliRunner

from firstcome import (
    Client,
    Connection,
    CouponState,
    DeadlineExceeded,
    InvalidRequest,
    IssuanceState,
    IssueRequest,
    NotFound,
    Reason,
    Refused,
    connect,
)
from firstcome.cli import app
from stack import Services, Stack
from tests.conftest import _execute, unique_name

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
async def system(stack: Stack) -> AsyncIterator[tuple[str, str]]:
    """The DSN of an empty database, and a prefix for topics."""
    name = unique_name("client")
    # The stack's own calls block.
    yield await asyncio.to_thread(stack.create_database, name), f"{name}."
    await _execute(stack, f'DROP DATABASE "{name}" WITH (FORCE)')
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([one for one in await admin.list_topics() if one.startswith(f"{name}.")])
    finally:
        await admin.close()


@pytest.fixture(scope="module")
def services(stack: Stack, system: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """All services, on topics and tables of their own."""
    dsn, topic_prefix = system
    logs = tmp_path_factory.mktemp("client-logs")
    with Services(stack.kafka_bootstrap, dsn, topic_prefix=topic_prefix, log_dir=logs) as running:
        yield running


@pytest.fixture
async def client(services: Services) -> AsyncIterator[Client]:
    async with connect(Connection(services.issuer_address)) as made:
        yield made


@pytest.fixture
def coupon_id() -> str:
    return f"c-{uuid.uuid4().hex[:12]}"


async def test_coupon_is_created_changed_and_closed(client: Client, coupon_id: str) -> None:
    coupons = client.coupons
    opens = datetime(2030, 1, 1, 9, 30, 0, 250_000, tzinfo=UTC)
    made = await coupons.create(coupon_id, 10, display_name="Spring", start_time=opens)
    assert (made.coupon_id, made.state, made.start_time) == (coupon_id, CouponState.SCHEDULED, opens)
    assert made.total_quantity == made.remaining_count == 10

    changed = await coupons.update(coupon_id, start_time=None, end_time=opens + timedelta(days=1), etag=made.etag)
    assert (changed.state, changed.start_time, changed.display_name) == (CouponState.ACTIVE, None, "Spring")
    with pytest.raises(Refused) as stale:
        await coupons.update(coupon_id, display_name="x", etag=made.etag)
    assert stale.value.reason == Reason.ETAG_MISMATCH

    assert (await coupons.adjust_stock(coupon_id, -4)).remaining_count == 6
    with pytest.raises(Refused) as greedy:
        await coupons.adjust_stock(coupon_id, -7)
    assert greedy.value.reason == Reason.INSUFFICIENT_STOCK
    assert (await coupons.pause(coupon_id)).state is CouponState.PAUSED
    assert (await coupons.resume(coupon_id)).state is CouponState.ACTIVE
    assert (await coupons.close(coupon_id)).state is CouponState.CLOSED
    assert (await coupons.get(coupon_id)).state is CouponState.CLOSED
    with pytest.raises(Refused) as taken:
        await coupons.create(coupon_id, 1)
    assert (taken.value.reason, taken.value.resource) == (Reason.COUPON_EXISTS, f"coupons/{coupon_id}")


async def test_change_repeated_with_its_request_id_is_made_once(client: Client, coupon_id: str) -> None:
    await client.coupons.create(coupon_id, 10)
    request_id = str(uuid.uuid4())
    for _ in range(2):
        assert (await client.coupons.adjust_stock(coupon_id, 5, request_id=request_id)).total_quantity == 15
    with pytest.raises(InvalidRequest) as other:
        await client.coupons.adjust_stock(coupon_id, 6, request_id=request_id)
    assert [one.subject for one in other.value.violations] == ["request_id"]


async def test_coupons_are_listed_over_pages_and_by_state(client: Client, coupon_id: str) -> None:
    ids = [f"{coupon_id}-{number}" for number in range(5)]
    for one in ids:
        await client.coupons.create(one, 1)
    await client.coupons.pause(ids[2])
    everything = [one.coupon_id async for one in client.coupons.list(page_size=2)]
    assert everything == sorted(everything)
    assert set(ids) <= set(everything)
    paused = [one.coupon_id async for one in client.coupons.list(state=CouponState.PAUSED)]
    assert ids[2] in paused
    assert ids[1] not in paused


async def test_issue_answers_a_ticket_and_with_wait_the_verdict(client: Client, coupon_id: str) -> None:
    await client.coupons.create(coupon_id, 2)
    ann = await client.issue(coupon_id, "ann")
    assert (ann.state, ann.user_id) == (IssuanceState.ACCEPTED, "ann")
    followed = [one async for one in client.watch_issuance(coupon_id, "ann", ticket=ann.ticket)]
    assert (followed[-1].state, followed[-1].sequence) == (IssuanceState.ISSUED, 1)
    again = await client.issue(coupon_id, "ann", request_id=ann.request_id)
    assert (again.state, again.ticket) == (IssuanceState.ISSUED, ann.ticket)
    with pytest.raises(Refused) as other:
        await client.issue(coupon_id, "ann")
    assert other.value.reason == Reason.ALREADY_ISSUED

    bob = await client.issue(coupon_id, "bob", wait=True)
    assert (bob.state, bob.sequence) == (IssuanceState.ISSUED, 2)
    with pytest.raises(Refused) as late:
        await client.issue_and_wait(coupon_id, "eve", patience_s=20)
    assert late.value.reason == Reason.SOLD_OUT
    assert late.value.request_id

    assert (await client.get_issuance(coupon_id, "bob")).ticket == bob.ticket
    assert (await client.get_issuance(coupon_id, "bob", ticket=bob.ticket)).state is IssuanceState.ISSUED
    with pytest.raises(NotFound) as nobody:
        await client.get_issuance(coupon_id, "eve")
    assert nobody.value.reason == Reason.ISSUANCE_NOT_FOUND
    assert [one.user_id async for one in client.list_issuances(coupon_id, page_size=1)] == ["ann", "bob"]
    assert [one.user_id async for one in client.list_issuances(coupon_id, "bob")] == ["bob"]
    assert coupon_id in [one.coupon_id async for one in client.list_issuances(user_id="ann")]


async def test_every_bad_field_is_named(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.issue("no such/id", "", request_id="1")
    assert [one.subject for one in caught.value.violations] == ["coupon", "user_id", "request_id"]


async def test_many_requests_each_get_their_own_answer_in_order(client: Client, coupon_id: str) -> None:
    await client.coupons.create(coupon_id, 3_000)
    requests = [IssueRequest(coupon_id, f"u{number}") for number in range(5_000)]
    requests[10] = IssueRequest(coupon_id, "bad id")
    requests[4_321] = IssueRequest("nowhere", "u")
    results = [one async for one in client.issue_many(requests, timeout_s=60)]
    assert [one.request for one in results] == requests
    assert results[10].error is not None
    assert results[10].error.reason == Reason.INVALID_FIELD
    assert results[4_321].error is not None
    assert results[4_321].error.reason == Reason.COUPON_NOT_FOUND
    for one in results:
        assert one.issuance is None or one.issuance.user_id == one.request.user_id
    last = next(one.issuance for one in reversed(results) if one.issuance is not None)
    [one async for one in client.watch_issuance(coupon_id, last.user_id, ticket=last.ticket)]
    # The same values again: nobody gets a second one, and who has one is told so.
    again = [one async for one in client.issue_many(requests[:10], timeout_s=60)]
    assert {one.issuance.state for one in again if one.issuance} == {IssuanceState.ISSUED}
    for _ in range(100):
        coupon = await client.coupons.get(coupon_id)
        if coupon.remaining_count == 0:
            break
        await asyncio.sleep(0.1)
    assert coupon.issued_count == 3_000
    sequences = [one.sequence async for one in client.list_issuances(coupon_id, page_size=1_000)]
    assert sequences == list(range(1, 3_001))


async def test_issue_and_wait_outlives_a_ledger_that_is_away(
    client: Client, services: Services, coupon_id: str
) -> None:
    await client.coupons.create(coupon_id, 1)
    ledger = services.processes["ledger"]
    await asyncio.to_thread(ledger.stop)
    try:
        mine = str(uuid.uuid4())
        early = None
        while early is None:  # on a busy machine the answer may be later than the little that is left for it
            with contextlib.suppress(DeadlineExceeded):
                early = await client.issue_and_wait(coupon_id, "ann", patience_s=1.5, request_id=mine)
        assert early.state is IssuanceState.ACCEPTED
        waiting = asyncio.create_task(client.issue_and_wait(coupon_id, "ann", patience_s=60, request_id=mine))
        await asyncio.sleep(1)
    finally:
        ledger.start()
        await asyncio.to_thread(ledger.wait_ready)
    issuance = await waiting
    assert (issuance.state, issuance.request_id) == (IssuanceState.ISSUED, mine)


async def test_calls_go_through_while_the_issuer_is_restarted(
    client: Client, services: Services, coupon_id: str
) -> None:
    await client.coupons.create(coupon_id, 10)
    issuer = services.processes["issuer"]
    await asyncio.to_thread(issuer.stop)
    waiting = asyncio.create_task(client.issue_and_wait(coupon_id, "ann", patience_s=60))
    await asyncio.sleep(0.5)
    issuer.start()
    await asyncio.to_thread(issuer.wait_ready)
    assert (await waiting).state is IssuanceState.ISSUED


async def test_many_requests_outlive_a_killed_issuer_and_nobody_is_lost(
    client: Client, services: Services, coupon_id: str
) -> None:
    count = 20_000
    await client.coupons.create(coupon_id, count)
    issuer = services.processes["issuer"]
    requests = [IssueRequest(coupon_id, f"u{number}") for number in range(count)]
    results = []
    async for one in client.issue_many(requests, batch_size=500, timeout_s=60):
        results.append(one)
        if len(results) == 2_000:
            await asyncio.to_thread(issuer.kill)
            issuer.start()
    await asyncio.to_thread(issuer.wait_ready)
    assert [one.request for one in results] == requests
    assert [one.error for one in results if one.error] == []
    for _ in range(300):
        coupon = await client.coupons.get(coupon_id)
        if coupon.remaining_count == 0:
            break
        await asyncio.sleep(0.1)
    granted = {one.user_id: one.request_id async for one in client.list_issuances(coupon_id, page_size=1_000)}
    assert granted == {one.user_id: one.request_id for one in requests}


class CommandLine:
    """The command line in this process, as an operator calls it."""

    def __init__(self, address: str, dlq_address: str) -> None:
        self._env = {"FIRSTCOME_ADDRESS": address, "FIRSTCOME_DLQ": dlq_address, "COLUMNS": "200", "NO_COLOR": "1"}

    def __call__(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments), env=self._env)

    def json(self, *arguments: str) -> list[Mapping[str, Any]]:
        done = self(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def firstcome(services: Services) -> CommandLine:
    return CommandLine(services.issuer_address, services.dlq_address)


async def eventually_in(firstcome: CommandLine, ticket: str, state: str) -> Mapping[str, Any]:
    """The dead letter, once it is in that state."""
    for _ in range(300):
        shown = await asyncio.to_thread(firstcome, "dlq", "show", ticket, "--json")
        if shown.exit_code == 0 and (letter := json.loads(shown.stdout))["state"] == state:
            assert isinstance(letter, dict)
            return letter
        await asyncio.sleep(0.1)
    raise AssertionError(f"{ticket} is not {state}: {shown.output}")


def test_operator_runs_a_coupon_from_the_command_line(firstcome: CommandLine, coupon_id: str) -> None:
    times = ("--start", "2020-01-01T00:00:00Z", "--end", "2090-01-01T09:00:00+09:00")
    done = firstcome("coupons", "create", coupon_id, "--total", "3", "--name", "[bold]Spring[/]", *times)
    assert done.exit_code == 0, done.output
    assert "[bold]Spring[/]" in done.stdout
    assert "ACTIVE" in done.stdout
    (got,) = firstcome.json("coupons", "get", f"coupons/{coupon_id}")
    assert (got["state"], got["end_time"]) == ("ACTIVE", "2090-01-01T00:00:00Z")
    (updated,) = firstcome.json("coupons", "update", coupon_id, "--name", "Summer", "--no-end", "--etag", got["etag"])
    assert (updated["display_name"], updated["end_time"]) == ("Summer", None)
    (adjusted,) = firstcome.json("coupons", "adjust", coupon_id, "--by", "-2")
    assert adjusted["remaining_count"] == 1
    assert firstcome.json("coupons", "pause", coupon_id)[0]["state"] == "PAUSED"
    refused = firstcome("issue", coupon_id, "ann")
    assert refused.exit_code == 1
    assert "PAUSED: " in refused.stderr
    assert "firstcome coupons resume" in refused.stderr
    assert firstcome.json("coupons", "resume", coupon_id)[0]["state"] == "ACTIVE"

    (ann,) = firstcome.json("issue", coupon_id, "ann")
    assert (ann["state"], ann["sequence"]) == ("ISSUED", 1)
    late = firstcome("issue", coupon_id, "bob", "--json")
    assert late.exit_code == 1
    assert json.loads(late.stderr)["error"]["reason"] == "SOLD_OUT"
    (stored,) = firstcome.json("issuances", "get", coupon_id, "ann", "--ticket", ann["ticket"])
    assert (stored["ticket"], stored["sequence"]) == (ann["ticket"], 1)
    assert firstcome.json("issuances", "ls", coupon_id) == [stored]
    assert firstcome.json("issuances", "watch", coupon_id, "ann") == [stored]
    table = firstcome("issuances", "ls", "--user", "ann")
    assert ann["ticket"] in table.stdout
    assert coupon_id in firstcome("coupons", "ls", "--state", "sold_out").stdout

    unconfirmed = firstcome("coupons", "close", coupon_id)
    assert unconfirmed.exit_code == 2
    assert "--yes" in unconfirmed.stderr
    assert firstcome.json("coupons", "close", coupon_id, "--yes")[0]["state"] == "CLOSED"


async def test_operator_corrects_and_discards_dead_letters_from_the_command_line(
    stack: Stack, system: tuple[str, str], client: Client, firstcome: CommandLine, coupon_id: str
) -> None:
    await client.coupons.create(coupon_id, 5)
    partition = int((await client.issue(coupon_id, "ann")).ticket.partition("-")[0])
    bad = events_pb2.CouponIssueRequestedEvent(coupon_id=coupon_id, user_id="b o b", request_id=str(uuid.uuid4()))
    headers = [("ce_type", b"coupon.v1.CouponIssueRequestedEvent"), ("odd", b"\xff")]
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap)
    await producer.start()
    try:
        tickets = []
        for value in (bad.SerializeToString(), b"\xffgarbage"):
            line = f"{system[1]}coupon.issue-requests.v1"
            sent = await producer.send_and_wait(line, value, coupon_id.encode(), partition, headers=headers)
            tickets.append(f"{partition}-{sent.offset}")
    finally:
        await producer.stop()

    wrong, garbage = tickets
    letter = await eventually_in(firstcome, wrong, "PARKED")
    assert (letter["reason"], letter["headers"]["odd"]) == ("BAD_ID", "0x ff")
    assert letter["payload"] == {"coupon_id": coupon_id, "user_id": "b o b", "request_id": bad.request_id}
    listed = await asyncio.to_thread(firstcome.json, "dlq", "ls", "--reason", "bad_id", "--coupon", coupon_id)
    assert [one["ticket"] for one in listed] == [wrong]
    refused = await asyncio.to_thread(firstcome, "dlq", "retry", wrong, "--corrected", '{"user_id": "bob"}')
    assert refused.exit_code == 1
    assert "would be parked again: MISSING_FIELD" in refused.stderr

    fields = json.dumps({**letter["payload"], "user_id": "bob"})
    done = await asyncio.to_thread(firstcome, "dlq", "retry", wrong, "--corrected", fields, "-m", "a space in the id")
    assert done.exit_code == 0, done.output
    letter = await eventually_in(firstcome, wrong, "RESOLVED")
    assert (await client.get_issuance(coupon_id, "bob")).ticket == letter["redrive_ticket"]
    assert "a space in the id" in [one["comment"] for one in letter["actions"]]

    await eventually_in(firstcome, garbage, "PARKED")
    shown = await asyncio.to_thread(firstcome, "dlq", "show", garbage)
    assert "does not decode: 0x ff 67 61" in shown.stdout
    assert (await asyncio.to_thread(firstcome, "dlq", "discard", garbage)).exit_code == 2
    (dropped,) = await asyncio.to_thread(firstcome.json, "dlq", "discard", garbage, "-m", "a test", "--etag", "1")
    assert dropped["state"] == "DISCARDED"
    again = await asyncio.to_thread(firstcome, "dlq", "discard", garbage, "-m", "a test")
    assert again.exit_code == 1
    assert "WRONG_STATE" in again.stderr

    audit = await asyncio.to_thread(firstcome, "replay", "audit", "--coupon", coupon_id)
    assert audit.exit_code == 0, audit.output
    assert "4 of 4" in audit.stdout  # the coupon, ann, and the wrong record with its redrive; garbage is nobody's
    (*_, counted) = await asyncio.to_thread(firstcome.json, "replay", "redrive", "--coupon", coupon_id, "--dry-run")
    assert (counted["state"], counted["dry_run"], counted["matched_count"]) == ("SUCCEEDED", True, 0)
    jobs = await asyncio.to_thread(firstcome.json, "replay", "ls")
    assert counted["job_id"] in [one["job_id"] for one in jobs]
    ended = await asyncio.to_thread(firstcome, "replay", "cancel", counted["job_id"])
    assert ended.exit_code == 1
    assert "WRONG_STATE" in ended.stderr


def test_place_in_the_line_without_waiting(firstcome: CommandLine, coupon_id: str) -> None:
    firstcome.json("coupons", "create", coupon_id, "--total", "1")
    (placed,) = firstcome.json("issue", coupon_id, "ann", "--no-wait")
    assert placed["state"] == "ACCEPTED"
    (*_, last) = firstcome.json("issuances", "watch", coupon_id, "ann", "--ticket", placed["ticket"])
    assert last["state"] == "ISSUED"


def test_list_says_when_there_is_more(firstcome: CommandLine, coupon_id: str) -> None:
    for number in range(2):
        firstcome.json("coupons", "create", f"{coupon_id}-{number}", "--total", "1")
    cut = firstcome("coupons", "ls", "--limit", "1")
    assert "more than these 1" in cut.stderr
    assert len(firstcome.json("coupons", "ls", "--limit", "1")) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("coupons", "get", "nowhere"), 1, "COUPON_NOT_FOUND"),
        (("issue", "no id", "also none"), 1, "user_id"),
        (("coupons", "create", "x", "--total", "0"), 2, "--total"),
        (("coupons", "create", "x", "--total", "1", "--start", "soon"), 2, "2026-12-24T18:00"),
        (("coupons", "update", "x"), 2, "--name"),
        (("coupons", "get", "x", "--token-file", "/nowhere"), 2, "token file"),
        (("coupons", "get", "x", "--ca", "/dev/null"), 2, "PEM"),
        (("issuances", "ls"), 2, "--user"),
        (("coupons", "get", "x", "--address", "127.0.0.1:1", "--timeout", "0.5"), 3, "check --address"),
        (("issue", "x", "y", "--address", "127.0.0.1:1", "--timeout", "0.5"), 3, "--request-id"),
    ],
)
def test_exit_status_and_message_say_what_was_wrong(
    firstcome: CommandLine, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = firstcome(*arguments)
    assert done.exit_code == status, done.output
    assert said in " ".join(done.stderr.split()), done.stderr


async def test_watch_follows_a_sale_until_it_is_sold_out(client: Client, services: Services, coupon_id: str) -> None:
    await client.coupons.create(coupon_id, 200)
    watching = _watch(services, coupon_id, "--until-sold-out", "--interval", "0.1", "--json")
    assert watching.stdout is not None
    first = await asyncio.to_thread(watching.stdout.readline)
    results = [one async for one in client.issue_many(IssueRequest(coupon_id, f"u{n}") for n in range(250))]
    assert len(results) == 250
    output, _ = await asyncio.to_thread(watching.communicate, timeout=30)
    assert watching.returncode == 0
    frames = [json.loads(line) for line in [first, *output.splitlines()]]
    assert (frames[0]["issued_count"], frames[-1]["issued_count"]) == (0, 200)
    assert frames[-1]["state"] == "SOLD_OUT"
    assert frames[-1]["issued_per_s"] > 0


async def test_watch_ends_well_by_ctrl_c_and_says_when_a_sale_cannot_sell_out(
    client: Client, services: Services, coupon_id: str
) -> None:
    await client.coupons.create(coupon_id, 5)
    watching = _watch(services, coupon_id)
    assert watching.stdout is not None
    assert "0 of 5 issued" in await asyncio.to_thread(watching.stdout.readline)
    watching.send_signal(signal.SIGINT)
    output, _ = await asyncio.to_thread(watching.communicate, timeout=30)
    assert (watching.returncode, "Traceback" in output) == (0, False)
    await client.coupons.close(coupon_id)
    hopeless = _watch(services, coupon_id, "--until-sold-out")
    output, _ = await asyncio.to_thread(hopeless.communicate, timeout=30)
    assert hopeless.returncode == 1
    assert "CLOSED with 5 left" in output


def _watch(services: Services, coupon_id: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "firstcome", "watch", coupon_id, "--address", services.issuer_address, *options],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
