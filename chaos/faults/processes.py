"""Processes that are killed and frozen: each service, the broker, PostgreSQL, and all at once."""

from __future__ import annotations

import asyncio
import random
import signal

from chaos.fault import Fault, Inject, Setup
from chaos.world import World
from demo.garbage import make_garbage, put_garbage
from stack import Engine

STANDSTILL_S_MAX = 10.0
"""With two ledgers, after a kill -9 of one: its session ends after 6 s, then the other takes over."""
FROZEN_S = 9.0
"""Longer than a session: who is frozen wakes as a zombie."""


def _killed(kind: str) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        for number in (0, 1, 0):
            await asyncio.sleep(rng.uniform(0.5, 2.0))
            name = f"{kind}-{number}"
            world.kill(name)
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            await world.start_again(name)

    return inject


async def _dlq_killed(world: World, rng: random.Random) -> None:
    garbage = make_garbage("hot-0", 1, 4) * 5
    putting = asyncio.create_task(put_garbage(world.kafka_bootstrap, world.line, garbage, 6.0))
    for _ in range(3):
        await asyncio.sleep(rng.uniform(0.5, 1.5))
        world.kill("dlq-0")
        await world.start_again("dlq-0")
    await putting


async def _ledger_killed_for_good(world: World, rng: random.Random) -> None:
    await world.at(rng.uniform(1.5, 2.5))
    world.kill("ledger-0")
    await world.at(11.0)


def _frozen(name: str) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        await world.at(rng.uniform(1.0, 3.0))
        world.kill(name, signal_number=signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        world.kill(name, signal_number=signal.SIGCONT)

    return inject


def _engine(world: World, which: str) -> Engine:
    return world.stack.kafka if which == "kafka" else world.stack.postgres


def _engine_ended(which: str, signal_number: int) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        engine = _engine(world, which)
        await world.at(rng.uniform(2.0, 4.0))
        await asyncio.to_thread(engine.kill, signal_number)
        await asyncio.to_thread(engine.stop)  # waits until it is down
        await asyncio.sleep(rng.uniform(0.5, 2.0))
        await asyncio.to_thread(engine.start)
        await asyncio.to_thread(engine.wait_ready)

    return inject


def _engine_frozen(which: str) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        engine = _engine(world, which)
        await world.at(rng.uniform(2.0, 3.0))
        engine.kill(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        engine.kill(signal.SIGCONT)

    return inject


async def _started_as_the_broker_wakes(world: World, rng: random.Random) -> None:
    broker, names = world.stack.kafka, list(world.services)
    await world.at(rng.uniform(1.0, 2.0))
    broker.kill(signal.SIGSTOP)
    world.kill(*names)
    await asyncio.sleep(FROZEN_S)
    starting = asyncio.create_task(world.start_again(*names))
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    broker.kill(signal.SIGCONT)
    await starting


async def _all_killed(world: World, rng: random.Random) -> None:
    await world.at(rng.uniform(2.0, 4.0))
    names = list(world.services)
    world.kill(*names)
    for engine in (world.stack.kafka, world.stack.postgres):
        await asyncio.to_thread(engine.kill)
    await world.engines.mend()
    await world.start_again(*names)


FAULTS = (
    Fault("issuer-killed", "kill -9 of one issuer, then of the other, and again", _killed("issuer")),
    Fault("ledger-killed", "kill -9 of one ledger, then of the other, and again", _killed("ledger")),
    Fault(
        "ledger-killed-for-good",
        f"kill -9 of one of two ledgers: the other takes over, no partition stands still for {STANDSTILL_S_MAX:g} s",
        _ledger_killed_for_good,
        Setup(rush_s=11.0),
        standstill_s_max=STANDSTILL_S_MAX,
    ),
    Fault("dlq-killed", "kill -9 of the dlq while dead letters come", _dlq_killed),
    Fault("issuer-frozen", "SIGSTOP of an issuer, SIGCONT after 9 s", _frozen("issuer-0")),
    Fault("ledger-frozen", "SIGSTOP of a ledger; after 9 s it wakes as a zombie", _frozen("ledger-0")),
    Fault("dlq-frozen", "SIGSTOP of the dlq, SIGCONT after 9 s", _frozen("dlq-0")),
    Fault("broker-killed", "kill -9 of the only broker, then a restart", _engine_ended("kafka", signal.SIGKILL)),
    Fault("broker-frozen", "SIGSTOP of the only broker, SIGCONT after 9 s", _engine_frozen("kafka")),
    Fault("broker-wakes", "all services killed while it is frozen, started as it wakes", _started_as_the_broker_wakes),
    Fault("postgres-stopped", "immediate stop of PostgreSQL, then a restart", _engine_ended("pg", signal.SIGQUIT)),
    Fault("postgres-killed", "kill -9 of PostgreSQL, then a restart", _engine_ended("pg", signal.SIGKILL)),
    Fault("postgres-frozen", "SIGSTOP of PostgreSQL, SIGCONT after 9 s", _engine_frozen("pg")),
    Fault("all-killed", "kill -9 of everything at once: services, broker, PostgreSQL", _all_killed),
)
