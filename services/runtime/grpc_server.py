"""The gRPC server of issuer and dlq: one boundary where errors become answers, health, reflection, drain."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
from coupon.v1 import issuer_pb2
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2_grpc

from services.domain.model import is_request_id, printable
from services.runtime import auth, metrics, telemetry, tls, trace_context
from services.runtime.accepting import make_server
from services.runtime.auth import LOCAL, METHODS, Callers, Role, caller_name, need_role, set_caller
from services.runtime.config import Access, ConfigError, is_loopback
from services.runtime.health import Health, bind
from services.runtime.kafka import KafkaAway
from services.runtime.log import Seldom, get_logger
from services.runtime.postgres import DatabaseAway
from services.runtime.rate import CallerRates
from services.runtime.reflecting import add_reflection_to_server
from services.runtime.reload import POLL_INTERVAL_S, Reloaded
from services.runtime.rpc_errors import CATALOGUE, DETAILS, Refusal, unavailable

log = get_logger(__name__)
seldom_log = Seldom(__name__)

PACKAGE = "/coupon.v1."
REQUEST_BYTES_MAX = 4 * 1024 * 1024
WINDOW_BYTES = 256 * 1024
"""How much of a request may be on its way, enough for a batch of 1,000. By default grpc finds out by pings, again and
again while requests come: a twentieth of what a small call costs, callers included."""
CONNECTION_AGE_MS_MAX = 300_000
"""After it clients connect anew, and so find servers that came later."""
CONNECTION_AGE_GRACE_MS = 60_000
SERVER_HEADROOM_CALLS = 1_000
"""How far grpc's own limit, which answers without details, stays above ours."""
PENDING_CALLS_MAX = 20_000
"""Calls that have come and are not yet looked at. By default grpc cuts some off above 1,000, all above 3,000, as if the
client had cancelled them: a rush of waiting calls comes faster than that."""
RESOURCE_BYTES_MAX = 256
ISSUING = frozenset({"/coupon.v1.IssuerService/IssueCoupon", "/coupon.v1.IssuerService/BatchIssueCoupons"})
"""Whose requests are counted one by one; those that are answered, by the methods themselves."""
TOO_LATE = grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline had passed before the work began"

DRAIN_LOOK_S = 0.05
ANSWER_FLUSH_S = 1.0
"""How long answers may still be on their way when the last call of the contract has ended."""

Servicer = TypeVar("Servicer")


class GrpcServer:
    """Our servicers behind the boundary, on one port."""

    def __init__(self, health_of_service: Health, *, concurrent_calls_max: int, access: Access | None = None) -> None:
        """Raises BadFile, if what `access` names was readable when it was checked and is no more."""
        self._health = health_of_service
        self._access = access or Access()
        self._watching: asyncio.Task[None] | None = None
        self._callers: Reloaded[Callers] | None = None
        self._certificate: Reloaded[grpc.ServerCertificateConfiguration] | None = None
        if (path := self._access.callers_path) is not None:
            self._callers = Reloaded("callers", [path], lambda: auth.load_callers(path))
        if (files := self._access.tls) is not None:
            self._certificate = Reloaded("certificate", files.paths, lambda: tls.load(files))
        rates = CallerRates(self._access.rate_per_s, self._access.rate_burst) if self._access.rate_per_s else None
        self.boundary = Boundary(concurrent_calls_max, callers=self._callers, rates=rates)
        self._server = make_server(
            [self.boundary],
            [
                ("grpc.so_reuseport", 0),
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
                ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
                ("grpc.max_connection_age_ms", CONNECTION_AGE_MS_MAX),
                ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS),
                ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
                ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
            ],
            concurrent_calls_max=concurrent_calls_max + SERVER_HEADROOM_CALLS,
            apart=ISSUING,
        )

    def add(self, register: Callable[[Servicer, grpc.aio.Server], None], servicer: Servicer) -> None:
        """`register`: as the generated add_…_to_server."""
        register(servicer, self._server)

    async def start(self, listen: str, services: Sequence[str]) -> None:
        """Serve; `services` are the full names that reflection and health speak of. Raises OSError."""
        self.add(health_pb2_grpc.add_HealthServicer_to_server, self._health.servicer)
        self.add(add_reflection_to_server, [*services, health.SERVICE_NAME])
        files, certificate = self._access.tls, self._certificate
        if self._callers is None and not is_loopback(listen):
            raise ConfigError(f"without authentication only a loopback address may be served, not {listen}")
        secure = tls.credentials(files, certificate) if files is not None and certificate is not None else None
        bind(self._server, listen, secure)
        await self._server.start()
        self._watching = asyncio.create_task(self._watch_files())
        if self._callers is None:
            log.warning("authentication_off", listen=listen)
        elif secure is None and not is_loopback(listen):
            log.warning("encryption_off", listen=listen)
        log.info("serving", listen=listen, tls=secure is not None, mtls=bool(files and files.client_ca))

    async def stop(self, drain_timeout_s: float) -> None:
        """Take no more calls, let those under way end within the time, then cut them off.

        Those who watch the health hold a stream open for ever: they are not waited for.
        """
        if self._watching is not None:
            self._watching.cancel()
        stopping = asyncio.ensure_future(self._server.stop(drain_timeout_s))
        await asyncio.sleep(DRAIN_LOOK_S)
        while self.boundary.calls_in_flight and not stopping.done():  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_LOOK_S)
        await self._server.stop(min(ANSWER_FLUSH_S, drain_timeout_s))
        await stopping

    def observe(self) -> None:
        """Note how many calls are under way."""
        metrics.CALLS_IN_FLIGHT.set(self.boundary.calls_in_flight)
        metrics.CALLS_IN_FLIGHT_MAX.set(self.boundary.concurrent_calls_max)

    async def _watch_files(self) -> None:
        told = 0
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            try:
                if self._callers is not None:
                    await self._callers.poll()
                if self._certificate is not None:
                    await self._certificate.poll()
            except Exception as error:
                log.error("reload_failed", exc_info=error)
            # Summed up: whoever has no credentials must not fill the log either.
            if (refused := self.boundary.unauthenticated_calls) != told:
                log.warning("unauthenticated_calls", count=refused - told)
                told = refused


