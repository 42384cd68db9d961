"""grpc.health.v1: `""` says whether the service does its work; on a plain port of its own, without credentials."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
PROCESS = "firstcome.process"
"""The part that says no more than that the process answers, for liveness: Kafka and PostgreSQL may be away."""
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The health of one service and of its named parts."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._told: dict[str, bool] = {}

    async def start(self, listen: str) -> None:
        """Answer on `listen`; all but PROCESS NOT_SERVING until told otherwise. Raises OSError if the port is taken."""
        await self.set(PROCESS, serving=True)
        await self.set("", serving=False)
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._server)
        bind(self._server, listen)
        await self._server.start()

    async def set(self, part: str, *, serving: bool) -> None:
        """Tell it to callers and watchers, when it changes."""
        if self._told.get(part) is not serving:
            self._told[part] = serving
            await self.servicer.set(part, SERVING if serving else NOT_SERVING)

    async def leave(self) -> None:
        """NOT_SERVING for good: load balancers look elsewhere from now on."""
        await self.servicer.enter_graceful_shutdown()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)


def bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """Listen on host:port, without credentials in plain text; returns the port.

    Raises OSError with a sentence if the port is taken.
    """
    try:
        return server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"can't listen on {listen}: is the port taken?") from error
