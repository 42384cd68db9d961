"""`python -m baseline.scheduler`: takes from the queue what has been granted and stores it, again and again.

What it has taken is nowhere but in its memory until it is stored: a crash in between loses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from redis.exceptions import RedisError

from baseline import lifecycle
from baseline.config import Config
from baseline.redis_commands import connect
from baseline.stock import QUEUE, Granted
from baseline.tables import DatabaseAway, Tables


async def serve(config: Config, stopping: asyncio.Event) -> None:
    """Run until told to stop. Raises what PostgreSQL raises if it is away at the start."""
    redis, tables = connect(config.redis), Tables(config.postgres_dsn)
    server, servicer = grpc.aio.server(options=[("grpc.so_reuseport", 0)]), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(config.health_listen)
    try:
        await tables.start()
        await server.start()
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        while not stopping.is_set():
            try:
                while not stopping.is_set():
                    popped: Any = await redis.lpop(QUEUE, config.batch)
                    if not popped:
                        break
                    await tables.insert([Granted(**json.loads(value)) for value in popped])
            except (RedisError, OSError, DatabaseAway) as error:
                # As a scheduled method that fails: this run ends, and what it had taken is gone.
                print(f"scheduler: this run failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), config.period_s)
    finally:
        await server.stop(grace=None)
        await redis.aclose()
        await tables.stop()


if __name__ == "__main__":
    lifecycle.main(serve)
