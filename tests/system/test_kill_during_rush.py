"""kill -9 of a service in the middle of a rush, then a restart: the same verification as the demo's passes."""

from __future__ import annotations

import asyncio
import io
import signal
from pathlib import Path

import pytest
from rich.console import Console

from demo.plan import Campaign, make_plan
from demo.rush import Answers
from demo.show import System, show
from services.runtime.kafka import Topics
from stack import Services, Stack
from tests.conftest import TEST_PARTITIONS

PEOPLE = 3_000
STOCK = 300
KILLS = 3
BETWEEN_KILLS_S = 1.5


@pytest.mark.parametrize("victim", ["issuer", "ledger", "dlq"])
async def test_the_promises_hold_when_a_service_is_killed_in_mid_rush(
    stack: Stack, database: str, topics: Topics, tmp_path: Path, victim: str
) -> None:
    campaigns = (Campaign("kill-a", "A", STOCK, 0.6), Campaign("kill-b", "B", STOCK, 0.4))
    plan = make_plan(4711, campaigns, PEOPLE)
    services = Services(
        stack.kafka_bootstrap, database, log_dir=tmp_path, partitions=TEST_PARTITIONS, topic_prefix=topics.prefix
    )
    await asyncio.to_thread(services.start)
    try:
        answers: list[Answers] = []
        # Here services end on purpose: nobody is told of it.
        system = System(
            stack.kafka_bootstrap, database, services.issuer_address, TEST_PARTITIONS, topics.prefix, lambda: None
        )
        screen = Console(file=io.StringIO())
        rush = asyncio.create_task(show(system, plan, tmp_path / "history.jsonl", answers, screen))
        killer = asyncio.create_task(_kill_again_and_again(services, victim, answers))
        verdict = await rush
        await killer
    finally:
        await asyncio.to_thread(services.stop)
    assert verdict.ok, verdict.line


async def _kill_again_and_again(services: Services, victim: str, answers: list[Answers]) -> None:
    while not answers or not answers[0].answered:  # noqa: ASYNC110 - the rush sets no event
        await asyncio.sleep(0.05)
    process = services.processes[victim]
    for _ in range(KILLS):
        await asyncio.sleep(BETWEEN_KILLS_S)
        await asyncio.to_thread(process.kill, signal.SIGKILL)
        await asyncio.to_thread(process.start)
        await asyncio.to_thread(process.wait_ready)
