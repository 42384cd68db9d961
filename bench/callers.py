"""Callers in a process of their own: as many unary IssueCoupon calls as `callers` at a time get answered.

`python -m bench.callers <address> <coupon> <user prefix> <callers> <seconds>` prints calls, errors and milliseconds at
the 50th and 99th percentile.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import grpc
import uvloop
from coupon.v1 import issuer_pb2

CHANNELS = 4
METHOD = "/coupon.v1.IssuerService/IssueCoupon"
TIMEOUT_S = 20.0


async def main(address: str, coupon: str, prefix: str, callers: int, seconds: float) -> None:
    """Closed loop: each caller calls again when answered. Bytes in, bytes out: the client must not be the limit."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
    methods: list[Any] = [channel.unary_unary(METHOD) for channel in channels]
    latencies_s: list[float] = []
    errors = 0
    ends_s = time.perf_counter() + seconds

    async def call_on(number: int) -> None:
        nonlocal errors
        count = 0
        while (began_s := time.perf_counter()) < ends_s:
            request = issuer_pb2.IssueCouponRequest(coupon=coupon, user_id=f"{prefix}-{number}-{count}")
            try:
                await methods[number % CHANNELS](request.SerializeToString(), timeout=TIMEOUT_S)
                latencies_s.append(time.perf_counter() - began_s)
            except grpc.aio.AioRpcError:
                errors += 1
            count += 1

    await asyncio.gather(*(call_on(number) for number in range(callers)))
    for channel in channels:
        await channel.close()
    latencies_s.sort()
    p50, p99 = (latencies_s[int(len(latencies_s) * share)] * 1000 if latencies_s else 0.0 for share in (0.5, 0.99))
    print(f"{len(latencies_s)} {errors} {p50:.1f} {p99:.1f}")


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
