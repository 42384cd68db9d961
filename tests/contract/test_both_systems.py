"""What the Redis system promises as well as ours: the same calls get the same answers from both."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest
from coupon.v1 import issuer_pb2

from baseline import api, scheduler
from baseline.config import Config
from stack import Stack, free_port
from stack.redis import Redis
from tests.conftest import _dsn, _execute, unique_name
from tests.contract.issuing import (
    PATIENCE_S,
    SERVING,
    Client,
    Issuance,
    Issuer,
    eventually,
    failure_of,
    health_of,
    new_id,
    refused,
    request_id,
    shape,
)


@pytest.fixture(scope="session")
async def redis_system(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Config]:
    """The Redis system inside this process; its settings."""
    redis = Redis(tmp_path_factory.mktemp("redis"), free_port())
    redis.prepare()
    redis.start()
    await asyncio.to_thread(redis.wait_ready)
    name = unique_name("baseline")
    await _execute(stack, f'CREATE DATABASE "{name}"')
    listen, health = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    config = Config(redis.address, _dsn(stack, name), listen, health, batch=10, period_s=0.02)
    stopping = asyncio.Event()
    running = [asyncio.ensure_future(part.serve(config, stopping)) for part in (api, scheduler)]

    async def serving() -> bool:
        return bool(await health_of(listen) == SERVING and await health_of(health) == SERVING)

    try:
        await eventually(serving)
        yield config
    finally:
        stopping.set()
        await asyncio.wait_for(asyncio.gather(*running), PATIENCE_S)
        redis.stop()
        await _execute(stack, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
async def redis_client(redis_system: Config) -> AsyncIterator[Client]:
    client = Client(redis_system.listen)
    yield client
    await client.channel.close()


@pytest.fixture(params=["firstcome", "baseline"])
def either(request: pytest.FixtureRequest, client: Issuer, redis_client: Client) -> Client:
    return client if request.param == "firstcome" else redis_client


def asked(coupon_id: str, user_id: str) -> issuer_pb2.IssueCouponRequest:
    return issuer_pb2.IssueCouponRequest(coupon=f"coupons/{coupon_id}", user_id=user_id, wait=True)


async def test_whoever_comes_in_time_is_granted_and_stored(either: Client) -> None:
    coupon_id, mine = new_id(), request_id()
    await either.create(coupon_id, 2)
    answers = [await either.issue(coupon_id, "ann", mine, wait=True), await either.issue(coupon_id, "bob", wait=True)]
    assert [(one.state, one.sequence) for one in answers] == [(Issuance.ISSUED, 1), (Issuance.ISSUED, 2)]
    assert (answers[0].name, answers[0].coupon) == (f"coupons/{coupon_id}/issuances/ann", f"coupons/{coupon_id}")
    assert (answers[0].user_id, answers[0].request_id) == ("ann", mine)
    assert str(uuid.UUID(answers[1].request_id)) == answers[1].request_id

    async def stored() -> Issuance | None:
        try:
            return await either.get(coupon_id, "ann")  # type: ignore[no-any-return]
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return None

    kept = await eventually(stored)
    assert (kept.state, kept.sequence, kept.request_id, kept.name) == (Issuance.ISSUED, 1, mine, answers[0].name)


async def test_a_second_request_of_a_user_is_refused(either: Client) -> None:
    coupon_id = new_id()
    await either.create(coupon_id)
    await either.issue(coupon_id, "ann", wait=True)
    mine = request_id()
    failure = await refused(either.issue(coupon_id, "ann", mine, wait=True))
    assert shape(failure) == ("ALREADY_EXISTS", "ALREADY_ISSUED", {"ResourceInfo"})
    assert failure.resource == f"coupons/{coupon_id}/issuances/ann"
    assert failure.metadata["request_id"] == mine


async def test_of_many_at_once_as_many_are_granted_as_there_is_stock(either: Client) -> None:
    coupon_id = new_id()
    await either.create(coupon_id, 5)
    calls = [either.issue(coupon_id, f"user{number}", wait=True) for number in range(20)]
    told = await asyncio.gather(*calls, return_exceptions=True)
    granted = [one for one in told if isinstance(one, Issuance)]
    assert sorted(one.sequence for one in granted) == [1, 2, 3, 4, 5]
    failure = await refused(either.issue(coupon_id, "late", wait=True))
    assert shape(failure) == ("FAILED_PRECONDITION", "SOLD_OUT", {"PreconditionFailure"})
    assert failure.resource == f"coupons/{coupon_id}"


async def test_an_unknown_coupon(either: Client) -> None:
    coupon_id = new_id()
    failure = await refused(either.issue(coupon_id, "ann", wait=True))
    assert shape(failure) == ("NOT_FOUND", "COUPON_NOT_FOUND", {"ResourceInfo"})
    assert failure.resource == f"coupons/{coupon_id}"


async def test_an_id_can_be_taken_once(either: Client) -> None:
    coupon_id = new_id()
    await either.create(coupon_id)
    assert (await refused(either.create(coupon_id))).reason == "COUPON_EXISTS"


async def test_every_bad_field_is_named(either: Client) -> None:
    failure = await refused(either.issuer.IssueCoupon(issuer_pb2.IssueCouponRequest(coupon="x", request_id="1")))
    assert (failure.code, set(failure.fields)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        {"coupon", "user_id", "request_id"},
    )
    assert (await refused(either.batch([]))).fields == ["requests"]
    assert (await refused(either.create("a b", 0))).fields == ["coupon_id", "coupon.total_quantity"]


async def test_a_batch_answers_each_request_in_its_place(either: Client) -> None:
    coupon_id, other = new_id(), new_id()
    await asyncio.gather(either.create(coupon_id, 2), either.create(other, 9))
    await either.issue(coupon_id, "winner", wait=True)
    requests = [
        asked(other, "ann"),
        asked(coupon_id, "winner"),
        asked(coupon_id, "bob"),
        asked("no id", "ann"),
        asked(new_id(), "ann"),
        asked(coupon_id, "late"),
        asked(other, "ann"),
        asked(other, "bob"),
    ]
    results = (await either.batch(requests)).results
    told = [one.issuance.sequence if one.HasField("issuance") else failure_of(one.error).reason for one in results]
    assert told == [
        1, "ALREADY_ISSUED", 2, "INVALID_FIELD", "COUPON_NOT_FOUND", "SOLD_OUT", "ALREADY_ISSUED", 2,
    ]  # fmt: skip
    assert [one.issuance.user_id for one in results if one.HasField("issuance")] == ["ann", "bob", "bob"]


async def test_the_redis_system_stores_each_grant_once(redis_client: Client, redis_system: Config) -> None:
    coupon_id = new_id()
    await redis_client.create(coupon_id, 30)
    await redis_client.batch([asked(coupon_id, f"user{number}") for number in range(40)])
    database = await asyncpg.connect(redis_system.postgres_dsn)
    try:

        async def all_stored() -> bool:
            rows = await database.fetch(
                "SELECT user_id, sequence FROM baseline.issued_coupon WHERE coupon_id = $1", coupon_id
            )
            return {(row["user_id"], row["sequence"]) for row in rows} == {(f"user{n}", n + 1) for n in range(30)}

        await eventually(all_stored)
    finally:
        await database.close()
