"""What these tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.ledger import consumer
from services.runtime.kafka import Topics
from services.runtime.postgres import create_engine
from stack import Stack
from tests.integration.ledger_world import World


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    """A pool of one connection."""
    made = create_engine(database, "test", pool_size=1)
    yield made
    await made.dispose()


@pytest.fixture
async def world(stack: Stack, database: str, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(consumer, "IDLE_MS", 50)
    made = World(stack, database, topics)
    yield made
    await made.close()
