"""The last release and this one side by side: an upgrade in the middle of a rush, as Kubernetes rolls it out."""

from __future__ import annotations

import asyncio
import io
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from rich.console import Console

from demo.plan import Arrival, Campaign, make_plan
from demo.rush import Answers, Callers
from demo.show import System, show
from services.runtime.schema import REVISION
from stack import Services, Stack
from stack.ports import Ports
from stack.services import migrate
from tests.conftest import TEST_PARTITIONS

ROOT = Path(__file__).parents[2]
PEOPLE = 3_000
STOCK = 300
SIDE_BY_SIDE_S = 1.5
LATE_CALLS = 200
"""That come when the upgrade is over, however long it takes."""


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the last release, from the history."""
    commit = (ROOT / "released" / "VERSION").read_text().strip()
    parts = ("services", "migrations", "protos")
    archive = ["git", "archive", "--format=zip", commit, *parts]
    archived = subprocess.run(archive, cwd=ROOT, capture_output=True, timeout=60)
    if archived.returncode != 0:
        pytest.skip(f"NO UPGRADE WAS TESTED: the history has not got the last release, {commit}: {archived.stderr!r}")
    folder = tmp_path_factory.mktemp("last-release")
    with zipfile.ZipFile(io.BytesIO(archived.stdout)) as packed:
        packed.extractall(folder)
    return folder


async def revision(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval("SELECT version_num FROM alembic_version"))
    finally:
        await connection.close()


async def test_the_last_release_and_this_one_serve_a_rush_together(
    stack: Stack,
    empty_database: str,
    empty_topic_prefix: str,
    last_release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan(4711, (Campaign("up-a", "A", STOCK, 0.6), Campaign("up-b", "B", STOCK, 0.4)), PEOPLE)
    upgraded = asyncio.Event()
    rush_of = Callers.rush

    async def rush_with_late_calls(people: Callers, arrivals: tuple[Arrival, ...]) -> None:
        await rush_of(people, arrivals[:-LATE_CALLS])
        await upgraded.wait()
        await rush_of(people, tuple(replace(call, at_s=0.0) for call in arrivals[-LATE_CALLS:]))

    monkeypatch.setattr(Callers, "rush", rush_with_late_calls)
    where = stack.kafka_bootstrap, empty_database
    old = Services(
        *where, log_dir=tmp_path / "old", partitions=TEST_PARTITIONS, topic_prefix=empty_topic_prefix, root=last_release
    )
    # The issuer is one address for its callers, as it is behind a Service.
    ports = replace(Ports.free(), issuer=old.ports.issuer)
    new = Services(*where, log_dir=tmp_path / "new", topic_prefix=empty_topic_prefix, ports=ports)
    await asyncio.to_thread(old.start)
    assert await revision(empty_database) <= REVISION
    try:
        answers: list[Answers] = []
        system = System(*where, old.issuer_address, TEST_PARTITIONS, empty_topic_prefix, lambda: None)
        rush = asyncio.create_task(show(system, plan, tmp_path / "history.jsonl", answers, Console(file=io.StringIO())))
        await _upgrade(old, new, lambda: migrate(*where, topic_prefix=empty_topic_prefix), answers)
        assert answers[0].answered < len(plan.arrivals), "the rush was over before the upgrade was"
        upgraded.set()
        verdict = await rush
    finally:
        await asyncio.to_thread(old.stop)
        await asyncio.to_thread(new.stop)
    assert verdict.ok, verdict.line
    assert await revision(empty_database) == REVISION


async def _upgrade(old: Services, new: Services, migrate_tables: Callable[[], None], answers: list[Answers]) -> None:
    """First the tables, with the last release at work; then a new pod before an old one leaves, service by service."""
    while not answers or not answers[0].answered:  # noqa: ASYNC110 - the rush sets no event
        await asyncio.sleep(0.05)
    await asyncio.to_thread(migrate_tables)
    for name in ("ledger", "dlq"):
        await asyncio.to_thread(new.processes[name].start)
    for name in ("ledger", "dlq"):
        await asyncio.to_thread(new.processes[name].wait_ready)
    await asyncio.sleep(SIDE_BY_SIDE_S)
    # One port can't be listened on twice here: for a moment there is no issuer, and callers try again.
    assert await asyncio.to_thread(old.processes["issuer"].stop)
    await asyncio.to_thread(new.processes["issuer"].start)
    await asyncio.to_thread(new.processes["issuer"].wait_ready)
    for name in ("ledger", "dlq"):
        assert await asyncio.to_thread(old.processes[name].stop)
