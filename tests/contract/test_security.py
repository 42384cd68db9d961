"""Who may call: over the wire, on a bare boundary with stubs behind it, and on a real issuer where records tell."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from coupon.v1 import coupon_pb2, coupon_pb2_grpc, dead_letter_pb2_grpc, issuer_pb2, issuer_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from services.runtime.auth import METHODS, Role, caller_name, line_of, new_token
from services.runtime.config import Access, ConfigError
from services.runtime.grpc_server import Boundary, GrpcServer
from services.runtime.health import Health
from services.runtime.rpc_errors import Refusal
from services.runtime.tls import TlsFiles
from stack import free_port
from tests.certificates import Authority
from tests.contract.issuing import SERVING, System, eventually, health_of, new_id, refused, request_id, shape

TIMEOUT_S = 10.0
_LOCAL = [("grpc.use_local_subchannel_pool", 1)]
_UNAUTHENTICATED = ("UNAUTHENTICATED", "UNAUTHENTICATED", set[str]())
Issuance = issuer_pb2.Issuance


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


class Issuing(issuer_pb2_grpc.IssuerServiceServicer):
    """Says who called."""

    def __init__(self) -> None:
        self.calls = 0

    async def IssueCoupon(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        return Issuance(user_id=caller_name())

    async def BatchIssueCoupons(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        return issuer_pb2.BatchIssueCouponsResponse()

    async def WatchIssuance(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.calls += 1
        for _ in range(2):
            yield Issuance(user_id=caller_name())


class Managing(coupon_pb2_grpc.CouponServiceServicer):
    async def PauseCoupon(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name == "coupons/closed":
            raise Refusal("CLOSED", "closed", resource=request.name)
        if request.name == "coupons/broken":
            raise RuntimeError
        if request.name == "coupons/slow":
            await asyncio.sleep(TIMEOUT_S)
        return coupon_pb2.Coupon(name=request.name)

    async def CreateCoupon(self, request: Any, context: Any) -> Any:  # noqa: N802
        return coupon_pb2.Coupon()

    async def UpdateCoupon(self, request: Any, context: Any) -> Any:  # noqa: N802
        return coupon_pb2.Coupon()


@dataclass
class Served:
    address: str
    server: GrpcServer
    issuing: Issuing
    channel: grpc.aio.Channel = field(repr=False)

    @property
    def issuer(self) -> Any:
        return issuer_pb2_grpc.IssuerServiceStub(self.channel)

    @property
    def coupons(self) -> Any:
        return coupon_pb2_grpc.CouponServiceStub(self.channel)

    def issue(self, token: str | None = None, timeout: float | None = TIMEOUT_S) -> Any:
        metadata = bearer(token) if token else None
        return self.issuer.IssueCoupon(issuer_pb2.IssueCouponRequest(), metadata=metadata, timeout=timeout)

    async def name(self, token: str | None = None) -> str:
        """Who the server thinks has called."""
        return str((await self.issue(token)).user_id)

    def raw(self, method: str, data: bytes = b"", token: str | None = None) -> Any:
        call: Any = self.channel.unary_unary(method)
        return call(data, timeout=TIMEOUT_S, metadata=bearer(token) if token else None)


@contextlib.asynccontextmanager
async def serving(
    access: Access, credentials: grpc.ChannelCredentials | None = None, *, listen_host: str = "127.0.0.1"
) -> AsyncIterator[Served]:
    """Stubs behind the real boundary."""
    port = free_port()
    health, issuing = Health(), Issuing()
    server = GrpcServer(health, concurrent_calls_max=1_000, access=access)
    server.add(issuer_pb2_grpc.add_IssuerServiceServicer_to_server, issuing)
    server.add(coupon_pb2_grpc.add_CouponServiceServicer_to_server, Managing())
    unimplemented = dead_letter_pb2_grpc.DeadLetterServiceServicer()
    server.add(dead_letter_pb2_grpc.add_DeadLetterServiceServicer_to_server, unimplemented)
    server.add(lambda handler, one: one.add_generic_rpc_handlers((handler,)), _Unlisted())
    await server.start(f"{listen_host}:{port}", ["coupon.v1.IssuerService"])
    await health.set("", serving=True)
    address = f"localhost:{port}"
    try:
        async with _channel(address, credentials) as channel:
            yield Served(address, server, issuing, channel)
    finally:
        await server.stop(1)


class _Unlisted(grpc.GenericRpcHandler):
    """A method that someone has added without saying who may call it."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: Any, context: Any) -> bytes:
            return b""

        listed = handler_call_details.method in ("/coupon.v1.NewService/Do", "/other.Service/Do")
        return grpc.unary_unary_rpc_method_handler(answer) if listed else None


