"""What the tests of the ledger share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.ledger import consumer
from services.runtime.kafka import Topics
from stack import Stack
from tests.integration.ledger_world import World


@pytest.fixture
async def world(stack: Stack, database: str, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(consumer, "IDLE_MS", 50)
    made = World(stack, database, topics)
    yield made
    await made.close()
