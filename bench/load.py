"""A client process: makes calls by schedule or by callers, and tells how long each took from its intended time.

`python -m bench.load` reads a Load as JSON from a line of stdin, prepares, says "ready", waits for a line with the time
to begin at, and prints what it saw as JSON. By schedule (`rate_per_s`), a call that leaves late or waits for the others
counts from when it should have left: nothing is omitted because the system was slow.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import uvloop
from coupon.v1 import issuer_pb2
from google.rpc import code_pb2
from hdrh.histogram import HdrHistogram

TICK_S = 0.005
"""Calls by schedule leave when they are due, or so much later: that counts as their wait, and the callers, which share
the machine with what they call, need not wake for each."""
IN_FLIGHT_MAX = 5_000
"""Calls of one process under way; those above wait, and their wait counts."""
LATENCY_US_MAX = 60_000_000
SIGNIFICANT_DIGITS = 3
BUCKET_S = 0.25
"""How finely answers are counted over time."""
_OPTIONS = [("grpc.max_receive_message_length", 16 << 20)]
_UNARY = "/coupon.v1.IssuerService/IssueCoupon"
_BATCH = "/coupon.v1.IssuerService/BatchIssueCoupons"


@dataclass(frozen=True, slots=True)
class Load:
    """What one process asks for.

    `coupons` above 1: the requests go to <coupon>-0, <coupon>-1, … in turn. `batch` above 0: BatchIssueCoupons of so
    many. `rate_per_s` of calls above 0: by schedule for `seconds`; else `callers` that call again when answered, for
    `seconds` or until `calls` are made. `user_pool` above 0: so many users in all, in turn; else one for each request.
    `stamped`: a user's id ends with the intended time in microseconds, so that a row tells how late it is. `scattered`:
    it begins with a hash, so that users come in no order of the index.
    """

    address: str
    coupon: str
    user_prefix: str
    coupons: int = 1
    batch: int = 0
    wait: bool = False
    rate_per_s: float = 0.0
    callers: int = 0
    seconds: float = 0.0
    calls: int = 0
    user_pool: int = 0
    stamped: bool = False
    scattered: bool = False
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one process saw. Times are seconds since the epoch; `states` and `errors` count requests, `answered` too."""

    calls: int
    states: dict[str, int]
    errors: dict[str, int]
    latencies: str
    per_bucket: dict[int, int]
    first_call_s: float
    last_call_s: float
    last_answer_s: float
    cpu_s: float


class _Caller:
    def __init__(self, load: Load, channel: grpc.aio.Channel) -> None:
        self._load = load
        self._method: Any = channel.unary_unary(_BATCH if load.batch else _UNARY)
        self._requests = 0
        self._made: list[tuple[bytes, int]] = []
        self.calls = 0
        self.states: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies_us: list[int] = []
        self.per_bucket: Counter[int] = Counter()
        self.began_s = self.last_call_s = self.last_answer_s = 0.0

    def make_ready(self, calls: int) -> None:
        """Write so many requests down before the time runs: writing them is not what is measured."""
        self._made = [self._next(0.0) for _ in range(calls)][::-1]

    async def call(self, intended_s: float) -> None:
        """One call. Never raises for an answer that is an error."""
        body, size = self._made.pop() if self._made else self._next(intended_s)
        self.calls += 1
        self.last_call_s = time.time()
        try:
            answer = await self._method(body, timeout=self._load.timeout_s)
        except grpc.aio.AioRpcError as error:
            self.errors[error.code().name] += size
        else:
            self._take(answer)
        now_s = self.last_answer_s = time.time()
        self.latencies_us.append(int((now_s - intended_s) * 1e6))
        self.per_bucket[int((now_s - self.began_s) / BUCKET_S)] += size

    def _take(self, answer: bytes) -> None:
        if not self._load.batch:
            self.states[_state(issuer_pb2.Issuance.FromString(answer).state)] += 1
            return
        for result in issuer_pb2.BatchIssueCouponsResponse.FromString(answer).results:
            if result.HasField("issuance"):
                self.states[_state(result.issuance.state)] += 1
            else:
                self.errors[code_pb2.Code.Name(result.error.code)] += 1

    def _next(self, intended_s: float) -> tuple[bytes, int]:
        load = self._load
        stamp = f"-{int(intended_s * 1e6)}" if load.stamped else ""
        if load.batch:
            requests = [self._request(str(uuid.uuid4()), stamp) for _ in range(load.batch)]
            return issuer_pb2.BatchIssueCouponsRequest(requests=requests).SerializeToString(), load.batch
        return self._request("", stamp).SerializeToString(), 1

    def _request(self, request_id: str, stamp: str) -> issuer_pb2.IssueCouponRequest:
        load, number = self._load, self._requests
        self._requests += 1
        coupon = load.coupon if load.coupons == 1 else f"{load.coupon}-{number % load.coupons}"
        user = number % load.user_pool if load.user_pool else number
        user_id = f"{load.user_prefix}-{user:08d}{stamp}"
        if load.scattered:
            user_id = f"{zlib.crc32(user_id.encode()):08x}-{user_id}"
        return issuer_pb2.IssueCouponRequest(
            coupon=coupon,
            user_id=user_id,
            request_id=request_id,
            wait=load.wait,
        )