def _channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=_LOCAL)
    return grpc.aio.secure_channel(address, credentials, options=_LOCAL)


@dataclass
class Callers:
    """A file of callers, and their tokens."""

    path: Path
    tokens: dict[str, str]

    def write(self, *more: str, **roles: list[str]) -> None:
        self.tokens |= {name: new_token() for name in roles if name not in self.tokens}
        lines = [line_of(name, listed, self.tokens[name]) for name, listed in roles.items()]
        self.path.write_text("\n".join([*lines, *more]) + "\n")


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    made = Callers(tmp_path / "callers", {})
    made.write(shop=["issue"], eyes=["read"], ops=["operate"])
    return made


async def test_no_credentials_no_answer_whatever_the_method(callers: Callers) -> None:
    async with serving(Access(str(callers.path))) as served:
        for method in METHODS:
            if "Watch" not in method and "Reflection" not in method:
                if "Replay" in method or "Health/List" in method:
                    continue  # served elsewhere
                assert shape(await refused(served.raw(method))) == _UNAUTHENTICATED, method
        watching = served.issuer.WatchIssuance(issuer_pb2.WatchIssuanceRequest(), timeout=TIMEOUT_S)
        assert shape(await refused(watching.read())) == _UNAUTHENTICATED
        assert served.issuing.calls == 0
        assert served.server.boundary.calls_in_flight == 0


async def test_strangers_are_refused_before_their_bytes_are_parsed(callers: Callers) -> None:
    async with serving(Access(str(callers.path))) as served:
        for token, reason in ((None, "UNAUTHENTICATED"), ("eyes", "ROLE_MISSING"), ("shop", "INVALID_FIELD")):
            call = served.raw("/coupon.v1.IssuerService/IssueCoupon", b"\xff\xff", token and callers.tokens[token])
            assert (await refused(call)).reason == reason


async def test_the_role_that_is_missing_is_named(callers: Callers) -> None:
    async with serving(Access(str(callers.path))) as served:
        assert await served.name(callers.tokens["shop"]) == "shop"
        failure = await refused(served.issue(callers.tokens["ops"]))
        assert shape(failure) == ("PERMISSION_DENIED", "ROLE_MISSING", set())
        assert failure.metadata == {"role": "issue"}
        asked = coupon_pb2.PauseCouponRequest(name="coupons/x")
        failure = await refused(
            served.coupons.PauseCoupon(asked, metadata=bearer(callers.tokens["shop"]), timeout=TIMEOUT_S)
        )
        assert failure.metadata == {"role": "operate"}


@pytest.mark.parametrize("authenticated", [True, False])
async def test_a_method_that_nobody_has_listed_is_refused(callers: Callers, authenticated: bool) -> None:
    async with serving(Access(str(callers.path) if authenticated else None)) as served:
        token = callers.tokens["ops"] if authenticated else None
        for method in ("/coupon.v1.NewService/Do", "/other.Service/Do"):
            assert shape(await refused(served.raw(method, token=token)))[:2] == ("PERMISSION_DENIED", "ROLE_MISSING")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await served.raw("/coupon.v1.NewService/None", token=token)
        assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_health_and_reflection_need_credentials_on_the_main_port(callers: Callers) -> None:
    async with serving(Access(str(callers.path))) as served:
        health: Any = health_pb2_grpc.HealthStub(served.channel)
        reflecting: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        check = health_pb2.HealthCheckRequest()
        question = reflection_pb2.ServerReflectionRequest(list_services="")

        def calls(metadata: Any) -> list[Any]:
            return [
                health.Check(check, timeout=TIMEOUT_S, metadata=metadata),
                health.Watch(check, timeout=TIMEOUT_S, metadata=metadata).read(),
                reflecting.ServerReflectionInfo(iter([question]), timeout=TIMEOUT_S, metadata=metadata).read(),
            ]

        for call in calls(None):
            assert shape(await refused(call)) == _UNAUTHENTICATED
        for name in callers.tokens:
            checked, watched, listed = await asyncio.gather(*calls(bearer(callers.tokens[name])))
            assert checked.status == watched.status == SERVING
            assert "coupon.v1.IssuerService" in {one.name for one in listed.list_services_response.service}