class Boundary(grpc.aio.ServerInterceptor):
    """Where bytes become requests and exceptions become answers, for every method of the contract.

    In this order: is there still time, who calls, may they, what do they ask, is there room, have they asked too often.
    """

    def __init__(
        self, concurrent_calls_max: int, *, callers: Reloaded[Callers] | None = None, rates: CallerRates | None = None
    ) -> None:
        """Without `callers` authentication is off; without `rates` no caller is held back."""
        self.concurrent_calls_max = concurrent_calls_max
        self._callers = callers
        self._rates = rates
        self._handlers: dict[str, Any] = {}
        self.calls_in_flight = 0
        self.unauthenticated_calls = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        # Of the task in which the call is answered, too; asking its context for them makes them anew each time.
        trace_context.incoming.set(handler_call_details.invocation_metadata or ())
        guarded = self._handlers.get(method)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # grpc answers UNIMPLEMENTED; nothing is kept of names that strangers make up
                return None
            guarded = self._handlers[method] = self._guarded(method, handler)
        return guarded

    def _guarded(self, method: str, handler: Any) -> Any:
        if not method.startswith(PACKAGE):
            return self._for_known_callers(method, handler)
        # The bytes are parsed in here: grpc answers what it can't parse with INTERNAL.
        parse = handler.request_deserializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary, parse), None, handler.response_serializer
            )
        return grpc.unary_stream_rpc_method_handler(
            self._stream(method, handler.unary_stream, parse), None, handler.response_serializer
        )

    def _unary(self, method: str, behave: Any, parse: Any) -> Any:
        recorded = METHODS.get(method) is Role.OPERATE

        async def call(raw: bytes, context: Any) -> Any:
            if context.time_remaining() == 0:
                _count(method, "DEADLINE_EXCEEDED", time.perf_counter())
                return await context.abort(*TOO_LATE)
            began_s = time.perf_counter()
            span = telemetry.begin_call(method)
            request, refusal, outcome = None, None, "OK"
            self.calls_in_flight += 1
            try:
                self._admit(method, context)
                request = _parsed(parse, raw)
                self._make_room(request)
                return await behave(request, context)
            except Exception as error:
                refusal = _refusal(error)
                outcome = refusal.reason if refusal is not None else "INTERNAL"
            except asyncio.CancelledError:
                outcome = "CANCELLED"
                if context.cancelled() or context.done():
                    raise
                refusal = unavailable("LEDGER_UNAVAILABLE", "the call was cut short inside the service")
            finally:
                self.calls_in_flight -= 1
                _count(method, outcome, began_s, request, span)
                if recorded:
                    _record(method, request, outcome)
            aborting = _abort(context, _with_request_id(refusal, request))
            del context
            return await aborting

        return call

    def _stream(self, method: str, behave: Any, parse: Any) -> Any:
        async def call(raw: bytes, context: Any) -> AsyncIterator[Any]:
            if context.time_remaining() == 0:
                _count(method, "DEADLINE_EXCEEDED", time.perf_counter())
                await context.abort(*TOO_LATE)
            began_s = time.perf_counter()
            span = telemetry.begin_call(method)
            request, outcome = None, "CANCELLED"
            self.calls_in_flight += 1
            try:
                self._admit(method, context)
                request = _parsed(parse, raw)
                self._make_room(request)
                await _write_all(behave(request, context), context)
                outcome = "OK"
                return
            except grpc.aio.InternalError:
                return  # what was written did not arrive: the caller has gone
            except Exception as error:
                refusal = _refusal(error)
                outcome = refusal.reason if refusal is not None else "INTERNAL"
            finally:
                self.calls_in_flight -= 1
                _count(method, outcome, began_s, span=span)
            await _abort(context, _with_request_id(refusal, request))
            yield  # never reached: it makes this the generator that the spans' interceptor expects

        return call

    def _for_known_callers(self, method: str, handler: Any) -> Any:
        """Health and reflection: for every caller, but not for strangers."""
        behave = handler.unary_unary or handler.unary_stream or handler.stream_stream

        async def one(request: Any, context: Any) -> Any:
            try:
                self._admit(method, context)
            except Refusal as refusal:
                return await _abort(context, refusal)
            return await behave(request, context)

        async def many(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                self._admit(method, context)
            except Refusal as refusal:
                await _abort(context, refusal)
            answers = behave(request, context)
            with contextlib.suppress(grpc.aio.InternalError):  # the caller has gone
                await (_write_all(answers, context) if hasattr(answers, "__aiter__") else answers)
            return
            yield  # as above

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        guarded: Any = many if handler.response_streaming else one
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _admit(self, method: str, context: Any) -> None:
        """Raises Refusal unless the caller is known and has the role that the method needs."""
        if self._callers is None:
            caller = LOCAL
        else:
            try:
                caller = self._callers.current.identify(context)
            except Refusal:
                self.unauthenticated_calls += 1
                raise
        set_caller(caller)
        need_role(method, caller)

    def _make_room(self, request: Any) -> None:
        if self.calls_in_flight > self.concurrent_calls_max:
            raise unavailable("OVERLOADED", f"more than {self.concurrent_calls_max} calls are under way")
        if self._rates is not None:
            wait_s = self._rates.charge(caller_name(), _requests(request))
            if wait_s > 0:
                refusal = unavailable("RATE_LIMITED", f"caller {caller_name()} calls more often than it may")
                refusal.retry_after_ms = math.ceil(wait_s * 1_000)
                raise refusal


async def _write_all(messages: Any, context: Any) -> None:
    # Written, not yielded on: a caller who leaves ends it here and now, not when the collector comes by.
    async with contextlib.aclosing(messages):
        async for message in messages:
            await context.write(message)


def _count(method: str, outcome: str, began_s: float, request: Any = None, span: telemetry.Call | None = None) -> None:
    """`outcome`: OK, the reason of the refusal, or a code where there is none."""
    row = CATALOGUE.get(outcome)
    code, reason = (outcome, "") if row is None else (row.code.name, outcome)
    metrics.CALL_SECONDS.record(time.perf_counter() - began_s, method[1:], code, reason)
    telemetry.end_call(span, method, code, reason)
    if outcome != "OK" and method in ISSUING:
        metrics.ANSWERS.add(_requests(request), outcome)


def _requests(request: Any) -> int:
    """How many a call brings: those of a batch, or itself."""
    return len(request.requests) if isinstance(request, issuer_pb2.BatchIssueCouponsRequest) else 1


def _record(method: str, request: Any, outcome: str) -> None:
    """Who did what; CANCELLED: the caller left before the answer, and the change may be in the line."""
    if caller_name():
        log.info("operator_call", method=method, caller=caller_name(), resource=_resource(request), outcome=outcome)


def _resource(request: Any) -> str:
    """The name of what the request is about, as far as it was read."""
    name: str = getattr(request, "name", "")
    if not name and (coupon_id := getattr(request, "coupon_id", "")):
        name = f"coupons/{coupon_id}"
    if not name:
        name = getattr(getattr(request, "coupon", None), "name", "")
    return printable(name, RESOURCE_BYTES_MAX)


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except (DecodeError, ValueError) as error:
        raise Refusal("INVALID_FIELD", "the request's bytes are not a message of this method") from error


def _refusal(error: Exception) -> Refusal | None:
    if isinstance(error, Refusal):
        return error.with_traceback(None)  # it names the frame that keeps the refusal: see _abort
    if isinstance(error, DatabaseAway):
        seldom_log.warning("database_unavailable", error=str(error))
        return unavailable("DATABASE_UNAVAILABLE", "the database does not answer; call again")
    if isinstance(error, KafkaAway):
        seldom_log.warning("kafka_unavailable", error=str(error))
        return unavailable("KAFKA_UNAVAILABLE", "the log does not answer; calling again is harmless")
    seldom_log.error("call_failed", exc_info=error)
    return None


def _with_request_id(refusal: Refusal | None, request: Any) -> Refusal | None:
    """The refusal with the caller's own request_id where it was made before a method looked at the request.

    Not where it was made before the request was parsed: for those who may not call nothing is parsed.
    """
    if refusal is not None and request is not None and "request_id" not in refusal.metadata:
        request_id = getattr(request, "request_id", "")
        if is_request_id(request_id):
            refusal.metadata = {**refusal.metadata, "request_id": request_id}
    return refusal


def _abort(context: Any, refusal: Refusal | None) -> Awaitable[Any]:
    """To be awaited by one who has let go of the context: it keeps the error, whose traceback keeps his frame.

    Else each refused call would stay in memory until the collector comes by, which takes longer than refusing it.
    """
    aborting: Awaitable[Any]
    if refusal is None:
        aborting = context.abort(grpc.StatusCode.INTERNAL, "an error that was not foreseen; it has been logged")
    else:
        aborting = context.abort(refusal.code, refusal.message, ((DETAILS, refusal.serialized()),))
    return aborting