def _state(number: int) -> str:
    return _STATES[number]


_STATES = {value: name for name, value in issuer_pb2.Issuance.State.items()}


def arrivals_s(rate_per_s: float, seconds: float, seed: str) -> Iterator[float]:
    """When calls are to leave, in seconds from the beginning: at random, independent of each other (Poisson)."""
    draw, at_s = random.Random(seed), 0.0
    while (at_s := at_s + draw.expovariate(rate_per_s)) < seconds:
        yield at_s


async def _by_schedule(caller: _Caller, load: Load) -> None:
    in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def call(intended_s: float) -> None:
        try:
            await caller.call(intended_s)
        finally:
            in_flight.release()

    async with asyncio.TaskGroup() as calls:
        for at_s in arrivals_s(load.rate_per_s, load.seconds, load.user_prefix):
            intended_s = caller.began_s + at_s
            if (early_s := intended_s - time.time()) > 0:
                await asyncio.sleep(max(early_s, TICK_S))
            await in_flight.acquire()
            calls.create_task(call(intended_s))


async def _by_callers(caller: _Caller, load: Load) -> None:
    ends_s = caller.began_s + load.seconds if load.seconds else float("inf")
    calls_max = load.calls or sys.maxsize

    async def call_on() -> None:
        while caller.calls < calls_max and (now_s := time.time()) < ends_s:
            await caller.call(now_s)

    await asyncio.gather(*(call_on() for _ in range(load.callers)))


async def main() -> None:
    """Read, prepare, wait, call, tell."""
    load = Load(**json.loads(sys.stdin.readline()))
    channel = grpc.aio.insecure_channel(load.address, options=_OPTIONS)
    caller = _Caller(load, channel)
    try:
        caller.make_ready(load.calls)
        await channel.channel_ready()
        print("ready", flush=True)
        caller.began_s = float(sys.stdin.readline())
        await asyncio.sleep(caller.began_s - time.time())
        gc.disable()  # a stop of the callers must not look like one of what they call
        cpu_s = _cpu_s()
        await (_by_schedule(caller, load) if load.rate_per_s else _by_callers(caller, load))
        cpu_s = _cpu_s() - cpu_s
    finally:
        await channel.close()
    histogram = HdrHistogram(1, LATENCY_US_MAX, SIGNIFICANT_DIGITS)
    for latency_us in caller.latencies_us:
        histogram.record_value(min(max(latency_us, 1), LATENCY_US_MAX))
    seen = Seen(
        calls=caller.calls,
        states=dict(caller.states),
        errors=dict(caller.errors),
        latencies=histogram.encode().decode(),
        per_bucket=dict(caller.per_bucket),
        first_call_s=caller.began_s,
        last_call_s=caller.last_call_s,
        last_answer_s=caller.last_answer_s,
        cpu_s=cpu_s,
    )
    print(json.dumps(asdict(seen)), flush=True)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    uvloop.run(main())