async def test_a_changed_file_counts_within_seconds_and_a_broken_one_never(callers: Callers) -> None:
    async with serving(Access(str(callers.path))) as served:
        old = callers.tokens["shop"]
        assert await served.name(old) == "shop"
        del callers.tokens["shop"]
        with capture_logs() as logs:
            callers.path.write_text("shop issue sha256:oops\n")
            await eventually(lambda: _logged(logs, "reload_refused"))
        assert old not in str(logs)
        assert await served.name(old) == "shop"
        callers.write(shop=["issue"], baker=["issue"])

        async def known() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await served.name(callers.tokens["baker"]) == "baker"
            return False

        await eventually(known)
        assert await served.name(callers.tokens["shop"]) == "shop"
        assert shape(await refused(served.issue(old))) == _UNAUTHENTICATED


async def _logged(logs: Any, event: str) -> bool:
    return any(entry["event"] == event for entry in logs)


async def test_strangers_are_counted_in_the_log_and_not_listed(callers: Callers) -> None:
    with capture_logs() as logs:
        async with serving(Access(str(callers.path))) as served:
            for _ in range(20):
                await refused(served.issue("wrong"))
            await eventually(lambda: _logged(logs, "unauthenticated_calls"))
            await asyncio.sleep(1.2)
    told = [entry["count"] for entry in logs if entry["event"] == "unauthenticated_calls"]
    assert sum(told) == 20
    assert len(told) <= 2


async def test_without_authentication_it_says_so_and_everyone_is_local() -> None:
    with capture_logs() as logs:
        async with serving(Access()) as served:
            assert await served.name() == "local"
            assert [
                issuance.user_id
                async for issuance in served.issuer.WatchIssuance(issuer_pb2.WatchIssuanceRequest(), timeout=TIMEOUT_S)
            ] == ["local"] * 2
            assert await health_of(served.address) == SERVING
    assert [entry["log_level"] for entry in logs if entry["event"] == "authentication_off"] == ["warning"]


async def test_without_authentication_nothing_but_loopback_is_served() -> None:
    with pytest.raises(ConfigError):
        async with serving(Access(), listen_host="0.0.0.0"):
            pass


async def test_operators_calls_are_in_the_log_with_their_outcome(callers: Callers) -> None:
    with capture_logs() as logs:
        async with serving(Access(str(callers.path))) as served:
            by_ops: Any = {"metadata": bearer(callers.tokens["ops"]), "timeout": TIMEOUT_S}
            pause = served.coupons.PauseCoupon
            await pause(coupon_pb2.PauseCouponRequest(name="coupons/ok"), **by_ops)
            await refused(pause(coupon_pb2.PauseCouponRequest(name="coupons/closed"), **by_ops))
            with pytest.raises(grpc.aio.AioRpcError):
                await pause(coupon_pb2.PauseCouponRequest(name="coupons/broken"), **by_ops)
            slow = pause(coupon_pb2.PauseCouponRequest(name="coupons/slow"), **by_ops)
            await eventually(lambda: _in_flight(served, 1))
            slow.cancel()
            await eventually(lambda: _in_flight(served, 0))
            by_shop = bearer(callers.tokens["shop"])
            await refused(pause(coupon_pb2.PauseCouponRequest(name="coupons/no"), metadata=by_shop, timeout=TIMEOUT_S))
            await served.coupons.CreateCoupon(coupon_pb2.CreateCouponRequest(coupon_id="new\n"), **by_ops)
            changed = coupon_pb2.UpdateCouponRequest(coupon=coupon_pb2.Coupon(name="coupons/old" + "x" * 9_999))
            await served.coupons.UpdateCoupon(changed, **by_ops)
            await served.issue(callers.tokens["shop"])
    lines = [entry for entry in logs if entry["event"] == "operator_call"]
    assert {entry["method"].rpartition("/")[0] for entry in lines} == {"/coupon.v1.CouponService"}
    assert [(entry["caller"], entry["resource"][:20], entry["outcome"]) for entry in lines] == [
        ("ops", "coupons/ok", "OK"),
        ("ops", "coupons/closed", "CLOSED"),
        ("ops", "coupons/broken", "INTERNAL"),
        ("ops", "coupons/slow", "CANCELLED"),
        ("shop", "", "ROLE_MISSING"),
        ("ops", "coupons/new\ufffd", "OK"),
        ("ops", "coupons/oldxxxxxxxxx", "OK"),
    ]
    assert max(len(entry["resource"]) for entry in lines) == 256
    assert not any(token in str(logs) for token in callers.tokens.values())


