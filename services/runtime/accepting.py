"""Several gRPC servers on one port.

A server of grpc.aio takes up one new call a turn of the event loop, however many have come: under load that, and not
what a call costs, is how fast calls come in. The kernel shares the connections among the servers of a port, and each
takes up the calls of its own.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeVar

import grpc

from services.runtime.health import bind, port_taken

SERVERS = 4
Servicer = TypeVar("Servicer")


class Servers:
    """They serve the same, begin and end together."""

    def __init__(
        self,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        options: Sequence[tuple[str, Any]],
        *,
        concurrent_calls_max: int,
        apart: Container[str],
    ) -> None:
        """`concurrent_calls_max`: of each, beyond which grpc answers without details. `apart`: see _queue_apart."""
        self._servers = [
            grpc.aio.server(
                interceptors=interceptors,
                options=[*options, ("grpc.so_reuseport", 1)],
                maximum_concurrent_rpcs=concurrent_calls_max,
            )
            for _ in range(SERVERS)
        ]
        for server in self._servers:
            _queue_apart(server, apart)

    def add(self, register: Callable[[Servicer, grpc.aio.Server], None], servicer: Servicer) -> None:
        """`register`: as the generated add_…_to_server."""
        for server in self._servers:
            register(servicer, server)

    async def start(self, listen: str, credentials: grpc.ServerCredentials | None) -> None:
        """Serve on host:port, without credentials in plain text. Raises OSError with a sentence if that is taken."""
        _check_free(listen)
        first, *others = self._servers
        port = bind(first, listen, credentials)
        for server in others:
            bind(server, f"{listen.rpartition(':')[0]}:{port}", credentials)
        for server in self._servers:
            await server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and cut off those that are still under way after the time."""
        await asyncio.gather(*(server.stop(grace=grace_s) for server in self._servers))


def _check_free(listen: str) -> None:
    """Raises OSError if somebody listens there. The kernel would let us join another process on its port."""
    host, _, port = listen.rpartition(":")
    for family, kind, protocol, _, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:  # of another kind: an address family that this machine has not got
            if error.errno == errno.EADDRINUSE:
                raise port_taken(listen) from error


def _queue_apart(server: grpc.aio.Server, methods: Container[str]) -> None:
    """Let calls of these methods wait apart from all others to be looked at: a rush of them holds up nothing else.

    By default each method has a queue of its own, and grpc.aio waits for all of them anew with every call.
    """
    register = server.add_registered_method_handlers

    def register_few(service_name: str, method_handlers: Mapping[str, Any]) -> None:
        few = {name: one for name, one in method_handlers.items() if f"/{service_name}/{name}" in methods}
        register(service_name, few)

    server.add_registered_method_handlers = register_few  # type: ignore[method-assign]
