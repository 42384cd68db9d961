"""Several client processes at once, and what they saw together."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from hdrh.histogram import HdrHistogram

from bench.load import BUCKET_S, LATENCY_US_MAX, SIGNIFICANT_DIGITS, Load, Seen

START_DELAY_S = 0.1
"""From the last "ready" to the beginning."""
READY_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 90.0
"""How long a process may take beyond the length of its load."""
_LINE_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Told:
    """What the callers of one load saw. Seconds since the epoch; `states` and `errors` count requests."""

    calls: int
    states: Counter[str]
    errors: Counter[str]
    latencies: HdrHistogram
    per_bucket: Counter[int]
    first_call_s: float
    last_call_s: float
    last_answer_s: float
    cpu_s: float

    @property
    def requests(self) -> int:
        return self.states.total() + self.errors.total()

    @property
    def good(self) -> int:
        """Accepted or issued."""
        return self.states.total()

    @property
    def per_s(self) -> float:
        """Requests answered a second, from the first call to the last answer."""
        return self.requests / max(self.last_answer_s - self.first_call_s, 1e-9)

    def ms(self, percentile: float) -> float:
        """Latency from the intended time, at a percentile."""
        return float(self.latencies.get_value_at_percentile(percentile)) / 1000

    def rates(self) -> list[tuple[float, float]]:
        """Requests answered a second, over seconds from the first call."""
        last = max(self.per_bucket, default=0)
        return [(bucket * BUCKET_S, self.per_bucket[bucket] / BUCKET_S) for bucket in range(last + 1)]


async def run(load: Load, *, processes: int = 2) -> Told:
    """Share the load among so many processes."""
    return await run_all([part_of(load, number, processes) for number in range(processes)])


def part_of(load: Load, number: int, processes: int) -> Load:
    """One process's share; its users are its own."""
    return replace(
        load,
        user_prefix=f"{load.user_prefix}{number}",
        rate_per_s=load.rate_per_s / processes,
        callers=-(-load.callers // processes),
        calls=load.calls // processes,
        user_pool=load.user_pool // processes,
    )


async def run_all(loads: Sequence[Load]) -> Told:
    """A process for each load, beginning together. Raises RuntimeError if one of them fails."""
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.load",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
        )
        for _ in loads
    ]
    try:
        for child, load in zip(children, loads, strict=True):
            await _tell(child, json.dumps(asdict(load)))
        for child in children:
            await _hear(child, READY_TIMEOUT_S)
        begin_s = time.time() + START_DELAY_S
        for child in children:
            await _tell(child, repr(begin_s))
        longest_s = max(load.seconds + load.timeout_s for load in loads) + ANSWER_TIMEOUT_S
        seen = [Seen(**json.loads(await _hear(child, longest_s))) for child in children]
        for child in children:
            await child.wait()
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
                await child.wait()
    return _together(seen)


async def _tell(child: asyncio.subprocess.Process, line: str) -> None:
    if child.stdin is None:
        raise RuntimeError("a client process has no stdin")
    child.stdin.write(line.encode() + b"\n")
    await child.stdin.drain()


async def _hear(child: asyncio.subprocess.Process, timeout_s: float) -> str:
    if child.stdout is None:
        raise RuntimeError("a client process has no stdout")
    line = await asyncio.wait_for(child.stdout.readline(), timeout_s)
    if not line:
        raise RuntimeError(f"a client process ended early (status {await child.wait()})")
    return line.decode().strip()


def _together(seen: Sequence[Seen]) -> Told:
    latencies = HdrHistogram(1, LATENCY_US_MAX, SIGNIFICANT_DIGITS)
    states, errors, per_bucket = Counter[str](), Counter[str](), Counter[int]()
    for one in seen:
        latencies.decode_and_add(one.latencies)
        states.update(one.states)
        errors.update(one.errors)
        per_bucket.update({int(bucket): count for bucket, count in one.per_bucket.items()})
    return Told(
        calls=sum(one.calls for one in seen),
        states=states,
        errors=errors,
        latencies=latencies,
        per_bucket=per_bucket,
        first_call_s=min(one.first_call_s for one in seen),
        last_call_s=max(one.last_call_s for one in seen),
        last_answer_s=max(one.last_answer_s for one in seen),
        cpu_s=sum(one.cpu_s for one in seen),
    )
