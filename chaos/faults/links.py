"""Ways to Kafka and PostgreSQL that are slow, sliced, silent or cut, for all services or for one."""

from __future__ import annotations

import asyncio
import random

from chaos.fault import Fault, Inject, Setup
from chaos.world import World
from stack import Link

ALL = frozenset({"issuer", "ledger", "dlq"})
BAD_S = 7.0
SILENT_S = 13.0
"""Longer than an append may take, so that batches expire in the producers."""
DELAY_S = 0.15
SLICE_BYTES = 16
CUTS = 6


def _bad(which: str, seconds: float, **settings: float) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        await world.at(rng.uniform(1.0, 2.0))
        link = _link(world, which)
        for name, value in settings.items():
            setattr(link, name, value)
        await asyncio.sleep(seconds)
        link.heal()

    return inject


def _cut(which: str) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        link = _link(world, which)
        for _ in range(CUTS):
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            link.cut()
        link.go_down()
        await asyncio.sleep(2.0)
        link.heal()

    return inject


def _commit_cut(setting: str) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        link = world.postgres_link
        before = link.cut_count
        for _ in range(CUTS):
            await asyncio.sleep(rng.uniform(0.3, 1.0))
            setattr(link, setting, 1)
        await world.at(8.0)
        setattr(link, setting, 0)
        world.note(f"{link.cut_count - before} cuts")
        world.require(link.cut_count > before, "no COMMIT was cut")

    return inject


async def _island(world: World, rng: random.Random) -> None:
    await world.at(rng.uniform(1.0, 2.0))
    world.kafka_link.silent = world.postgres_link.silent = True
    await asyncio.sleep(SILENT_S)
    world.kafka_link.heal()
    world.postgres_link.heal()


def _link(world: World, which: str) -> Link:
    return world.kafka_link if which == "kafka" else world.postgres_link


def _fault(which: str, how: str, what: str, inject: Inject, *, only: frozenset[str] = ALL) -> Fault:
    setup = Setup(kafka_by_link=only) if which == "kafka" else Setup(postgres_by_link=only)
    return Fault(f"{which}-{how}", what, inject, setup)


def _of(which: str, server: str) -> list[Fault]:
    slow = _bad(which, BAD_S, delay_s=DELAY_S)
    sliced = _bad(which, BAD_S, slice_bytes=SLICE_BYTES)
    silent = _bad(which, SILENT_S, silent=True)
    return [
        _fault(which, "slow", f"each piece of data from and to {server} takes {DELAY_S:g} s longer", slow),
        _fault(which, "sliced", f"data from and to {server} come in pieces of {SLICE_BYTES} bytes", sliced),
        _fault(which, "silent", f"for {SILENT_S:g} s nothing gets through to {server} or back", silent),
        _fault(which, "cut", f"connections to {server} are cut again and again, then refused", _cut(which)),
    ]


_LEDGERS = Setup(postgres_by_link=frozenset({"ledger", "dlq"}))
FAULTS = (
    *_of("kafka", "Kafka"),
    *_of("postgres", "PostgreSQL"),
    Fault(
        "commit-lost",
        "the ledgers' connection is cut before COMMIT gets through",
        _commit_cut("cuts_before_commit"),
        _LEDGERS,
    ),
    Fault(
        "commit-unknown",
        "the ledgers' connection is cut before COMMIT's answer comes back",
        _commit_cut("cuts_after_commit"),
        _LEDGERS,
    ),
    Fault(
        "ledger-without-kafka",
        "one ledger loses Kafka, not PostgreSQL: a zombie that could still write",
        _bad("kafka", SILENT_S, silent=True),
        Setup(kafka_by_link=frozenset({"ledger-0"}), rush_s=14.0),
    ),
    Fault(
        "issuer-cut-off",
        "one issuer loses Kafka and PostgreSQL, the other does not",
        _island,
        Setup(kafka_by_link=frozenset({"issuer-0"}), postgres_by_link=frozenset({"issuer-0"})),
    ),
)
