"""A system for all contract tests, each with coupons of its own; and a fresh one for those that break it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from migrations.topics import ensure_topics
from services.runtime.kafka import Topics
from stack import Stack
from tests.conftest import TEST_PARTITIONS, _dsn, _execute, unique_name
from tests.contract.issuing import PATIENCE_S, Issuer, System


@pytest.fixture(scope="session")
async def system(stack: Stack, _template: str) -> AsyncIterator[System]:
    """Topics, tables and a running ledger."""
    name, topics = unique_name("contract"), Topics(unique_name("contract") + ".")
    await _execute(stack, f'CREATE DATABASE "{name}" TEMPLATE "{_template}"')
    await ensure_topics(
        stack.kafka_bootstrap,
        topics,
        partitions=TEST_PARTITIONS,
        replication=1,
        deadline=time.monotonic() + PATIENCE_S,
    )
    made = System(stack, _dsn(stack, name), topics)
    async with made.ledger():
        yield made
    await made.close()
    await _execute(stack, f'DROP DATABASE "{name}" WITH (FORCE)')
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topics.line, topics.dlq, topics.outcomes])
    finally:
        await admin.close()


@pytest.fixture(scope="session")
async def client(system: System) -> AsyncIterator[Issuer]:
    """An issuer of that system, and its client."""
    async with system.issuer() as running:
        yield running


@pytest.fixture
async def fresh(stack: Stack, database: str, topics: Topics) -> AsyncIterator[System]:
    """Topics and tables of the test's own; it starts the services that it needs."""
    made = System(stack, database, topics)
    yield made
    await made.close()
