"""The gRPC server of issuer and dlq: one boundary where errors become answers, health, reflection, drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.domain.model import is_request_id
from services.runtime import telemetry
from services.runtime.health import Health, bind
from services.runtime.kafka import KafkaAway
from services.runtime.log import get_logger
from services.runtime.postgres import DatabaseAway
from services.runtime.rpc_errors import Refusal, unavailable

log = get_logger(__name__)

PACKAGE = "/coupon.v1."
REQUEST_BYTES_MAX = 4 * 1024 * 1024
CONNECTION_AGE_MS_MAX = 300_000
"""After it clients connect anew, and so find servers that came later."""
CONNECTION_AGE_GRACE_MS = 60_000
SERVER_HEADROOM_CALLS = 1_000
"""How far grpc's own limit, which answers without details, stays above ours."""


class GrpcServer:
    """Our servicers behind the boundary, on one port."""

    def __init__(self, health_of_service: Health, *, concurrent_calls_max: int) -> None:
        self._health = health_of_service
        self.boundary = Boundary(concurrent_calls_max)
        self.server = grpc.aio.server(
            interceptors=[*telemetry.server_interceptors(), self.boundary],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
                ("grpc.max_connection_age_ms", CONNECTION_AGE_MS_MAX),
                ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS),
            ],
            maximum_concurrent_rpcs=concurrent_calls_max + SERVER_HEADROOM_CALLS,
        )

    async def start(self, listen: str, services: Sequence[str]) -> None:
        """Serve; `services` are the full names that reflection and health speak of. Raises OSError."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self.server)
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self.server)
        bind(self.server, listen)
        await self.server.start()

    async def stop(self, drain_timeout_s: float) -> None:
        """Take no more calls, let those under way end within the time, then cut them off."""
        await self.server.stop(grace=drain_timeout_s)


class Boundary(grpc.aio.ServerInterceptor):
    """Where bytes become requests and exceptions become answers, for every method of the contract."""

    def __init__(self, concurrent_calls_max: int) -> None:
        self._concurrent_calls_max = concurrent_calls_max
        self.calls_in_flight = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(PACKAGE):
            return handler
        # The bytes are parsed in here: grpc answers what it can't parse with INTERNAL.
        parse = handler.request_deserializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(handler.unary_unary, parse), None, handler.response_serializer
            )
        return grpc.unary_stream_rpc_method_handler(
            self._stream(handler.unary_stream, parse), None, handler.response_serializer
        )

    def _unary(self, behave: Any, parse: Any) -> Any:
        async def call(raw: bytes, context: Any) -> Any:
            self.calls_in_flight += 1
            try:
                self._admit()
                return await behave(_parsed(parse, raw), context)
            except Exception as error:
                refusal = _refusal(error)
            except asyncio.CancelledError:
                if context.cancelled() or context.done():
                    raise
                refusal = unavailable("LEDGER_UNAVAILABLE", "the call was cut short inside the service")
            finally:
                self.calls_in_flight -= 1
            return await _abort(context, _with_request_id(refusal, parse, raw))

        return call

    def _stream(self, behave: Any, parse: Any) -> Any:
        async def call(raw: bytes, context: Any) -> AsyncIterator[Any]:
            self.calls_in_flight += 1
            try:
                self._admit()
                async for message in behave(_parsed(parse, raw), context):
                    yield message
                return
            except Exception as error:
                refusal = _refusal(error)
            finally:
                self.calls_in_flight -= 1
            await _abort(context, _with_request_id(refusal, parse, raw))

        return call

    def _admit(self) -> None:
        if self.calls_in_flight > self._concurrent_calls_max:
            raise unavailable("OVERLOADED", f"more than {self._concurrent_calls_max} calls are under way")


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except (DecodeError, ValueError) as error:
        raise Refusal("INVALID_FIELD", "the request's bytes are not a message of this method") from error


def _refusal(error: Exception) -> Refusal | None:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, DatabaseAway):
        log.warning("database_unavailable", error=str(error))
        return unavailable("DATABASE_UNAVAILABLE", "the database does not answer; call again")
    if isinstance(error, KafkaAway):
        log.warning("kafka_unavailable", error=str(error))
        return unavailable("KAFKA_UNAVAILABLE", "the log does not answer; calling again is harmless")
    log.error("call_failed", exc_info=error)
    return None


def _with_request_id(refusal: Refusal | None, parse: Callable[[bytes], Any], raw: bytes) -> Refusal | None:
    """The refusal with the caller's own request_id where it was made before anyone looked at the request."""
    if refusal is not None and "request_id" not in refusal.metadata:
        with contextlib.suppress(DecodeError, ValueError):
            request_id = getattr(parse(raw), "request_id", "")
            if is_request_id(request_id):
                refusal.metadata = {**refusal.metadata, "request_id": request_id}
    return refusal


async def _abort(context: Any, refusal: Refusal | None) -> Any:
    if refusal is None:
        return await context.abort(grpc.StatusCode.INTERNAL, "an error that was not foreseen; it has been logged")
    status = rpc_status.to_status(refusal.status())
    return await context.abort(status.code, status.details, status.trailing_metadata)
