"""The issuer while Kafka, PostgreSQL or the ledger is away, over the wire."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import asyncpg
import grpc
import pytest

from services.runtime.kafka import KafkaAway, RecordProducer, Topics
from stack import Link, Stack, StackError
from tests.contract.issuing import (
    Coupon,
    Failure,
    Issuance,
    Issuer,
    System,
    eventually,
    new_id,
    refused,
    request_id,
    shape,
)


@pytest.fixture
async def fresh(stack: Stack, database: str, topics: Topics) -> AsyncIterator[System]:
    made = System(stack, database, topics)
    yield made
    await made.close()


async def test_a_database_that_is_away(fresh: System) -> None:
    coupon_id, mine = new_id(), request_id()
    async with (
        Link.to_postgres(fresh.dsn) as way,
        fresh.ledger(),
        fresh.issuer(FIRSTCOME_POSTGRES_DSN=way.dsn(fresh.dsn)) as client,
    ):
        await client.create(coupon_id)
        way.go_down()
        before = await fresh.ends()
        away = ("UNAVAILABLE", "DATABASE_UNAVAILABLE", {"RetryInfo"})
        for call in (
            client.issue(coupon_id, "ann", mine),
            client.issue(coupon_id, "ann", mine, wait=True),
            client.pause(coupon_id, mine),
        ):
            failure = await refused(call)
            assert shape(failure) == away
            assert failure.metadata == {"request_id": mine}
        # The request_id is of the service's making: without it the change could not be repeated safely.
        assert (await refused(client.pause(coupon_id))).metadata["request_id"]
        for reading in (
            client.coupon(coupon_id),
            client.get(coupon_id, "ann"),
            client.get(coupon_id, "ann", "0-0"),
        ):
            assert shape(await refused(reading)) == away
        assert await fresh.ends() == before
        way.heal()

        async def issued() -> bool:
            try:
                return bool((await client.issue(coupon_id, "ann", mine, wait=True)).state == Issuance.ISSUED)
            except grpc.aio.AioRpcError:
                return False

        await eventually(issued)
        assert (await client.coupon(coupon_id)).issued_count == 1


async def test_a_log_that_is_away(fresh: System) -> None:
    try:
        broker = fresh.stack.kafka
    except StackError as error:
        pytest.skip(str(error))
    coupon_id, mine, other = new_id(), request_id(), request_id()
    async with fresh.issuer(delivery_timeout_s=4.0) as client:
        async with fresh.ledger():
            await client.create(coupon_id)
            won = await client.issue(coupon_id, "winner", wait=True)
        broker.kill(signal.SIGSTOP)
        try:
            first, second, third = await asyncio.gather(
                refused(client.issue(coupon_id, "ann", mine)),
                refused(client.pause(coupon_id, other)),
                refused(client.issue(coupon_id, "bob", wait=True)),
            )
            answered = await client.get(coupon_id, "winner", won.ticket)
        finally:
            broker.kill(signal.SIGCONT)
        failures: list[Failure] = [first, second, third]
        for failure in failures:
            assert shape(failure) == ("UNAVAILABLE", "KAFKA_UNAVAILABLE", {"RetryInfo"})
        assert (first.metadata, second.metadata) == ({"request_id": mine}, {"request_id": other})
        assert third.metadata["request_id"]
        assert answered.state == Issuance.ISSUED
        assert len(client.tail._waiters) == 0
        # Whether they are in the line is unknown; with the same request_ids it does not matter.
        async with fresh.ledger():

            async def again() -> Any:
                try:
                    return await client.issue(coupon_id, "ann", mine, wait=True)
                except grpc.aio.AioRpcError:
                    return None

            # A pause that got through stands in the line behind ann's request or before it: lift it first.
            await eventually(lambda: _resumed(client, coupon_id))
            granted = await eventually(again)
            assert granted.state == Issuance.ISSUED
            assert (await client.pause(coupon_id, other)).state == Coupon.PAUSED
            rows = await fresh.fetch("SELECT request_id FROM user_coupon WHERE user_id = 'ann'")
            assert [row["request_id"] for row in rows] == [mine]
            assert granted.request_id == mine


async def test_a_log_that_is_away_again_while_the_issuer_starts(fresh: System) -> None:
    coupon_id = new_id()
    with mock.patch.object(RecordProducer, "start", side_effect=KafkaAway("planted")) as connecting:
        async with fresh.issuer() as client, fresh.ledger():
            assert connecting.called
            await client.create(coupon_id)
            assert (await client.issue(coupon_id, "ann", wait=True)).state == Issuance.ISSUED


async def _resumed(client: Issuer, coupon_id: str) -> bool:
    try:
        return bool((await client.resume(coupon_id)).state == Coupon.ACTIVE)
    except grpc.aio.AioRpcError:
        return False


async def test_a_waiting_call_whose_deadline_ends_while_the_database_is_away_is_told_its_place(fresh: System) -> None:
    coupon_id = new_id()
    async with (
        Link.to_postgres(fresh.dsn) as way,
        fresh.issuer(FIRSTCOME_POSTGRES_DSN=way.dsn(fresh.dsn)) as client,
    ):
        async with fresh.ledger():
            await client.create(coupon_id)
        asked = asyncio.ensure_future(client.issue(coupon_id, "ann", wait=True, timeout=3.0))

        async def entered() -> bool:
            return sum(await fresh.ends()) == 2

        await eventually(entered)
        way.go_down()
        answer = await asked
        assert (answer.state, answer.position_in_line) == (Issuance.ACCEPTED, 0)


async def test_a_missing_row_of_progress_is_no_reason_to_fail(fresh: System) -> None:
    """Before any ledger has run there is no progress at all."""
    async with fresh.issuer() as client:
        assert (await refused(client.issue(new_id(), "ann"))).reason == "COUPON_NOT_FOUND"
        assert (await refused(client.get(new_id(), "ann", "0-0"))).reason == "ISSUANCE_NOT_FOUND"
        db = await asyncpg.connect(fresh.dsn)
        assert await db.fetchval("SELECT count(*) FROM ledger_progress") == 0
        await db.close()
