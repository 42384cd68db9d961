"""The client against servers made for the occasion: what it sends, repeats, and makes of answers."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from coupon.v1 import coupon_pb2, coupon_pb2_grpc, issuer_pb2, issuer_pb2_grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

import firstcome
from firstcome import (
    Client,
    Connection,
    DeadlineExceeded,
    InvalidRequest,
    IssuanceState,
    IssueRequest,
    NotFound,
    Reason,
    Refused,
    SettingsError,
    Tls,
    Unavailable,
    Unexpected,
    connect,
    token_file,
)
from firstcome.channel import ATTEMPTS_MAX, is_loopback
from firstcome.cli.watch import Rate
from services.runtime.rpc_errors import CATALOGUE

Answer = Callable[[Any, Any], Awaitable[Any]]


def status(code: grpc.StatusCode, reason: str, *details: Message, message: str = "no") -> Status:
    packed = []
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="firstcome"), *details):
        one = AnyMessage()
        one.Pack(detail)
        packed.append(one)
    return Status(code=code.value[0], message=message, details=packed)


def retry_info(delay_s: float) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(retry_delay=Duration(nanos=int(delay_s * 1e9)))


async def abort(context: Any, said: Status) -> None:
    made = rpc_status.to_status(said)
    await context.abort(made.code, made.details, made.trailing_metadata)


def accepted(request: issuer_pb2.IssueCouponRequest, state: str = "ACCEPTED") -> issuer_pb2.Issuance:
    return issuer_pb2.Issuance(
        coupon=request.coupon, user_id=request.user_id, request_id=request.request_id, state=state, ticket="0-7"
    )


@dataclass
class Issuer(issuer_pb2_grpc.IssuerServiceServicer, coupon_pb2_grpc.CouponServiceServicer):
    """Answers by the functions it is given, and remembers what it was asked."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)

    async def _answer(self, method: str, request: Any, context: Any) -> Any:
        self._note(request, context)
        return await self.answers[method](request, context)

    def _note(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.left_s.append(context.time_remaining())

    async def IssueCoupon(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("IssueCoupon", request, context)

    async def BatchIssueCoupons(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("BatchIssueCoupons", request, context)

    async def WatchIssuance(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(request, context)
        async for one in self.answers["WatchIssuance"](request, context):
            yield one

    async def ListIssuances(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("ListIssuances", request, context)

    async def UpdateCoupon(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("UpdateCoupon", request, context)

    async def GetCoupon(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("GetCoupon", request, context)


@asynccontextmanager
async def serving(issuer: Issuer, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
    server = grpc.aio.server()
    issuer_pb2_grpc.add_IssuerServiceServicer_to_server(issuer, server)
    coupon_pb2_grpc.add_CouponServiceServicer_to_server(issuer, server)
    if credentials is None:
        port = server.add_insecure_port("localhost:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def client(issuer: Issuer) -> AsyncIterator[Client]:
    async with serving(issuer) as address, connect(Connection(address, timeout_s=10)) as made:
        yield made


def failing_first(failures: int, code: grpc.StatusCode, then: Answer) -> Answer:
    left = [failures]

    async def answer(request: Any, context: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            await abort(context, status(code, "KAFKA_UNAVAILABLE", retry_info(0.05)))
        return await then(request, context)

    return answer


async def accept(request: Any, context: Any) -> Any:
    return accepted(request)


async def test_unavailable_is_tried_again_with_the_same_request_id(client: Client, issuer: Issuer) -> None:
    issuer.answers["IssueCoupon"] = failing_first(2, grpc.StatusCode.UNAVAILABLE, accept)
    issuance = await client.issue("spring", "ann")
    assert issuance.state is IssuanceState.ACCEPTED
    assert len(issuer.asked) == 3
    assert {one.request_id for one in issuer.asked} == {issuance.request_id}
    assert len(issuance.request_id) == 36


async def test_tries_are_bounded_and_the_error_has_what_a_caller_needs(client: Client, issuer: Issuer) -> None:
    issuer.answers["IssueCoupon"] = failing_first(100, grpc.StatusCode.UNAVAILABLE, accept)
    with pytest.raises(Unavailable) as caught:
        await client.issue("spring", "ann")
    error = caught.value
    assert len(issuer.asked) == ATTEMPTS_MAX
    assert error.reason == Reason.KAFKA_UNAVAILABLE
    assert error.request_id == issuer.asked[0].request_id
    assert error.retry_after_s == pytest.approx(0.05)
    assert error.retryable


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.FAILED_PRECONDITION]
)
async def test_nothing_but_unavailable_is_tried_again(client: Client, issuer: Issuer, code: grpc.StatusCode) -> None:
    issuer.answers["IssueCoupon"] = failing_first(1, code, accept)
    with pytest.raises(firstcome.FirstcomeError) as caught:
        await client.issue("spring", "ann")
    assert caught.value.code is code
    assert len(issuer.asked) == 1


async def test_every_call_has_a_deadline(client: Client, issuer: Issuer) -> None:
    async def forever(request: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    issuer.answers["IssueCoupon"] = accept
    await client.issue("spring", "ann")  # connects
    issuer.answers["IssueCoupon"] = forever
    with pytest.raises(DeadlineExceeded) as caught:
        await client.issue("spring", "ann", timeout_s=1.0)
    assert caught.value.retryable
    assert caught.value.request_id == issuer.asked[1].request_id
    issuer.answers["IssueCoupon"] = accept
    await client.issue("spring", "ann")
    assert issuer.left_s[-1] == pytest.approx(10, abs=3)


async def test_server_that_is_not_there_is_unavailable() -> None:
    async with connect(Connection("127.0.0.1:1", timeout_s=0.5)) as client:
        with pytest.raises(Unavailable):
            await client.get_issuance("spring", "ann")


async def test_details_of_an_error_are_decoded(client: Client, issuer: Issuer) -> None:
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="coupon", description="must be a name"),
            error_details_pb2.BadRequest.FieldViolation(field="user_id", description="must be an id"),
        ]
    )

    async def refuse(request: Any, context: Any) -> Any:
        await abort(context, status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", bad))

    issuer.answers["IssueCoupon"] = refuse
    with pytest.raises(InvalidRequest) as caught:
        await client.issue("x x", "")
    assert [one.subject for one in caught.value.violations] == ["coupon", "user_id"]
    assert caught.value.reason == Reason.INVALID_FIELD


async def test_error_of_another_domain_keeps_the_codes_name(client: Client, issuer: Issuer) -> None:
    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.DATA_LOSS, "oh")

    issuer.answers["IssueCoupon"] = refuse
    with pytest.raises(Unexpected) as caught:
        await client.issue("spring", "ann")
    assert (caught.value.reason, caught.value.message) == ("DATA_LOSS", "oh")


def test_client_knows_every_reason_of_the_catalogue() -> None:
    assert {reason.value for reason in Reason} == set(CATALOGUE)


def test_documentation_names_every_reason() -> None:
    text = (Path(__file__).parents[2] / "docs/clients.md").read_text(encoding="utf-8")
    assert [reason.value for reason in Reason if reason.value not in text] == []


async def test_issue_and_wait_calls_again_no_sooner_than_asked(client: Client, issuer: Issuer) -> None:
    left = [1]

    async def overloaded_once(request: Any, context: Any) -> Any:
        if left[0]:
            left[0] = 0
            said = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_info(0.4))
            await abort(context, said)
        return accepted(request, "ISSUED")

    issuer.answers["IssueCoupon"] = overloaded_once
    started_s = time.monotonic()
    issuance = await client.issue_and_wait("spring", "ann", patience_s=10)
    assert issuance.state is IssuanceState.ISSUED
    assert time.monotonic() - started_s >= 0.4
    assert issuer.asked[0].request_id == issuer.asked[1].request_id
    assert issuer.asked[0].wait


async def test_issue_and_wait_follows_the_ticket_and_a_no_is_an_error(client: Client, issuer: Issuer) -> None:
    async def reject(request: Any, context: Any) -> AsyncIterator[Any]:
        assert request.ticket == "0-7"
        yield issuer_pb2.Issuance(coupon="coupons/spring", user_id="ann", state="ACCEPTED", ticket="0-7")
        yield issuer_pb2.Issuance(
            coupon="coupons/spring", user_id="ann", state="REJECTED", reject_reason="SOLD_OUT", ticket="0-7"
        )

    issuer.answers |= {"IssueCoupon": accept, "WatchIssuance": reject}
    with pytest.raises(Refused) as caught:
        await client.issue_and_wait("spring", "ann", patience_s=10)
    assert (caught.value.reason, caught.value.ticket) == (Reason.SOLD_OUT, "0-7")


async def test_issue_and_wait_answers_accepted_when_patience_ends(client: Client, issuer: Issuer) -> None:
    async def never(request: Any, context: Any) -> AsyncIterator[Any]:
        yield issuer_pb2.Issuance(coupon="coupons/spring", user_id="ann", state="ACCEPTED", ticket="0-7")
        await asyncio.sleep(60)

    issuer.answers |= {"IssueCoupon": accept, "WatchIssuance": never}
    issuance = await client.issue_and_wait("spring", "ann", patience_s=0.5)
    assert (issuance.state, issuance.ticket) == (IssuanceState.ACCEPTED, "0-7")


async def test_watch_is_opened_anew_when_it_breaks_and_tells_nothing_twice(client: Client, issuer: Issuer) -> None:
    opened = [0]

    async def breaking(request: Any, context: Any) -> AsyncIterator[Any]:
        opened[0] += 1
        yield issuer_pb2.Issuance(coupon="coupons/spring", state="ACCEPTED", position_in_line=3)
        if opened[0] == 1:
            await abort(context, status(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"))
        yield issuer_pb2.Issuance(coupon="coupons/spring", state="ISSUED", sequence=1)

    issuer.answers["WatchIssuance"] = breaking
    seen = [one async for one in client.watch_issuance("spring", "ann")]
    assert [(one.state, one.position_in_line) for one in seen] == [
        (IssuanceState.ACCEPTED, 3),
        (IssuanceState.ISSUED, 0),
    ]
    assert opened == [2]


async def test_watch_that_is_left_early_ends_on_the_server(client: Client, issuer: Issuer) -> None:
    ended = asyncio.Event()

    async def endless(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            yield issuer_pb2.Issuance(coupon="coupons/spring", state="ACCEPTED")
            await asyncio.sleep(60)
        finally:
            ended.set()

    issuer.answers["WatchIssuance"] = endless
    async with contextlib.aclosing(client.watch_issuance("spring", "ann")) as watch:
        async for _ in watch:
            break
    await asyncio.wait_for(ended.wait(), 5)


async def test_watch_of_nothing_is_not_found_at_once(client: Client, issuer: Issuer) -> None:
    async def missing(request: Any, context: Any) -> AsyncIterator[Any]:
        await abort(context, status(grpc.StatusCode.NOT_FOUND, "ISSUANCE_NOT_FOUND"))
        yield

    issuer.answers["WatchIssuance"] = missing
    with pytest.raises(NotFound):
        [one async for one in client.watch_issuance("spring", "ann")]


async def test_many_are_answered_in_order_with_bounded_batches_in_flight(client: Client, issuer: Issuer) -> None:
    in_flight, most = 0, 0

    async def answer(request: Any, context: Any) -> Any:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        # Later batches answer sooner.
        await asyncio.sleep(0.2 / (1 + int(request.requests[0].user_id)))
        in_flight -= 1
        return issuer_pb2.BatchIssueCouponsResponse(
            results=[issuer_pb2.IssueResult(issuance=accepted(one)) for one in request.requests]
        )

    issuer.answers["BatchIssueCoupons"] = answer
    requests = [IssueRequest("spring", str(number)) for number in range(95)]
    drawn = [0]

    def source() -> Any:
        for one in requests:
            drawn[0] += 1
            yield one

    results = []
    async for one in client.issue_many(source(), batch_size=10, batches_in_flight=3):
        results.append(one)
        assert drawn[0] <= len(results) + 4 * 10
    assert [one.request for one in results] == requests
    assert all(one.issuance is not None and one.issuance.user_id == one.request.user_id for one in results)
    assert most == 3
    assert [len(one.requests) for one in issuer.asked] == [10] * 9 + [5]


async def test_errors_of_many_are_values_and_only_what_may_work_is_sent_again(client: Client, issuer: Issuer) -> None:
    async def answer(request: Any, context: Any) -> Any:
        results = []
        for one in request.requests:
            if one.user_id == "late" and len(issuer.asked) == 1:
                said = status(grpc.StatusCode.UNAVAILABLE, "KAFKA_UNAVAILABLE", retry_info(0.05))
                results.append(issuer_pb2.IssueResult(error=said))
            elif one.user_id == "no":
                said = status(grpc.StatusCode.FAILED_PRECONDITION, "SOLD_OUT")
                results.append(issuer_pb2.IssueResult(error=said))
            else:
                results.append(issuer_pb2.IssueResult(issuance=accepted(one)))
        return issuer_pb2.BatchIssueCouponsResponse(results=results)

    issuer.answers["BatchIssueCoupons"] = answer
    requests = [IssueRequest("spring", user) for user in ("yes", "late", "no")]
    yes, late, no = [one async for one in client.issue_many(requests)]
    assert yes.issuance is not None
    assert late.issuance is not None
    assert no.error is not None
    assert (no.error.reason, no.error.request_id) == (Reason.SOLD_OUT, requests[2].request_id)
    assert [one.user_id for one in issuer.asked[1].requests] == ["late"]
    assert issuer.asked[1].requests[0].request_id == requests[1].request_id


async def test_batch_that_fails_whole_gives_each_request_its_error(client: Client, issuer: Issuer) -> None:
    async def refuse(request: Any, context: Any) -> Any:
        await abort(context, status(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"))

    issuer.answers["BatchIssueCoupons"] = refuse
    requests = [IssueRequest("spring", user) for user in ("ann", "bob")]
    results = [one async for one in client.issue_many(requests)]
    assert [one.error.request_id for one in results if one.error] == [one.request_id for one in requests]
    assert {one.error.reason for one in results if one.error} == {"ROLE_MISSING"}


async def test_leaving_many_early_stops_what_is_under_way(client: Client, issuer: Issuer) -> None:
    stopped = asyncio.Event()

    async def answer(request: Any, context: Any) -> Any:
        if request.requests[0].user_id != "0":
            try:
                await asyncio.sleep(60)
            finally:
                stopped.set()
        return issuer_pb2.BatchIssueCouponsResponse(
            results=[issuer_pb2.IssueResult(issuance=accepted(one)) for one in request.requests]
        )

    issuer.answers["BatchIssueCoupons"] = answer
    many = client.issue_many((IssueRequest("spring", str(number)) for number in range(3)), batch_size=1)
    async for _ in many:
        break
    await many.aclose()
    await asyncio.wait_for(stopped.wait(), 5)


async def test_lists_go_over_all_pages(client: Client, issuer: Issuer) -> None:
    async def page(request: Any, context: Any) -> Any:
        number = int(request.page_token or "0")
        issuances = [issuer_pb2.Issuance(sequence=number * 2 + place) for place in (1, 2)]
        return issuer_pb2.ListIssuancesResponse(
            issuances=issuances, next_page_token=str(number + 1) if number < 2 else ""
        )

    issuer.answers["ListIssuances"] = page
    seen = [one.sequence async for one in client.list_issuances("spring", page_size=2)]
    assert seen == [1, 2, 3, 4, 5, 6]
    assert {one.parent for one in issuer.asked} == {"coupons/spring"}
    assert {one.page_size for one in issuer.asked} == {2}
    with pytest.raises(ValueError, match="by coupon"):
        client.list_issuances()


async def test_update_names_what_is_given_and_none_clears(client: Client, issuer: Issuer) -> None:
    async def answer(request: Any, context: Any) -> Any:
        return request.coupon

    issuer.answers["UpdateCoupon"] = answer
    await client.coupons.update("spring", display_name="", end_time=None, etag="0-1")
    (request,) = issuer.asked
    assert list(request.update_mask.paths) == ["display_name", "end_time"]
    assert request.coupon.etag == "0-1"
    assert not request.coupon.HasField("end_time")
    assert request.request_id


async def test_state_that_is_newer_than_the_client_is_unspecified(client: Client, issuer: Issuer) -> None:
    async def answer(request: Any, context: Any) -> Any:
        return coupon_pb2.Coupon.FromString(b"\x40\x63")  # state: 99

    issuer.answers["GetCoupon"] = answer
    assert (await client.coupons.get("spring")).state is firstcome.CouponState.UNSPECIFIED


async def test_token_goes_with_every_call_and_is_read_again(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstcome.channel.TOKEN_CHECK_S", 0.0)
    file = tmp_path / "token"
    file.write_text("first\n")
    issuer.answers["IssueCoupon"] = accept
    async with serving(issuer) as address, connect(Connection(address, token=token_file(file))) as client:
        await client.issue("spring", "ann")
        file.write_text("the-second\n")
        await client.issue("spring", "bob")
        file.write_text("")  # half written
        await client.issue("spring", "eve")
    assert [one["authorization"] for one in issuer.metadata] == [
        "Bearer first",
        "Bearer the-second",
        "Bearer the-second",
    ]


async def test_token_goes_over_plain_text_to_this_machine_only() -> None:
    with pytest.raises(SettingsError, match="use TLS"):
        async with connect(Connection("issuer.example:50051", token=lambda: "secret")):
            pass


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("dns://8.8.8.8/localhost:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("ipv4:127.0.0.1:1,10.0.0.2:2", False),
        ("unix:/run/issuer.sock", True),
        ("issuer:50051", False),
        ("dns:///issuer:50051", False),
        ("10.0.0.1:50051", False),
        ("localhost.example:50051", False),
    ],
)
def test_loopback_is_told_from_the_rest(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize("content", ["", "two words", "ünïcode", "x" * 5_000])
def test_token_file_without_a_token_is_refused_at_once(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(SettingsError, match="token"):
        token_file(file)


@pytest.mark.parametrize(
    "connection",
    [Connection(""), Connection(timeout_s=0), Connection(tls=Tls(certificate=b"-----BEGIN CERTIFICATE-----"))],
    ids=["no address", "no time", "certificate without key"],
)
async def test_settings_that_cannot_be_used_are_refused(connection: Connection) -> None:
    with pytest.raises(SettingsError):
        async with connect(connection):
            pass


@dataclass(frozen=True)
class Papers:
    """PEM bytes of an authority, and of a server's and a client's certificates by it."""

    ca: bytes
    server: tuple[bytes, bytes]
    client: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2")
    for name in ("server", "client"):
        run("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text("subjectAltName=DNS:localhost")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")

    def pair(name: str) -> tuple[bytes, bytes]:
        return (folder / f"{name}.pem").read_bytes(), (folder / f"{name}.key").read_bytes()

    return Papers((folder / "ca.pem").read_bytes(), pair("server"), pair("client"))


async def test_mutual_tls_with_a_token(issuer: Issuer, papers: Papers) -> None:
    issuer.answers["IssueCoupon"] = accept
    certificate, key = papers.server
    credentials = grpc.ssl_server_credentials([(key, certificate)], papers.ca, require_client_auth=True)
    async with serving(issuer, credentials) as address:
        own = Tls(papers.ca, *papers.client)
        async with connect(Connection(address, own, token=lambda: "secret")) as client:
            await client.issue("spring", "ann")
        assert issuer.metadata[0]["authorization"] == "Bearer secret"
        async with connect(Connection(address, Tls(papers.ca), timeout_s=1)) as stranger:
            with pytest.raises(Unavailable):
                await stranger.issue("spring", "ann")


def test_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(window_s=5.0)
    assert rate.per_s == 0
    for second in range(20):
        rate.add(float(second), 100 * second if second < 10 else 1_000)
    assert rate.per_s == 0
    rate.add(20.0, 1_500)
    assert rate.per_s == pytest.approx(100)
