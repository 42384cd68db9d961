"""The limit of a unary call: a grpc.aio server that answers IssueCoupon with a constant and does nothing else."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import uvloop
from coupon.v1 import issuer_pb2, issuer_pb2_grpc

GRPC_LISTEN = "NOOP_GRPC_LISTEN"
"""The setting by which `bench.noop_behind` is told where to serve on grpc.aio's own server."""


def answer(request: issuer_pb2.IssueCouponRequest) -> issuer_pb2.Issuance:
    """ACCEPTED with a ticket, as long as the real answer."""
    return issuer_pb2.Issuance(
        name=f"{request.coupon}/issuances/{request.user_id}",
        coupon=request.coupon,
        user_id=request.user_id,
        request_id="123e4567-e89b-12d3-a456-426614174000",
        state=issuer_pb2.Issuance.ACCEPTED,
        ticket="3-1234567",
    )


class Noop(issuer_pb2_grpc.IssuerServiceServicer):
    async def IssueCoupon(self, request: issuer_pb2.IssueCouponRequest, context: Any) -> issuer_pb2.Issuance:  # noqa: N802
        return answer(request)


async def main(listen: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    issuer_pb2_grpc.add_IssuerServiceServicer_to_server(Noop(), server)
    server.add_insecure_port(listen)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
