"""Dead letters and replay jobs in client and command line, against servers that answer as told."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from coupon.v1 import dead_letter_pb2, dead_letter_pb2_grpc, events_pb2, replay_pb2, replay_pb2_grpc
from typer.testing import CliRunner

from firstcome import (
    Client,
    Connection,
    DeadLetterFilter,
    DeadLetterState,
    LogRange,
    NotFound,
    Refused,
    ReplayState,
    connect,
)
from firstcome.cli import app
from firstcome.cli.payload import readable
from tests.unit.test_client import abort, status

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
Letter, Job = dead_letter_pb2.DeadLetter, replay_pb2.ReplayJob


def letter(ticket: str = "0-7", **more: Any) -> dead_letter_pb2.DeadLetter:
    fields: dict[str, Any] = {"state": "PARKED", "reason": "BAD_ID", "attempt_count": 1, "etag": "1"} | more
    return Letter(name=f"deadLetters/{ticket}", ticket=ticket, **fields)


def whole(value: bytes, ce_type: str = "coupon.v1.CouponIssueRequestedEvent") -> dead_letter_pb2.DeadLetter:
    action = Letter.Action(action="FAILED", caller="ledger", comment="boom")
    return letter(
        value=value, key=b"k\xff", headers={"ce_type": ce_type.encode(), "odd": b"\x00\x01"}, actions=[action],
        error_message="user_id is no id", trace_id="0af7651916cd43dd8448eb211c80319c",
    )  # fmt: skip


@dataclass
class Dlq(dead_letter_pb2_grpc.DeadLetterServiceServicer, replay_pb2_grpc.ReplayServiceServicer):
    """Answers with what it is given, and remembers what it was asked."""

    letters: list[dead_letter_pb2.DeadLetter] = field(default_factory=list)
    jobs: list[replay_pb2.ReplayJob] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    breaks: int = 0

    async def _letter(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        found = [one for one in self.letters if one.name == request.name]
        if not found:
            await abort(context, status(grpc.StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND"))
        return found[0]

    async def GetDeadLetter(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._letter(request, context)

    async def ListDeadLetters(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        start = int(request.page_token or "0")
        end = start + request.page_size
        token = str(end) if end < len(self.letters) else ""
        return dead_letter_pb2.ListDeadLettersResponse(dead_letters=self.letters[start:end], next_page_token=token)

    async def RetryDeadLetter(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._letter(request, context)

    async def DiscardDeadLetter(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = await self._letter(request, context)
        if answer.state == Letter.REDRIVEN:
            await abort(context, status(grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE"))
        return answer

    async def CreateReplayJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return self.jobs[0]

    async def GetReplayJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return self.jobs[-1]

    async def CancelReplayJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return self.jobs[-1]

    async def ListReplayJobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        return replay_pb2.ListReplayJobsResponse(replay_jobs=self.jobs)

    async def WatchReplayJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        for one in self.jobs:
            yield one
            if self.breaks:
                self.breaks -= 1
                await abort(context, status(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"))


@asynccontextmanager
async def serving(dlq: Dlq) -> AsyncIterator[str]:
    server = grpc.aio.server()
    dead_letter_pb2_grpc.add_DeadLetterServiceServicer_to_server(dlq, server)
    replay_pb2_grpc.add_ReplayServiceServicer_to_server(dlq, server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)


@pytest.fixture
def dlq() -> Dlq:
    return Dlq()


@pytest.fixture
async def address(dlq: Dlq) -> AsyncIterator[str]:
    async with serving(dlq) as served:
        yield served


@pytest.fixture
async def client(address: str) -> AsyncIterator[Client]:
    # No issuer answers here: what concerns the dlq must not ask one.
    async with connect(Connection("127.0.0.1:1", dlq_address=address, timeout_s=10)) as made:
        yield made


async def run(address: str, *arguments: str) -> Any:
    # The server answers in this thread's loop meanwhile.
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, [*arguments, "--dlq", address]))


def lines(result: Any) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


async def test_dead_letters_are_listed_over_pages_by_all_of_the_filter(client: Client, dlq: Dlq) -> None:
    dlq.letters = [letter(f"0-{number}") for number in range(5)]
    wanted = DeadLetterFilter(DeadLetterState.PARKED, "BAD_ID", "spring", "ann", NOON, None)
    assert [one.ticket async for one in client.dead_letters.list(wanted, page_size=2)] == [f"0-{n}" for n in range(5)]
    assert len(dlq.asked) == 3
    sent = dlq.asked[0].filter
    assert (sent.state, sent.reason, sent.coupon_id, sent.user_id) == (Letter.PARKED, "BAD_ID", "spring", "ann")
    assert sent.failed_after.ToDatetime(tzinfo=UTC) == NOON
    assert not sent.HasField("failed_before")


async def test_operations_carry_a_request_id_and_what_an_operator_says(client: Client, dlq: Dlq) -> None:
    dlq.letters = [letter(state="REDRIVEN")]
    retried = await client.dead_letters.retry("0-7", corrected_value=b"x", corrected_type="T", comment="typo", etag="4")
    assert retried.state is DeadLetterState.REDRIVEN
    (sent,) = dlq.asked
    assert (sent.name, sent.corrected_value, sent.corrected_type) == ("deadLetters/0-7", b"x", "T")
    assert (sent.comment, sent.etag, len(sent.request_id)) == ("typo", "4", 36)
    with pytest.raises(Refused) as caught:
        await client.dead_letters.discard("0-7", "never mind", request_id="mine")
    assert (caught.value.reason, caught.value.request_id, dlq.asked[1].comment) == ("WRONG_STATE", "mine", "never mind")
    with pytest.raises(NotFound):
        await client.dead_letters.get("9-9")


async def test_jobs_are_asked_for_with_all_that_they_take(client: Client, dlq: Dlq) -> None:
    dlq.jobs = [Job(name="replayJobs/j1", kind="REDRIVE", state="PENDING")]
    assert (
        await client.replays.redrive(DeadLetterFilter(reason="INTERNAL"), max_per_second=5, dry_run=True)
    ).job_id == "j1"
    await client.replays.audit(LogRange(NOON, None, {0: 5}, {0: 9, 1: 7}, "spring"))
    await client.replays.republish("copy", request_id="mine")
    redrive, audit, republish = (one.replay_job for one in dlq.asked)
    assert (redrive.dead_letters.reason, redrive.max_per_second, redrive.dry_run) == ("INTERNAL", 5, True)
    assert (dict(audit.range.start_offsets), dict(audit.range.end_offsets)) == ({0: 5}, {0: 9, 1: 7})
    assert (audit.range.coupon_id, audit.range.start_time.ToDatetime(tzinfo=UTC)) == ("spring", NOON)
    assert (republish.target_topic, republish.HasField("range"), dlq.asked[2].request_id) == ("copy", False, "mine")


async def test_a_watch_of_a_job_outlives_a_broken_connection(client: Client, dlq: Dlq) -> None:
    dlq.jobs = [Job(name="replayJobs/j1", state=state, done_count=n) for n, state in ((0, "RUNNING"), (9, "SUCCEEDED"))]
    dlq.breaks = 1
    seen = [(one.state, one.done_count) async for one in client.replays.watch("j1")]
    assert seen == [(ReplayState.RUNNING, 0), (ReplayState.SUCCEEDED, 9)]
    assert len(dlq.asked) == 2


async def test_show_decodes_the_payload_by_its_type_and_what_does_not_decode_is_shown_as_it_is(
    address: str, dlq: Dlq
) -> None:
    event = events_pb2.CouponIssueRequestedEvent(coupon_id="spring", user_id="an n", request_id="r")
    dlq.letters = [whole(event.SerializeToString())]
    shown = await run(address, "dlq", "show", "deadLetters/0-7")
    assert shown.exit_code == 0, shown.output
    for text in (
        "BAD_ID",
        "user_id is no id",
        "an n",
        "spring",
        "0x 00 01",
        "0x 6b ff",
        "0af765",
        "FAILED by ledger boom",
    ):
        assert text in shown.stdout, text
    (fields,) = lines(await run(address, "dlq", "show", "0-7", "--json"))
    assert fields["payload"] == {"coupon_id": "spring", "user_id": "an n", "request_id": "r"}
    assert base64.b64decode(fields["value"]) == event.SerializeToString()
    assert fields["headers"]["odd"] == "0x 00 01"

    for broken in (whole(b"\xff\xffgarbage"), whole(b"\xff\xffgarbage", "other.v1.Thing")):
        dlq.letters = [broken]
        shown = await run(address, "dlq", "show", "0-7")
        assert "does not decode: 0x ff ff 67 61" in shown.stdout
        (fields,) = lines(await run(address, "dlq", "show", "0-7", "--json"))
        assert fields["payload"] is None


async def test_retry_sends_the_corrected_record_as_the_message_it_was(address: str, dlq: Dlq) -> None:
    dlq.letters = [whole(b"")]
    fields = {"coupon_id": "spring", "user_id": "ann", "request_id": "r"}
    done = await run(address, "dlq", "retry", "0-7", "--corrected", json.dumps(fields), "-m", "typo")
    assert done.exit_code == 0, done.output
    _, sent = dlq.asked
    assert sent.corrected_type == "coupon.v1.CouponIssueRequestedEvent"
    assert events_pb2.CouponIssueRequestedEvent.FromString(sent.corrected_value).user_id == "ann"
    assert sent.comment == "typo"
    for wrong in (["{"], ['{"no_such": 1}'], ["@/no/such/file"], ["{}", "--type", "Nothing"]):
        refused = await run(address, "dlq", "retry", "0-7", "--corrected", *wrong)
        assert refused.exit_code == 2, wrong
    assert sum(isinstance(one, dead_letter_pb2.RetryDeadLetterRequest) for one in dlq.asked) == 1


async def test_many_are_discarded_at_once_and_one_that_is_refused_stops_no_other(address: str, dlq: Dlq) -> None:
    dlq.letters = [letter("0-7"), letter("0-8", state="REDRIVEN"), letter("0-9")]
    done = await run(address, "dlq", "discard", "0-7", "0-8", "deadLetters/0-9", "1-1", "-m", "a load test")
    assert done.exit_code == 1
    assert [ticket in done.stdout for ticket in ("0-7", "0-8", "0-9")] == [True, False, True]
    assert ("WRONG_STATE" in done.stderr, "DEAD_LETTER_NOT_FOUND" in done.stderr) == (True, True)
    assert len({one.request_id for one in dlq.asked}) == 4
    for wrong in (["--request-id", "x"], ["--etag", "1"]):
        assert (await run(address, "dlq", "retry", "0-7", "0-9", *wrong)).exit_code == 2
    assert (await run(address, "dlq", "retry", "0-7", "0-9", "--corrected", "{}")).exit_code == 2


async def test_ls_says_when_there_is_more_and_filters_as_asked(address: str, dlq: Dlq) -> None:
    dlq.letters = [letter(f"0-{number}", error_message="[bold]x" * 20) for number in range(5)]
    shown = await run(address, "dlq", "ls", "--state", "parked", "--reason", "bad_id", "--limit", "3")
    assert shown.stdout.count("[bold]x") > 3
    assert "more than these 3" in shown.stderr
    assert (dlq.asked[0].filter.state, dlq.asked[0].filter.reason) == (Letter.PARKED, "BAD_ID")
    assert [one["ticket"] for one in lines(await run(address, "dlq", "ls", "--json"))] == [f"0-{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("state", "differences", "status_"),
    [("SUCCEEDED", 0, 0), ("SUCCEEDED", 2, 1), ("FAILED", 0, 1), ("CANCELLED", 0, 1)],
)
async def test_the_exit_status_of_a_job_is_what_it_came_to(
    address: str, dlq: Dlq, state: str, differences: int, status_: int
) -> None:
    found = [Job.Difference(ticket="0-7", expected="ISSUED 1", found="nothing")] if differences else []
    dlq.jobs = [
        Job(name="replayJobs/j1", kind="AUDIT", state="RUNNING", matched_count=10, done_count=4),
        Job(
            name="replayJobs/j1", kind="AUDIT", state=state, matched_count=10, done_count=10,
            difference_count=differences, differences=found, error={"code": 13, "message": "oh"},
        ),
    ]  # fmt: skip
    done = await run(address, "replay", "audit", "--from-offset", "0=5", "--coupon", "coupons/spring")
    assert done.exit_code == status_, done.output
    assert "4 of 10" in done.stdout
    assert state in done.stdout
    assert "INTERNAL: oh" in done.stdout
    assert ("nothing" in done.stdout) == ("The first 1 of 2" in done.stderr) == bool(differences)
    assert dict(dlq.asked[0].replay_job.range.start_offsets) == {0: 5}
    steps = lines(await run(address, "replay", "watch", "j1", "--json"))
    assert [one["state"] for one in steps] == ["RUNNING", state]


async def test_a_detached_job_is_only_started(address: str, dlq: Dlq) -> None:
    dlq.jobs = [Job(name="replayJobs/j1", kind="REPUBLISH", state="PENDING", target_topic="copy")]
    started = await run(address, "replay", "republish", "copy", "--detach", "--rate", "100")
    assert started.exit_code == 0
    assert "j1" in started.stdout
    assert len(dlq.asked) == 1
    for command in (("ls",), ("show", "replayJobs/j1"), ("cancel", "j1")):
        assert "copy" in (await run(address, "replay", *command, "--json")).stdout
    assert [one.name for one in dlq.asked[1:]] == ["replayJobs/j1", "replayJobs/j1"]


@pytest.mark.parametrize(
    ("content", "text"), [(b"spring", "spring"), (b"", ""), (b"a\nb", "0x 61 0a 62"), (b"\xff", "0x ff")]
)
def test_bytes_are_shown_as_text_only_where_that_loses_nothing(content: bytes, text: str) -> None:
    assert readable(content) == text
