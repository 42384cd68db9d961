"""Server reflection, by which grpcurl, ghz and the like learn the contract from the server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection

_POOL: Any = descriptor_pool.Default()


class _Pool:
    """protobuf's pool of descriptors, which does not know by itself in which file a method is declared; ghz asks so."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_POOL, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        """Of a method, a service, a message and the like, by its full name. Raises KeyError."""
        try:
            return _POOL.FindFileContainingSymbol(symbol)
        except KeyError:
            return _POOL.FindMethodByName(symbol).containing_service.file


def add_reflection_to_server(services: Iterable[str], server: grpc.aio.Server) -> None:
    """`services`: the full names that are listed."""
    reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server, pool=_Pool())
