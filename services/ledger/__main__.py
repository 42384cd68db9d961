"""Wires the ledger together."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from dataclasses import replace

from services.ledger.books import Books
from services.ledger.consumer import PartitionLedger
from services.ledger.rebuild import rebuild
from services.ledger.state_hash import state_hash
from services.ledger.store import LedgerStore
from services.runtime import lifecycle, metrics, postgres, predecessor
from services.runtime.config import LedgerConfig, ledger_config
from services.runtime.health import Health
from services.runtime.kafka import PartitionReader, RecordProducer, Topics
from services.runtime.partitions import PartitionWorkers
from services.runtime.postgres import create_engine

GROUP = "ledger"


async def serve(config: LedgerConfig, stopping: asyncio.Event) -> None:
    common = config.common
    topics = Topics(common.topic_prefix)
    health = Health()
    engine = create_engine(common.postgres_dsn, "firstcome-ledger", pool_size=common.pool_size)
    producer = RecordProducer(common.kafka_bootstrap, "ledger")
    sampler = metrics.sampler()
    sampler.add(lambda: postgres.observe(engine))
    metrics.PARKED_RUN_MAX.set(config.dead_letter_run_max)
    await health.start(common.health_listen)
    try:
        partition_count = await lifecycle.wait_for_dependencies(common, engine, stopping)
        store = LedgerStore(engine, topics.line, partition_count)

        def reader(topic: str, partition: int) -> PartitionReader:
            return PartitionReader(common.kafka_bootstrap, "ledger", topic, partition)

        def ledger(partition: int) -> PartitionLedger:
            readers = reader(topics.line, partition), reader(topics.dlq, partition)
            return PartitionLedger(partition, topics, *readers, producer, store, config.dead_letter_run_max)

        await health.set("", serving=True)
        group = f"{common.topic_prefix}{GROUP}"
        place = predecessor.place("ledger", common.metrics_listen)
        workers = PartitionWorkers(common.kafka_bootstrap, "ledger", group, topics.line, ledger, health, place)
        sampler.add(workers.observe)
        sampler.start(Books(engine).run())
        await workers.run(stopping)
    finally:
        await health.leave()
        await sampler.stop()
        await producer.stop()
        await engine.dispose()
        await health.stop()


COMMANDS = {"serve": serve, "rebuild": rebuild, "state-hash": state_hash}


def main() -> None:
    parser = argparse.ArgumentParser("python -m services.ledger", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = """serve: settle the line (what is done without a command)
rebuild: fill an empty, migrated database from Kafka alone; goes on where one was stopped
state-hash: print a hash of the books, the same for the same verdicts"""
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="serve")
    command = parser.parse_args().command

    def read_config(environ: Mapping[str, str]) -> LedgerConfig:
        config = ledger_config(environ)
        if command == "serve":
            return config
        # A command may run beside a ledger, whose port for metrics it must not want.
        return replace(config, common=replace(config.common, metrics_listen=None))

    lifecycle.main("ledger", read_config, lambda config: config.common, COMMANDS[command])


if __name__ == "__main__":
    main()
