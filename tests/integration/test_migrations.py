"""`python -m migrations` against real PostgreSQL and Kafka."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from migrations import database as migration_database
from migrations.database import ADVISORY_LOCK, newest_revision, upgrade
from migrations.topics import ensure_topics, settings
from migrations.waiting import MigrationError
from services.runtime.kafka import Topics, check_topics
from services.runtime.postgres import DatabaseAway, create_engine
from services.runtime.postgres import connection as pooled
from services.runtime.schema import REVISION, metadata
from stack import Stack

ROOT = Path(__file__).parents[2]
NOWHERE = "127.0.0.1:1"


def soon() -> float:
    return time.monotonic() + 30


def engine_of(dsn: str) -> AsyncEngine:
    return create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)


async def run_command(**variables: str) -> tuple[int, str]:
    """Exit status and everything that `python -m migrations` says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTCOME_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "migrations",
        env=inherited | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"} | variables,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def variables(stack: Stack, dsn: str, prefix: str) -> dict[str, str]:
    return {
        "FIRSTCOME_POSTGRES_DSN": dsn,
        "FIRSTCOME_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
        "FIRSTCOME_TOPIC_PARTITIONS": "4",
        "FIRSTCOME_TOPIC_REPLICATION": "1",
        "FIRSTCOME_TOPIC_PREFIX": prefix,
    }


CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               a.attgenerated, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
        FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
          AND c.relname <> 'alembic_version'""",
    "constraints": """
        SELECT c.relname, k.conname, k.contype, pg_get_constraintdef(k.oid)
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
        WHERE k.connamespace = 'public'::regnamespace AND c.relname <> 'alembic_version'""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    " AND tablename <> 'alembic_version'",
    "relations": """
        SELECT relname, relkind, relpersistence, reloptions, obj_description(oid, 'pg_class')
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'alembic_version%'""",
    "triggers": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
    "functions": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
}


async def catalog(dsn: str) -> dict[str, list[tuple[object, ...]]]:
    """All that PostgreSQL knows of the database's tables, without object ids."""
    connection = await asyncpg.connect(dsn)
    try:
        return {
            what: sorted((tuple(row) for row in await connection.fetch(query)), key=repr)
            for what, query in CATALOG.items()
        }
    finally:
        await connection.close()


async def test_upgrade_from_empty_leaves_no_difference_for_autogenerate(database: str) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": metadata}
        )
        return list(compare_metadata(context, metadata))

    async with engine_of(database).connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_upgrade_from_empty_builds_exactly_what_the_schema_describes(database: str, empty_database: str) -> None:
    async with engine_of(empty_database).begin() as connection:
        await connection.run_sync(metadata.create_all)
    migrated, described = await catalog(database), await catalog(empty_database)
    assert migrated["constraints"]
    for what in CATALOG:
        assert migrated[what] == described[what], what


