"""Deaths and freezes between every two steps of a batch, by the services' failpoints."""

from __future__ import annotations

import asyncio
import random
import signal

from chaos.fault import Fault, Inject, Setup
from chaos.world import World
from demo.garbage import make_garbage, put_garbage

LEDGER_STEPS = {
    "read": "a batch is read, no transaction begun",
    "fenced": "the compare-and-set is done, nothing decided",
    "decided": "the batch is decided, nothing written",
    "verdicts_written": "verdicts are written, coupons are not",
    "coupons_written": "all is written, not committed",
    "committed": "COMMIT is done, nothing published",
    "dead_letters_published": "dead letters are published, outcomes are not",
    "outcomes_published": "outcomes are published, published_offset has not moved",
    "acknowledged": "published_offset has moved",
}
ISSUER_STEPS = {
    "sending": "requests are looked up, not sent",
    "acknowledged": "the broker has acknowledged, the callers do not know",
}
DLQ_STEPS = {
    "fenced": "the compare-and-set is done, no dead letter stored",
    "filed": "dead letters are stored, not committed",
    "committed": "dead letters are committed",
}
ZOMBIE_STEPS = ("read", "fenced", "verdicts_written", "coupons_written", "committed")
FROZEN_S = 9.0
_SELDOM = {"ledger.acknowledged", "ledger.dead_letters_published"}
"""Places that are not reached with every batch."""


def _garbage(world: World, over_s: float) -> asyncio.Task[None]:
    garbage = [one for partition in range(4) for one in make_garbage("hot-0", partition, 4)] * 2
    random.Random(0).shuffle(garbage)
    return asyncio.create_task(put_garbage(world.kafka_bootstrap, world.line, garbage, over_s))


def _dies(kind: str, count: int) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        putting = _garbage(world, 6.0)
        names = [f"{kind}-{number}" for number in range(count)]
        await asyncio.gather(*(world.until_down(name) for name in names))
        await world.start_again(*names)
        await putting

    return inject


async def _dies_publishing_again(world: World, rng: random.Random) -> None:
    """Each ledger dies as it takes over what another one has left, before it has noted that it published that again."""
    putting = _garbage(world, 6.0)
    await world.at(rng.uniform(2.0, 3.0))
    world.kill("ledger-0", "ledger-1")
    for name in ("ledger-0", "ledger-1", "ledger-0"):
        await world.launch(name, FIRSTCOME_FAILPOINT="ledger.published_again=kill@1")
        await world.until_down(name)
    await world.start_again("ledger-0", "ledger-1")
    await putting


def _wakes(name: str) -> Inject:
    async def inject(world: World, rng: random.Random) -> None:
        putting = _garbage(world, 6.0)
        await world.until_frozen(name)
        await asyncio.sleep(FROZEN_S)
        world.kill(name, signal_number=signal.SIGCONT)
        await putting

    return inject


def _armed(name: str, step: str, act: str, at: int) -> dict[str, dict[str, str]]:
    kind = name.partition("-")[0]
    return {name: {"FIRSTCOME_FAILPOINT": f"{kind}.{step}={act}@{at}"}}


def _deaths(kind: str, steps: dict[str, str], count: int) -> list[Fault]:
    faults = []
    for step, what in steps.items():
        # Several die, at different times: the later one has taken over from the earlier one.
        often = [1, 3] if kind == "dlq" or f"{kind}.{step}" in _SELDOM else [20, 60]
        env = {}
        for number in range(count):
            env.update(_armed(f"{kind}-{number}", step, "kill", often[number]))
        name = f"{kind}-dies-{step.replace('_', '-')}"
        faults.append(Fault(name, f"kill -9 of each {kind} when {what}", _dies(kind, count), Setup(env=env)))
    return faults


def _zombie(step: str) -> Fault:
    return Fault(
        f"ledger-zombie-{step.replace('_', '-')}",
        f"SIGSTOP of a ledger when {LEDGER_STEPS[step]}; it wakes when another has taken over",
        _wakes("ledger-0"),
        Setup(env=_armed("ledger-0", step, "stop", 20)),
    )


FAULTS = (
    *_deaths("ledger", LEDGER_STEPS, 2),
    Fault(
        "ledger-dies-published-again",
        "kill -9 of ledgers when a taken position's outcomes are published again, not acknowledged",
        _dies_publishing_again,
    ),
    *(_zombie(step) for step in ZOMBIE_STEPS),
    *_deaths("issuer", ISSUER_STEPS, 2),
    *_deaths("dlq", DLQ_STEPS, 1),
)
