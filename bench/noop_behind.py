"""The limit of the issuer: calls that do nothing, behind the services' own server, interceptors and spans.

A program of its own (`python -m bench.noop_behind`, the issuer's settings), and the one place of the bench that imports
the services: nothing else of it imports this. `coupons/refused` is answered with SOLD_OUT, all others with ACCEPTED.
At the address in GRPC_LISTEN the same interceptors are before a server as grpc.aio makes it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc
from coupon.v1 import issuer_pb2, issuer_pb2_grpc

from bench.noop import GRPC_LISTEN, answer
from services.runtime import lifecycle
from services.runtime.config import IssuerConfig, issuer_config
from services.runtime.grpc_server import GrpcServer
from services.runtime.health import Health
from services.runtime.rpc_errors import Refusal

REFUSED = "coupons/refused"


class Noop(issuer_pb2_grpc.IssuerServiceServicer):
    async def IssueCoupon(self, request: issuer_pb2.IssueCouponRequest, context: Any) -> issuer_pb2.Issuance:  # noqa: N802
        if request.coupon == REFUSED:
            raise Refusal("SOLD_OUT", "coupon refused is sold out", resource=REFUSED, metadata={"request_id": "none"})
        return answer(request)


async def serve(config: IssuerConfig, stopping: asyncio.Event) -> None:
    """Serve until told to stop."""
    health = Health()
    server = GrpcServer(health, concurrent_calls_max=config.concurrent_calls_max, access=config.access)
    server.add(issuer_pb2_grpc.add_IssuerServiceServicer_to_server, Noop())
    await health.start(config.common.health_listen)
    await server.start(config.listen, [issuer_pb2.DESCRIPTOR.services_by_name["IssuerService"].full_name])
    grpcs_own = grpc.aio.server(interceptors=[server.boundary])
    issuer_pb2_grpc.add_IssuerServiceServicer_to_server(Noop(), grpcs_own)
    grpcs_own.add_insecure_port(os.environ[GRPC_LISTEN])
    await grpcs_own.start()
    await health.set("", serving=True)
    await stopping.wait()
    await grpcs_own.stop(1.0)
    await server.stop(1.0)
    await health.stop()


if __name__ == "__main__":
    # As the issuer, so that what is counted of calls is the same.
    lifecycle.main("issuer", issuer_config, lambda config: config.common, serve)
