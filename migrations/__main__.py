"""`python -m migrations`: reads the environment, migrates the database, creates missing topics. Exit status 0 or 1."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time

from migrations.database import upgrade
from migrations.settings import Settings, SettingsError, read_settings
from migrations.topics import ensure_topics
from migrations.waiting import MigrationError
from services.runtime import kafka_security
from services.runtime.kafka import Topics
from services.runtime.reload import BadFile


async def migrate(settings: Settings) -> None:
    """Brings database and topics to what this version needs. Raises MigrationError."""
    deadline = time.monotonic() + settings.startup_timeout_s
    revision = await upgrade(settings.postgres_dsn, deadline, settings.roles)
    print(f"database at revision {revision}", flush=True)
    kafka_security.configure(settings.kafka_tls)
    topics = Topics(settings.topic_prefix)
    created = await ensure_topics(
        settings.kafka_bootstrap,
        topics,
        partitions=settings.partitions,
        replication=settings.replication,
        deadline=deadline,
    )
    for name in (topics.line, topics.dlq, topics.outcomes):
        print(f"topic {name} {'created' if name in created else 'was there, its settings are right'}", flush=True)


def main() -> int:
    # Each attempt while Kafka starts would log what the error at the end says once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        asyncio.run(migrate(read_settings(os.environ)))
    except (SettingsError, MigrationError, BadFile) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