async def test_the_newest_revision_is_the_one_that_services_ask_for(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        stored = await connection.fetchval("SELECT version_num FROM alembic_version")
    finally:
        await connection.close()
    assert stored == newest_revision() == REVISION


async def test_running_the_command_twice_changes_nothing(
    stack: Stack, empty_database: str, empty_topic_prefix: str
) -> None:
    environment = variables(stack, empty_database, empty_topic_prefix)
    status, said = await run_command(**environment)
    assert status == 0, said
    assert f"database at revision {REVISION}" in said
    assert said.count("created") == 3
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute(
            "INSERT INTO ledger_progress (topic, partition, next_offset, published_offset, dlq_offset)"
            " VALUES ('line', 0, 7, 7, 0)"
        )
        before = await catalog(empty_database)
        status, said = await run_command(**environment)
        assert status == 0, said
        assert "created" not in said
        assert await catalog(empty_database) == before
        assert await connection.fetchval("SELECT next_offset FROM ledger_progress") == 7
    finally:
        await connection.close()


async def test_commands_that_run_at_once_all_succeed(
    stack: Stack, empty_database: str, empty_topic_prefix: str, database: str
) -> None:
    environment = variables(stack, empty_database, empty_topic_prefix)
    runs = await asyncio.gather(*(run_command(**environment) for _ in range(3)))
    assert [status for status, _ in runs] == [0, 0, 0], runs
    assert sum(said.count("created") for _, said in runs) == 3
    assert await catalog(empty_database) == await catalog(database)
    assert await check_topics(stack.kafka_bootstrap, Topics(empty_topic_prefix)) == 4


async def test_a_migration_waits_for_the_one_before_it(empty_database: str) -> None:
    other = await asyncpg.connect(empty_database)
    await other.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
    waiting = asyncio.create_task(upgrade(empty_database, soon()))
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    await other.close()
    assert await waiting == REVISION


async def test_a_migration_that_waits_too_long_says_for_what(empty_database: str) -> None:
    other = await asyncpg.connect(empty_database)
    try:
        await other.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
        with pytest.raises(MigrationError, match="Another migration command is at work"):
            await upgrade(empty_database, time.monotonic() + 0.3)
    finally:
        await other.close()


async def test_a_failed_migration_leaves_no_trace(empty_database: str) -> None:
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute("CREATE TABLE replay_job (id text)")
        before = await catalog(empty_database)
        with pytest.raises(MigrationError, match=r"nothing was changed.*replay_job"):
            await upgrade(empty_database, soon())
        assert await catalog(empty_database) == before
    finally:
        await connection.close()


async def test_a_migration_that_waits_for_a_lock_holds_nobody_up_for_long(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_database, "LOCK_TIMEOUT_S", 0.3)
    await upgrade_to(empty_database, "0001")
    reader, other = await asyncpg.connect(empty_database), await asyncpg.connect(empty_database)
    try:
        reading = reader.transaction()
        await reading.start()
        await reader.fetchval("SELECT count(*) FROM dead_letter")
        migrating = asyncio.create_task(upgrade(empty_database, soon()))
        await until_somebody_waits_for_a_lock(other)
        # Behind the migration in the queue for the table: it gets its turn although the first reader is still there.
        assert await other.fetchval("SELECT count(*) FROM dead_letter", timeout=10) == 0
        assert not migrating.done()
        await reading.rollback()
        assert await migrating == REVISION
    finally:
        await reader.close()
        await other.close()


async def test_a_statement_that_takes_too_long_undoes_the_migration(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rest(config: Config, revision: str) -> None:
        connection: sa.Connection = config.attributes["connection"]
        connection.exec_driver_sql("CREATE TABLE half_done ()")
        connection.exec_driver_sql("SELECT pg_sleep(20)")

    monkeypatch.setattr(migration_database, "STATEMENT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("migrations.database.command.upgrade", rest)
    before = await catalog(empty_database)
    with pytest.raises(MigrationError, match=r"nothing was changed.*statement timeout"):
        await upgrade(empty_database, soon())
    assert await catalog(empty_database) == before


async def test_a_service_goes_on_when_a_migration_changes_what_its_statements_return(database: str) -> None:
    engine = create_engine(database, "test", pool_size=1)
    admin = await asyncpg.connect(database)

    async def read() -> list[str]:
        async with pooled(engine) as connection, connection.transaction():
            (row,) = await connection.fetch("SELECT * FROM alembic_version")
            return list(row.keys())

    try:
        assert await read() == ["version_num"]
        await admin.execute("ALTER TABLE alembic_version ADD COLUMN remark text")
        # To be tried again like any other short absence, and then it works.
        with pytest.raises(DatabaseAway):
            await read()
        assert await read() == ["version_num", "remark"]
    finally:
        await admin.close()
        await engine.dispose()


_WAITING = """
SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
WHERE datname = current_database() AND NOT granted"""


async def upgrade_to(dsn: str, revision: str) -> None:
    async with engine_of(dsn).begin() as connection:
        await connection.run_sync(lambda held: command.upgrade(migration_database._config(held), revision))


async def until_somebody_waits_for_a_lock(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(10):
        while not await connection.fetchval(_WAITING):  # noqa: ASYNC110 - PostgreSQL tells nobody
            await asyncio.sleep(0.01)


async def test_a_database_of_a_newer_version_is_refused(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    finally:
        await connection.close()
    with pytest.raises(MigrationError, match="newer version"):
        await upgrade(database, soon())


async def test_a_database_that_does_not_exist_is_named(stack: Stack) -> None:
    with pytest.raises(MigrationError, match='"no_such_database" does not exist'):
        await upgrade(stack.postgres_dsn.rpartition("/")[0] + "/no_such_database", soon())


async def test_created_topics_have_the_settings_that_the_promises_need(stack: Stack, topics: Topics) -> None:
    actual = await topic_settings(stack, [topics.line, topics.dlq, topics.outcomes])
    forever = {"retention.ms": "-1", "retention.bytes": "-1"}
    every = {"message.timestamp.type": "LogAppendTime", "min.insync.replicas": "1", "cleanup.policy": "delete"}
    expected: dict[str, dict[str, str]] = {
        topics.line: every | forever | {"max.message.bytes": "1048576"},
        topics.dlq: every | forever | {"max.message.bytes": "1114112"},
        topics.outcomes: every | {"retention.ms": "604800000"},
    }
    for name, wanted in expected.items():
        assert {key: actual[name][key] for key in wanted} == wanted, name
    assert await check_topics(stack.kafka_bootstrap, topics) == 4


@pytest.mark.parametrize(("replication", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "4")])
def test_all_but_one_replica_must_have_a_record(replication: int, in_sync: str) -> None:
    assert {wanted["min.insync.replicas"] for wanted in settings(Topics(), replication).values()} == {in_sync}


async def test_an_existing_topic_is_left_as_it_is(stack: Stack, empty_topic_prefix: str) -> None:
    names = Topics(empty_topic_prefix)
    await create_topic(stack, names.outcomes, 2, {"retention.ms": "12345"})
    created = await ensure_topics(stack.kafka_bootstrap, names, partitions=2, replication=1, deadline=soon())
    assert sorted(created) == [names.line, names.dlq]
    assert (await topic_settings(stack, [names.outcomes]))[names.outcomes]["retention.ms"] == "12345"


async def test_topics_that_another_command_makes_meanwhile_are_waited_for(
    stack: Stack, empty_topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Topics(empty_topic_prefix)
    for name, wanted in settings(names, 1).items():
        await create_topic(stack, name, 4, wanted)
    list_topics, looks = AIOKafkaAdminClient.list_topics, []

    async def list_late(admin: AIOKafkaAdminClient) -> list[str]:
        """As from a broker that has not heard of them yet: before they are made, and when they are checked."""
        looks.append(admin)
        return [] if len(looks) <= 2 else list(await list_topics(admin))

    monkeypatch.setattr(AIOKafkaAdminClient, "list_topics", list_late)
    assert await ensure_topics(stack.kafka_bootstrap, names, partitions=4, replication=1, deadline=soon()) == []
    assert len(looks) == 3


async def test_an_existing_topic_with_wrong_settings_is_refused_with_what_to_change(
    stack: Stack, empty_database: str, empty_topic_prefix: str
) -> None:
    names = Topics(empty_topic_prefix)
    await create_topic(stack, names.line, 4, {"retention.ms": "1000", "message.timestamp.type": "CreateTime"})
    await create_topic(stack, names.dlq, 4, settings(names, 1)[names.dlq])
    await create_topic(stack, names.outcomes, 4, settings(names, 1)[names.outcomes])
    status, said = await run_command(**variables(stack, empty_database, empty_topic_prefix))
    assert status == 1
    assert f"topic {names.line} has retention.ms=1000: set it to -1" in said
    assert "set it to LogAppendTime" in said
    assert "Traceback" not in said
    assert (await topic_settings(stack, [names.line]))[names.line]["retention.ms"] == "1000"


async def test_topics_with_differing_partition_counts_are_refused(stack: Stack, empty_topic_prefix: str) -> None:
    names = Topics(empty_topic_prefix)
    for name, count in ((names.line, 4), (names.dlq, 3), (names.outcomes, 4)):
        await create_topic(stack, name, count, settings(names, 1)[name])
    with pytest.raises(MigrationError, match="partition counts differ"):
        await ensure_topics(stack.kafka_bootstrap, names, partitions=4, replication=1, deadline=soon())


async def test_more_replicas_than_brokers_is_refused_with_what_to_change(stack: Stack, empty_topic_prefix: str) -> None:
    with pytest.raises(MigrationError, match="FIRSTCOME_TOPIC_REPLICATION"):
        await ensure_topics(
            stack.kafka_bootstrap,
            Topics(empty_topic_prefix),
            partitions=1,
            replication=30,
            deadline=time.monotonic() + 0.5,
        )


async def test_every_bad_variable_is_named_at_once() -> None:
    status, said = await run_command(
        FIRSTCOME_POSTGRES_DSN="mysql://user:hunter2@host/db",
        FIRSTCOME_TOPIC_PARTITIONS="none",
        FIRSTCOME_TOPIC_REPLICATION="0",
        FIRSTCOME_TOPIC_PREFIX="a/b",
        FIRSTCOME_STARTUP_TIMEOUT_S="nan",
    )
    assert status == 1
    for name in ("POSTGRES_DSN", "KAFKA_BOOTSTRAP", "TOPIC_PARTITIONS", "TOPIC_REPLICATION", "TOPIC_PREFIX"):
        assert f"FIRSTCOME_{name} " in said
    assert "FIRSTCOME_STARTUP_TIMEOUT_S " in said
    assert "hunter2" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("away", ["PostgreSQL", "Kafka"])
async def test_a_server_that_does_not_answer_ends_the_command_in_time(
    stack: Stack, empty_database: str, empty_topic_prefix: str, away: str
) -> None:
    environment: Mapping[str, str] = (
        variables(stack, empty_database, empty_topic_prefix)
        | {
            "PostgreSQL": {"FIRSTCOME_POSTGRES_DSN": f"postgresql://user@{NOWHERE}/db"},
            "Kafka": {"FIRSTCOME_KAFKA_BOOTSTRAP": NOWHERE},
        }[away]
    )
    begin = time.monotonic()
    status, said = await run_command(**environment, FIRSTCOME_STARTUP_TIMEOUT_S="1")
    assert status == 1
    assert f"{away} cannot be reached" in said
    assert "Traceback" not in said
    assert time.monotonic() - begin < 20


async def create_topic(stack: Stack, name: str, partitions: int, wanted: Mapping[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        response = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=dict(wanted))])
        assert [error[1] for error in response.topic_errors] == [0]
        deadline = soon()
        while name not in await admin.list_topics():  # the broker hears of it from the controller a moment later
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    finally:
        await admin.close()


async def topic_settings(stack: Stack, names: list[str]) -> dict[str, dict[str, str]]:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    finally:
        await admin.close()
    return {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for response in responses
        for resource in response.resources
    }
