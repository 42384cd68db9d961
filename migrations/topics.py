"""The topics: missing ones are created, existing ones are left as they are and checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from migrations.waiting import MigrationError, NotYet, until
from services.runtime import kafka_security
from services.runtime.kafka import (
    DLQ_ALLOWANCE_BYTES,
    LINE_MESSAGE_BYTES_MAX,
    KafkaAway,
    MissingTopics,
    Topics,
    WrongTopics,
    check_topics,
)

OUTCOMES_RETENTION_MS = 7 * 24 * 60 * 60 * 1000
REQUEST_TIMEOUT_MS = 10_000
# How long a topic that was just created may stay unknown to some broker.
PROPAGATION_TIMEOUT_S = 10

# Too few brokers for the replication factor is among them: they may still be starting.
_TRANSIENT = (
    errors.InvalidReplicationFactorError,
    errors.NotControllerError,
    errors.RequestTimedOutError,
    errors.BrokerNotAvailableError,
)


def settings(topics: Topics, replication: int) -> dict[str, dict[str, str]]:
    """Topic name to the settings that it is created with."""
    every = {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        # One replica may be away and sends with acks=all still succeed, and each is in two logs at least.
        "min.insync.replicas": str(max(1, replication - 1)),
    }
    # Said outright, since a cluster may have other defaults: verdicts follow from the line and the DLQ, whole.
    for_ever = {"retention.ms": "-1", "retention.bytes": "-1"}
    return {
        topics.line: {**every, **for_ever, "max.message.bytes": str(LINE_MESSAGE_BYTES_MAX)},
        # A dead letter is its record with headers added.
        topics.dlq: {**every, **for_ever, "max.message.bytes": str(LINE_MESSAGE_BYTES_MAX + DLQ_ALLOWANCE_BYTES)},
        topics.outcomes: {**every, "retention.ms": str(OUTCOMES_RETENTION_MS)},
    }


async def ensure_topics(
    bootstrap: str, topics: Topics, *, partitions: int, replication: int, deadline: float
) -> Sequence[str]:
    """Creates what is missing of the three topics, checks all three, and returns the names of the new ones.

    `partitions` and `replication` concern new topics only. Waits for Kafka up to `deadline` (of time.monotonic()).
    Raises MigrationError, also where an existing topic's settings would break a promise.
    """
    created = await until(deadline, lambda: _create_missing(bootstrap, topics, partitions, replication))
    patient_until = time.monotonic() + PROPAGATION_TIMEOUT_S

    async def check() -> int:
        try:
            return await check_topics(bootstrap, topics)
        except KafkaAway as error:
            raise NotYet(f"Kafka cannot be reached: {error}.") from error
        except WrongTopics as error:
            # A topic that is missing was made by another command a moment ago.
            if (created or isinstance(error, MissingTopics)) and time.monotonic() < patient_until:
                raise NotYet(f"{error}.") from error
            raise MigrationError(f"{error}.") from error

    await until(max(deadline, patient_until), check)
    return created


async def _create_missing(bootstrap: str, topics: Topics, partitions: int, replication: int) -> list[str]:
    admin = AIOKafkaAdminClient(
        bootstrap_servers=bootstrap, request_timeout_ms=REQUEST_TIMEOUT_MS, **kafka_security.arguments()
    )
    try:
        async with asyncio.timeout(2 * REQUEST_TIMEOUT_MS / 1000):
            await admin.start()
            present = set(await admin.list_topics())
            missing = {name: wanted for name, wanted in settings(topics, replication).items() if name not in present}
            if not missing:
                return []
            response = await admin.create_topics(
                [NewTopic(name, partitions, replication, topic_configs=wanted) for name, wanted in missing.items()],
                timeout_ms=REQUEST_TIMEOUT_MS,
            )
    # AttributeError: what aiokafka's admin raises while the cluster has no controller yet.
    except (errors.KafkaError, OSError, TimeoutError, AttributeError) as error:
        raise NotYet(f"Kafka cannot be reached: {type(error).__name__}: {error}.") from error
    finally:
        await admin.close()
    return [name for name, code, message, *_ in response.topic_errors if _is_new(name, code, message, replication)]


def _is_new(name: str, code: int, message: str | None, replication: int) -> bool:
    """Whether this call made the topic; not so if another migration command was faster."""
    error = errors.for_code(code)
    if error is errors.NoError:
        return True
    if error is errors.TopicAlreadyExistsError:
        return False
    said = f"Topic {name} could not be created: {error.__name__}: {message}"
    if error is errors.InvalidReplicationFactorError:
        said += f" Start {replication} brokers, or set FIRSTCOME_TOPIC_REPLICATION to the number that there is."
    if error in _TRANSIENT:
        raise NotYet(said)
    raise MigrationError(said)
