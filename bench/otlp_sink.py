"""A collector that takes spans and throws them away: `python -m bench.otlp_sink <listen>`."""

from __future__ import annotations

import sys
from concurrent import futures
from typing import Any

import grpc

THREADS = 2


class _Sink(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


def main(listen: str) -> None:
    """Serve until killed. An empty answer is a whole ExportTraceServiceResponse."""
    server = grpc.server(futures.ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers([_Sink()])
    server.add_insecure_port(listen)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