async def _in_flight(served: Served, calls: int) -> bool:
    return served.server.boundary.calls_in_flight == calls


async def test_a_caller_above_its_rate_is_told_when_to_come_back(callers: Callers) -> None:
    callers.write(shop=["issue"], baker=["issue"])
    async with serving(Access(str(callers.path), rate_per_s=4, rate_burst=2)) as served:
        now_s = 1_000.0
        rates = served.server.boundary._rates
        assert rates is not None
        rates._clock_s = lambda: now_s
        shop = callers.tokens["shop"]
        for _ in range(2):
            await served.issue(shop)
        mine = request_id()
        asked = issuer_pb2.IssueCouponRequest(request_id=mine)
        failure = await refused(served.issuer.IssueCoupon(asked, metadata=bearer(shop), timeout=TIMEOUT_S))
        assert shape(failure) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", {"RetryInfo"})
        assert failure.metadata == {"request_id": mine}
        delay_s = failure.details["RetryInfo"].retry_delay.ToMilliseconds() / 1_000
        assert 0 < delay_s <= 0.25
        assert await served.name(callers.tokens["baker"]) == "baker"
        now_s += delay_s
        assert await served.name(shop) == "shop"
        assert served.issuing.calls == 4


async def test_a_batch_counts_as_its_requests_against_the_rate(callers: Callers) -> None:
    async with serving(Access(str(callers.path), rate_per_s=1, rate_burst=10)) as served:
        batch = issuer_pb2.BatchIssueCouponsRequest(requests=[issuer_pb2.IssueCouponRequest()] * 8)
        shop: Any = {"metadata": bearer(callers.tokens["shop"]), "timeout": TIMEOUT_S}
        await served.issuer.BatchIssueCoupons(batch, **shop)
        failure = await refused(served.issuer.BatchIssueCoupons(batch, **shop))
        assert failure.reason == "RATE_LIMITED"
        assert 5_000 < failure.details["RetryInfo"].retry_delay.ToMilliseconds() <= 6_000
        await served.issue(callers.tokens["shop"])


async def test_a_call_whose_deadline_has_passed_does_no_work() -> None:
    async with serving(Access()) as served:
        await served.issue()
        codes: list[grpc.StatusCode] = []

        def call_late() -> None:
            with grpc.insecure_channel(served.address, options=_LOCAL) as channel:
                grpc.channel_ready_future(channel).result(TIMEOUT_S)
                ready.set()
                standing.wait(TIMEOUT_S)
                stub = issuer_pb2_grpc.IssuerServiceStub(channel)
                calls = [stub.IssueCoupon.future(issuer_pb2.IssueCouponRequest(), timeout=0.2) for _ in range(50)]
                codes.extend(call.code() for call in calls)
                over.set()

        ready, standing, over = threading.Event(), threading.Event(), threading.Event()
        calling = asyncio.create_task(asyncio.to_thread(call_late))
        await asyncio.to_thread(ready.wait, TIMEOUT_S)
        standing.set()  # from here on the server's loop stands still, as behind a long garbage collection
        over.wait(TIMEOUT_S)
        time.sleep(0.5)  # noqa: ASYNC251 - and some more, until the deadlines have passed by the server's clock as well
        await calling
        assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * 50
        await served.issue()
        assert served.issuing.calls == 2


@pytest.fixture(scope="module")
def make_authority(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Authority]:
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED: TLS, since there is no openssl command to make certificates with")
    return lambda: Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def authority(make_authority: Callable[[], Authority]) -> Authority:
    return make_authority()


