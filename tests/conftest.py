"""What tests share: real engines for the session, and for each test its own database and topics."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from migrations.database import upgrade
from migrations.topics import ensure_topics
from services.runtime.kafka import Topics
from stack import Link, Stack, free_port

TEST_PARTITIONS = 4

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Of a run in a shell's background. Children would inherit it, and some of them must end by Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
_PATIENCE_S = 60


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Lets a run that is cut off later have said what failed until then."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(_FailuresAtOnce(terminal))


class _FailuresAtOnce:
    """Prints each failure when it happens, and not at the end alone."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.ensure_newline()
            self._terminal.write_line(f"{report.when} of {report.nodeid} failed:")
            self._terminal.write_line(report.longreprtext)


def unique_name(what: str) -> str:
    """A name for a database or a topic prefix that no other test, and no other run, has."""
    return f"{what}_{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and PostgreSQL on free ports (or those that the environment names), for all tests of the session."""
    with Stack.start(kafka_detour_port=free_port()) as running:
        yield running


@pytest.fixture(scope="session")
async def _template(stack: Stack) -> AsyncIterator[str]:
    """The name of a migrated database that each test's database is copied from."""
    name = unique_name("template")
    # The stack's own calls block.
    dsn = await asyncio.to_thread(stack.create_database, name)
    await upgrade(dsn, time.monotonic() + _PATIENCE_S)
    yield name
    await _execute(stack, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
async def empty_database(stack: Stack) -> AsyncIterator[str]:
    """The DSN of a fresh database without tables."""
    name = unique_name("test")
    await _execute(stack, f'CREATE DATABASE "{name}"')
    yield _dsn(stack, name)
    await _execute(stack, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
async def database(stack: Stack, _template: str) -> AsyncIterator[str]:
    """The DSN of a fresh, migrated database."""
    name = unique_name("test")
    await _execute(stack, f'CREATE DATABASE "{name}" TEMPLATE "{_template}"')
    yield _dsn(stack, name)
    await _execute(stack, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
async def empty_topic_prefix(stack: Stack) -> AsyncIterator[str]:
    """A prefix under which there are no topics yet; those that the test makes are deleted."""
    prefix = unique_name("t") + "."
    yield prefix
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        mine = [name for name in await admin.list_topics() if name.startswith(prefix)]
        if mine:
            await admin.delete_topics(mine)
    finally:
        await admin.close()


@pytest.fixture
async def topics(stack: Stack, empty_topic_prefix: str) -> Topics:
    """The three topics, fresh, with TEST_PARTITIONS partitions each."""
    names = Topics(empty_topic_prefix)
    await ensure_topics(
        stack.kafka_bootstrap,
        names,
        partitions=TEST_PARTITIONS,
        replication=1,
        deadline=time.monotonic() + _PATIENCE_S,
    )
    return names


@pytest.fixture
async def link(stack: Stack) -> AsyncIterator[Link]:
    """The session's way to its broker that can go bad."""
    kafka = stack.kafka
    assert kafka.detour_target_port is not None
    async with Link(kafka.detour_target_port, kafka.detour_port) as way:
        yield way


@pytest.fixture
def topic_prefix(topics: Topics) -> str:
    """The prefix of `topics`."""
    return topics.prefix


async def _execute(stack: Stack, statement: str) -> None:
    connection = await asyncpg.connect(stack.postgres_dsn, timeout=10, command_timeout=60)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _dsn(stack: Stack, database: str) -> str:
    return urlsplit(stack.postgres_dsn)._replace(path=f"/{database}").geturl()
