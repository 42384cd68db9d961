"""What all scenarios share: the stack, the collector, the results, and how they are told."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from bench import systems
from bench.callers import Told, run
from bench.lengths import Lengths
from bench.load import Load
from bench.results import Results, Series
from bench.systems import Firstcome, RedisSystem, System
from bench.usage import Memory, between, cpu_s
from stack import Stack
from stack.locations import REPOSITORY
from stack.process import spawn
from stack.services import environment

WATCH_S = 0.1
"""A look is work, too, of the looker and of PostgreSQL: fifty a second cost a twentieth of what is settled."""
LOOKS_A_LAG = 2
KILL_TIMEOUT_S = 5.0
S = TypeVar("S", bound=System)
OUR_SERVICES = ("issuer", "ledger", "dlq")


class Session:
    """One run of the bench."""

    def __init__(self, stack: Stack, lengths: Lengths, results: Results, logs: Path, collector: str) -> None:
        """`collector`: host:port of something that takes spans."""
        self.stack = stack
        self.lengths = lengths
        self.results = results
        self.logs = logs
        self.collector = collector
        self.console = Console(stderr=True, highlight=False)
        self._running: list[System] = []
        self._names = (f"bench_{number}" for number in itertools.count(1))
        self.memory = Memory(self._services)

    @asynccontextmanager
    async def firstcome(
        self, *, telemetry: bool = True, copies: int = 1, names: Sequence[str] = OUR_SERVICES
    ) -> AsyncIterator[Firstcome]:
        """Our system, fresh, tracing 1 % unless told otherwise."""
        collector = self.collector if telemetry else None
        made = systems.firstcome(
            self.stack, next(self._names), self.logs, telemetry=collector, copies=copies, names=names
        )
        async with self._registered(made) as system:
            yield system

    @asynccontextmanager
    async def redis(self, *, batch: int) -> AsyncIterator[RedisSystem]:
        """The Redis system, fresh."""
        made = systems.redis_system(self.stack, next(self._names), self.logs, batch=batch)
        async with self._registered(made) as system:
            yield system

    @asynccontextmanager
    async def _registered(self, made: AbstractAsyncContextManager[S]) -> AsyncIterator[S]:
        async with made as system:
            self._running.append(system)
            try:
                yield system
            finally:
                self._running.remove(system)

    async def check_all(self, systems: Mapping[str, Firstcome]) -> None:
        """`check` of several, at once: a checker uses one core."""
        await asyncio.gather(*(self.check(scenario, system) for scenario, system in systems.items()))

    async def check(self, scenario: str, system: Firstcome, histories: Sequence[Path] = ()) -> None:
        """Run the checker on what the scenario left; a broken promise fails the run."""
        held, said = await system.check(histories=histories)
        self.results.put(**{f"checker_{scenario}": "OK" if held else "FAILED"})
        if not held:
            self.results.fail(f"{scenario}: the checker says:\n{said}")
        self.say(f"  checker: {said}")

    def expect(self, scenario: str, told: Told, *errors: str) -> None:
        """Only these errors may have been answered."""
        other = {name: count for name, count in told.errors.items() if name not in errors}
        if other:
            self.results.fail(f"{scenario}: calls ended with {other}")

    def say(self, text: str) -> None:
        self.console.print(text)

    def _services(self) -> dict[str, int]:
        return {
            f"{system.name} {name}": process.pid
            for system in self._running
            for name, process in system.processes.items()
            if process.running
        }


class Usage:
    """CPU seconds by process between `start` and `stop`."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._before = cpu_s(system.pids())
        self.cpu_s: dict[str, float] = {}

    def stop(self, clients_cpu_s: float = 0.0) -> None:
        self.cpu_s = between(self._before, cpu_s(self._system.pids()))
        if clients_cpu_s:
            self.cpu_s["clients"] = clients_cpu_s

    def servers_us(self, requests: int) -> float:
        """CPU microseconds a request, of all but the clients."""
        return sum(value for name, value in self.cpu_s.items() if name != "clients") * 1e6 / max(requests, 1)

    def by_name_us(self, requests: int) -> dict[str, float]:
        return {name: value * 1e6 / max(requests, 1) for name, value in self.cpu_s.items()}


class Watch:
    """Follows a system while a load runs; an async context manager. The series are over seconds from the beginning."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._looking: asyncio.Task[None] | None = None
        self._over = False
        self._began_s = 0.0
        self.began_with = 0
        self.settled: Series = []
        """How many were settled so far."""
        self.lag: Series = []
        """How many were accepted and not settled."""
        self.last_settled_s = 0.0
        """When the last one was seen to be settled, since the epoch."""

    async def __aenter__(self) -> Watch:
        self.began_with = await self._system.settled()
        self._began_s = self.last_settled_s = time.time()
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True  # not cancelled: a query's connection would be given back while the pool is closed
        if self._looking is not None:
            await asyncio.gather(self._looking, return_exceptions=True)

    async def until_settled(self, count: int | None = None) -> None:
        """Returns when `count` requests since the beginning (all that are accepted) are settled. Raises Unsettled."""
        await self._system.until_settled(None if count is None else self.began_with + count)
        await self._note()

    async def _look(self) -> None:
        for number in itertools.count():
            if self._over:
                return
            done = await self._note()
            if number % LOOKS_A_LAG == 0:
                self.lag.append((time.time() - self._began_s, max(await self._system.accepted() - done, 0)))
            await asyncio.sleep(WATCH_S)

    async def _note(self) -> int:
        done = await self._system.settled()
        now_s = time.time()
        if not self.settled or self.settled[-1][1] != done - self.began_with:
            self.last_settled_s = now_s
        self.settled.append((now_s - self._began_s, done - self.began_with))
        return done


def rates(counts: Series, bucket_s: float = 0.25) -> Series:
    """(seconds, count so far) to (seconds, count a second), over buckets."""
    points: Series = []
    kept_s, kept = counts[0] if counts else (0.0, 0.0)
    for at_s, count in counts:
        if at_s - kept_s >= bucket_s:
            points.append((at_s, (count - kept) / (at_s - kept_s)))
            kept_s, kept = at_s, count
    return points


async def settle(system: System, load: Load, *, processes: int = 2) -> tuple[Told, Watch]:
    """Run the load and wait until all that it put in is settled. Raises Unsettled."""
    async with Watch(system) as watch:
        told = await run(load, processes=processes)
        await watch.until_settled(told.good)
    return told, watch


def settled_per_s(told: Told, watch: Watch) -> float:
    """Requests settled a second, from the first call to the last row."""
    return told.good / max(watch.last_settled_s - told.first_call_s, 1e-9)


@asynccontextmanager
async def program(module: str, *arguments: str, log_path: Path) -> AsyncIterator[None]:
    """A helper program of the bench, killed at the end."""
    child = spawn(
        [sys.executable, "-m", module, *arguments],
        name=module,
        log_path=log_path,
        env=environment({}),
        cwd=REPOSITORY,
    )
    try:
        yield
    finally:
        child.kill(signal.SIGKILL)
        child.wait(KILL_TIMEOUT_S)