@pytest.fixture
def tls(authority: Authority) -> TlsFiles:
    return TlsFiles(*authority.sign("server", "DNS:localhost", "IP:127.0.0.1"), None)


async def _unreachable(call: Awaitable[Any]) -> bool:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code() == grpc.StatusCode.UNAVAILABLE
    return False


async def test_tls_serves_who_trusts_it_and_no_plain_text(
    callers: Callers, authority: Authority, make_authority: Callable[[], Authority], tls: TlsFiles
) -> None:
    async with serving(Access(str(callers.path), tls), authority.client()) as served:
        assert await served.name(callers.tokens["shop"]) == "shop"
        assert shape(await refused(served.issue())) == _UNAUTHENTICATED
        for credentials in (None, make_authority().client()):
            async with _channel(served.address, credentials) as channel:
                stub: Any = issuer_pb2_grpc.IssuerServiceStub(channel)
                assert await _unreachable(stub.IssueCoupon(issuer_pb2.IssueCouponRequest(), timeout=TIMEOUT_S))


async def test_mtls_refuses_clients_without_a_certificate_of_its_authority(
    callers: Callers, authority: Authority, make_authority: Callable[[], Authority], tls: TlsFiles
) -> None:
    files = TlsFiles(tls.cert, tls.key, authority.path)
    stranger = make_authority()
    for credentials in (authority.client(), stranger.client("shop", trusting=authority)):
        async with serving(Access(str(callers.path), files), credentials) as served:
            assert await _unreachable(served.issue(callers.tokens["shop"]))
            assert served.issuing.calls == 0


async def test_a_certificate_names_its_caller_and_a_token_goes_first(
    callers: Callers, authority: Authority, tls: TlsFiles
) -> None:
    callers.write("till issue uri:spiffe://example/till", "kiosk issue cn:Kiosk", "lamp read dns:lamp", shop=["issue"])
    access = Access(str(callers.path), TlsFiles(tls.cert, tls.key, authority.path))
    async with serving(access, authority.client("any", "URI:spiffe://example/till", "DNS:lamp")) as served:
        assert await served.name() == "till"
        assert await served.name(callers.tokens["shop"]) == "shop"
        assert shape(await refused(served.issue("wrong"))) == _UNAUTHENTICATED
    async with serving(access, authority.client("Kiosk")) as served:
        assert await served.name() == "kiosk"
    async with serving(access, authority.client("lamp2", "DNS:lamp")) as served:
        assert (await refused(served.issue())).metadata == {"role": "issue"}
    async with serving(access, authority.client("nobody")) as served:
        assert shape(await refused(served.issue())) == _UNAUTHENTICATED


async def test_a_new_certificate_is_shown_without_a_restart_and_a_broken_one_never(
    callers: Callers, make_authority: Callable[[], Authority], tls: TlsFiles, tmp_path: Path
) -> None:
    old, new = make_authority(), make_authority()
    files = TlsFiles(str(tmp_path / "cert"), str(tmp_path / "key"), None)

    def put(authority: Authority) -> None:
        for source, target in zip(authority.sign("server", "DNS:localhost"), (files.cert, files.key), strict=True):
            shutil.copy(source, target)

    async def answers(authority: Authority) -> bool:
        async with _channel(served.address, authority.client()) as channel:
            stub: Any = issuer_pb2_grpc.IssuerServiceStub(channel)
            metadata = bearer(callers.tokens["shop"])
            call = stub.IssueCoupon(issuer_pb2.IssueCouponRequest(), timeout=TIMEOUT_S, metadata=metadata)
            return not await _unreachable(call)

    put(old)
    async with serving(Access(str(callers.path), files), old.client()) as served:
        assert await answers(old)
        assert await served.name(callers.tokens["shop"]) == "shop"
        with capture_logs() as logs:
            shutil.copy(__file__, files.key)
            await eventually(lambda: _logged(logs, "reload_refused"))
        assert await answers(old)
        put(new)
        await eventually(lambda: answers(new))
        assert not await answers(old)
        assert await served.name(callers.tokens["shop"]) == "shop"  # connections that are there stay


