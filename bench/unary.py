"""Unary IssueCoupon beside a no-op grpc.aio call: alternating slices on one machine, the median of their ratios.

`make bench-unary` prints `BENCH unary_ratio=<r> unary_per_s=<n> noop_per_s=<n> …`. Callers, issuer, Kafka, ledger and
PostgreSQL share the machine's cores in the slices of ours; only callers and server do in those of the no-op.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from coupon.v1 import coupon_pb2, coupon_pb2_grpc

from stack import Services, Stack, free_port

COUPON = "coupons/unary"
STOCK = 1_000_000
CALLERS = 100
SLICE_S = 5.0
SLICES = 5
READY_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Slice:
    """What one slice saw; milliseconds at the percentiles."""

    per_s: float
    errors: int
    p50_ms: float
    p99_ms: float


def main(slices: int, least_ratio: float) -> int:
    """Run the measurement; 1 if the ratio is below `least_ratio` or calls failed."""
    with (
        tempfile.TemporaryDirectory() as logs,
        Stack.start() as stack,
        Services(stack.kafka_bootstrap, stack.postgres_dsn, names=("issuer", "ledger"), log_dir=Path(logs)) as services,
    ):
        listen, address = f"127.0.0.1:{free_port()}", services.issuer_address
        noop = subprocess.Popen([sys.executable, "-m", "bench.noop", listen])
        try:
            _create(address)
            with grpc.insecure_channel(listen) as channel:
                grpc.channel_ready_future(channel).result(timeout=READY_TIMEOUT_S)
            _slice(address, "warm")
            pairs = [(_slice(listen, "noop"), _slice(address, f"s{number}")) for number in range(slices)]
        finally:
            noop.terminate()
            noop.wait()
    ratio = statistics.median(mine.per_s / limit.per_s for limit, mine in pairs)
    errors = sum(mine.errors for _, mine in pairs)
    each = "/".join(f"{mine.per_s / limit.per_s:.2f}" for limit, mine in pairs)
    print(
        f"BENCH unary_ratio={ratio:.2f} unary_per_s={statistics.median(m.per_s for _, m in pairs):.0f} "
        f"noop_per_s={statistics.median(n.per_s for n, _ in pairs):.0f} "
        f"unary_p50_ms={statistics.median(m.p50_ms for _, m in pairs):.1f} "
        f"unary_p99_ms={statistics.median(m.p99_ms for _, m in pairs):.1f} "
        f"callers={CALLERS} errors={errors} slices={each}"
    )
    return 0 if ratio >= least_ratio and not errors else 1


def _create(address: str) -> None:
    coupon = coupon_pb2.Coupon(display_name="unary", total_quantity=STOCK)
    request = coupon_pb2.CreateCouponRequest(coupon_id=COUPON.removeprefix("coupons/"), coupon=coupon)
    with grpc.insecure_channel(address) as channel:
        stub: Any = coupon_pb2_grpc.CouponServiceStub(channel)
        stub.CreateCoupon(request, timeout=READY_TIMEOUT_S)


def _slice(address: str, prefix: str) -> Slice:
    command = [sys.executable, "-m", "bench.callers", address, COUPON, prefix, str(CALLERS), str(SLICE_S)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SLICE_S + 60).stdout.split()
    calls, errors, p50, p99 = told
    return Slice(int(calls) / SLICE_S, int(errors), float(p50), float(p99))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--least-ratio", type=float, default=0.0, help="fail below it (0: never; machines are noisy)")
    options = parser.parse_args()
    sys.exit(main(options.slices, options.least_ratio))
