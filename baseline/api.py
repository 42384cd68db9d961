"""`python -m baseline.api`: the calls, over grpc.aio."""

from __future__ import annotations

import asyncio

import grpc
from coupon.v1 import coupon_pb2_grpc, issuer_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from baseline import lifecycle
from baseline.config import Config
from baseline.redis_commands import SharedConnection, connect
from baseline.servicers import CouponServicer, IssuerServicer, Issuing
from baseline.stock import Stock
from baseline.tables import Tables

REQUEST_BYTES_MAX = 4 * 1024 * 1024
PENDING_CALLS_MAX = 20_000
DRAIN_S = 5.0


async def serve(config: Config, stopping: asyncio.Event) -> None:
    """Serve until told to stop. Raises what Redis or PostgreSQL raise if they are away at the start."""
    redis, tables = connect(config.redis), Tables(config.postgres_dsn)
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
            ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
            ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
        ]
    )
    try:
        await tables.start()
        issuing = Issuing(Stock(SharedConnection(redis)), tables)
        issuer_pb2_grpc.add_IssuerServiceServicer_to_server(IssuerServicer(issuing), server)
        coupon_pb2_grpc.add_CouponServiceServicer_to_server(CouponServicer(issuing), server)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        server.add_insecure_port(config.listen)
        await server.start()
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        await stopping.wait()
    finally:
        await server.stop(grace=DRAIN_S)
        await redis.aclose()
        await tables.stop()


if __name__ == "__main__":
    lifecycle.main(serve)