async def test_who_made_a_change_is_recorded_and_strangers_leave_no_trace(fresh: System, callers: Callers) -> None:
    coupon_id = new_id()
    callers.write(ops=["operate", "read"], shop=["issue"])
    async with (
        fresh.ledger(),
        fresh.issuer(FIRSTCOME_AUTH="required", FIRSTCOME_TOKENS=str(callers.path)) as client,
    ):
        assert await health_of(client.health_address) == SERVING
        assert await health_of(client.address) == grpc.StatusCode.UNAUTHENTICATED
        ends = await fresh.ends()
        coupon = coupon_pb2.Coupon(total_quantity=5)
        create = coupon_pb2.CreateCouponRequest(coupon_id=coupon_id, coupon=coupon)
        for metadata in (None, bearer("wrong"), bearer(callers.tokens["shop"])):
            await refused(client.coupons.CreateCoupon(create, timeout=TIMEOUT_S, metadata=metadata))
            await refused(client.issuer.ListIssuances(issuer_pb2.ListIssuancesRequest(), metadata=metadata))
        await refused(client.issue(coupon_id, "ann", metadata=bearer(callers.tokens["ops"])))
        assert await fresh.ends() == ends
        by_ops: Any = {"metadata": bearer(callers.tokens["ops"]), "timeout": TIMEOUT_S}
        await client.coupons.CreateCoupon(create, **by_ops)
        await client.coupons.PauseCoupon(coupon_pb2.PauseCouponRequest(name=f"coupons/{coupon_id}"), **by_ops)
        await client.coupons.ResumeCoupon(coupon_pb2.ResumeCouponRequest(name=f"coupons/{coupon_id}"), **by_ops)
        adding = coupon_pb2.AdjustStockRequest(name=f"coupons/{coupon_id}", delta=1)
        await client.coupons.AdjustStock(adding, **by_ops)
        issued = await client.issue(coupon_id, "ann", wait=True, metadata=bearer(callers.tokens["shop"]))
        assert issued.state == Issuance.ISSUED
        await client.coupons.GetCoupon(coupon_pb2.GetCouponRequest(name=f"coupons/{coupon_id}"), **by_ops)
    rows = await fresh.fetch("SELECT caller, changed_at FROM coupon_change WHERE coupon_id = $1", coupon_id)
    assert [row["caller"] for row in rows] == ["ops"] * 4
    assert all(row["changed_at"] is not None for row in rows)


async def test_a_change_without_authentication_is_recorded_as_local(fresh: System) -> None:
    coupon_id = new_id()
    async with fresh.ledger(), fresh.issuer() as client:
        await client.create(coupon_id)
    rows = await fresh.fetch("SELECT caller FROM coupon_change WHERE coupon_id = $1", coupon_id)
    assert [row["caller"] for row in rows] == ["local"]


def test_no_role_but_operate_changes_anything() -> None:
    changing = {method for method, role in METHODS.items() if role is Role.OPERATE}
    assert not any(method.rpartition("/")[2].startswith(("Get", "List", "Watch")) for method in changing)


class _TooLate:
    """The context of a call that comes with its deadline passed and that grpc has not ended yet."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    def time_remaining(self) -> float:
        return 0.0

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        raise grpc.aio.AbortError


@pytest.mark.parametrize("method", ["IssueCoupon", "WatchIssuance"])
async def test_a_late_call_that_grpc_hands_over_all_the_same_does_no_work(method: str) -> None:
    issuing, context = Issuing(), _TooLate()
    make = grpc.unary_stream_rpc_method_handler if method.startswith("Watch") else grpc.unary_unary_rpc_method_handler
    handler: Any = make(getattr(issuing, method), issuer_pb2.IssueCouponRequest.FromString, None)

    class Details:
        invocation_metadata = ()

    async def continuation(details: Any) -> Any:
        return handler

    details: Any = Details()
    details.method = f"/coupon.v1.IssuerService/{method}"
    boundary = Boundary(10)
    guarded = await boundary.intercept_service(continuation, details)
    call = (
        anext(guarded.unary_stream(b"", context)) if guarded.response_streaming else guarded.unary_unary(b"", context)
    )
    with pytest.raises(grpc.aio.AbortError):
        await call
    assert context.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (issuing.calls, boundary.calls_in_flight) == (0, 0)
