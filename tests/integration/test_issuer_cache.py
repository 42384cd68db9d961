"""What the issuer remembers of coupons, and what it says when the database is older than what it has seen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from services.domain.model import Coupon, CouponId, Reason, RequestId, Switch, UserId
from services.issuer.admission import Admission, Known, refusal_now
from services.issuer.outcomes import OutcomesTail
from services.issuer.store import IssuerStore
from services.runtime.kafka import Message, PartitionReader, Topics
from services.runtime.postgres import create_engine
from stack import Stack
from tests.conftest import TEST_PARTITIONS
from tests.contract.issuing import (
    Issuance,
    System,
    eventually,
    home,
    impatient,
    new_id,
    refused,
    request_id,
    shape,
)

USER = UserId("somebody")


@pytest.fixture
async def fresh(stack: Stack, database: str, topics: Topics) -> AsyncIterator[System]:
    made = System(stack, database, topics)
    yield made
    await made.close()


class Parts:
    """The issuer's look-up on the real database, and its tail of the real outcomes, without the rest."""

    def __init__(self, system: System) -> None:
        bootstrap, outcomes = system.stack.kafka_bootstrap, system.topics.outcomes
        self.engine = create_engine(system.dsn, "test", pool_size=2)
        self.tail = OutcomesTail(
            lambda partition: PartitionReader(bootstrap, "test", outcomes, partition), TEST_PARTITIONS, waiters_max=10
        )
        self.admission = Admission(IssuerStore(self.engine, system.topics.line), self.tail, TEST_PARTITIONS)
        self.told: list[Coupon] = []
        offered = self.tail.on_coupon

        def tell(coupon: Coupon) -> None:
            self.told.append(coupon)
            offered(coupon)

        self.tail.on_coupon = tell
        self._stopping = asyncio.Event()
        self._following = asyncio.ensure_future(self.tail.run(self._stopping))

    async def refusal(self, coupon_id: str, request: str = "", user: str = USER) -> tuple[Reason | None, Known]:
        (known,) = await self.admission.look_up([(CouponId(coupon_id), UserId(user))])
        return refusal_now(known, RequestId(request), 1_700_000_000_000_000), known

    async def was_told(self) -> bool:
        return bool(self.told)

    async def stop(self) -> None:
        self._stopping.set()
        await self._following
        await self.engine.dispose()


@contextlib.asynccontextmanager
async def parts_of(system: System) -> AsyncIterator[Parts]:
    with impatient():
        made = Parts(system)
        try:
            await made.tail.ready()
            yield made
        finally:
            await made.stop()


async def test_a_sold_out_coupon_is_refused_without_kafka(fresh: System) -> None:
    coupon_id, mine = new_id(), request_id()
    async with fresh.issuer() as client, fresh.ledger():
        await client.create(coupon_id, 1)
        won = await client.issue(coupon_id, "ann", mine, wait=True)

        async def known() -> bool:
            failure = await refused(client.issue(coupon_id, "probe", wait=True))
            return "ticket" not in failure.metadata

        await eventually(known)
        before = await fresh.ends()
        failures = await asyncio.gather(*(refused(client.issue(coupon_id, f"user{n}")) for n in range(200)))
        assert {failure.reason for failure in failures} == {"SOLD_OUT"}
        again = await client.issue(coupon_id, "ann", mine)
        assert (again.state, again.ticket) == (Issuance.ISSUED, won.ticket)
        assert await fresh.ends() == before
        # Stock added here counts here at once, with the sell-out still in the cache.
        await client.adjust(coupon_id, 1)
        assert (await client.issue(coupon_id, "bob", wait=True)).sequence == 2


async def test_an_old_outcome_that_comes_late_says_nothing_of_how_the_coupon_is(fresh: System) -> None:
    """Outcomes may come twice, and repeated changes are answered with what they first came to."""
    coupon_id = new_id()
    async with fresh.issuer() as client, fresh.ledger():
        await client.create(coupon_id)
        await client.pause(coupon_id)
        await client.resume(coupon_id)
        await client.issue(coupon_id, "ann", wait=True)
        old = list((await fresh.records(fresh.topics.outcomes, home(coupon_id))).values())[1]
        async with parts_of(fresh) as parts:
            for warm in (False, True):
                if warm:
                    assert (await parts.refusal(coupon_id))[0] is None
                parts.told.clear()
                await fresh.put(fresh.topics.outcomes, home(coupon_id), Message(old.key, old.value, list(old.headers)))
                await eventually(parts.was_told)
                assert parts.told[-1].switch is Switch.PAUSED
                assert (await parts.refusal(coupon_id))[0] is None


async def test_a_coupon_whose_change_is_told_during_a_look_up_is_still_found(
    fresh: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look-up did not ask for it, since its state was fresh when it began."""
    coupon_id = new_id()
    async with fresh.issuer() as client, fresh.ledger():
        await client.create(coupon_id)
        async with parts_of(fresh) as parts:
            for name in ("FRESH_S", "LIFETIME_S"):
                monkeypatch.setattr(f"services.issuer.admission.{name}", 60.0)
            _, known = await parts.refusal(coupon_id)
            assert known.coupon is not None
            later = replace(known.coupon, etag=f"{known.partition}-99")
            look_up = IssuerStore.look_up

            async def telling(store: IssuerStore, keys: Any, coupon_ids: Any) -> Any:
                assert coupon_ids == []
                found = await look_up(store, keys, coupon_ids)
                parts.tail.on_coupon(later)
                return found

            monkeypatch.setattr(IssuerStore, "look_up", telling)
            assert (await parts.refusal(coupon_id))[0] is None


async def test_a_cached_refusal_is_not_given_by_a_database_that_has_gone_back(fresh: System) -> None:
    """The state may be fresh, but who has won is looked up in tables that have forgotten it."""
    coupon_id, mine = new_id(), request_id()
    async with fresh.issuer() as client, fresh.ledger():
        await client.create(coupon_id, 1)
        await client.issue(coupon_id, "ann", mine, wait=True)
        await fresh.settled()
    partition = home(coupon_id)
    async with parts_of(fresh) as parts:
        assert parts.tail.seen()[partition] == 1
        assert (await parts.refusal(coupon_id, mine, "ann"))[0] is Reason.REPEATED
        # At once, while the state that was just read is fresh.
        await fresh.fetch(
            "WITH lost AS (DELETE FROM user_coupon) UPDATE ledger_progress SET next_offset = 1 WHERE partition = $1",
            partition,
        )
        reason, known = await parts.refusal(coupon_id, mine, "ann")
        assert reason is Reason.SOLD_OUT
        assert known.behind, "without that it is told as a refusal"


async def test_an_older_database_makes_refusals_unavailable_not_lies(fresh: System) -> None:
    coupon_id, other, mine = new_id(), new_id(), request_id()
    while home(other) != home(coupon_id):
        other = new_id()
    async with fresh.issuer() as client:
        async with fresh.ledger():
            await client.create(coupon_id, 2)
            kept = await client.issue(coupon_id, "kept", mine, wait=True)
            lost = await client.issue(coupon_id, "lost", wait=True)
            await client.create(other, 1)
            await fresh.settled()
        partition = home(coupon_id)

        async def seen() -> bool:
            return bool(client.tail.seen().get(partition, -1) == 3)

        await eventually(seen)
        # As after a restore: what came behind the first grant is gone.
        await fresh.fetch("DELETE FROM user_coupon WHERE user_id = 'lost'")
        await fresh.fetch("DELETE FROM coupon WHERE coupon_id = $1", other)
        await fresh.fetch("DELETE FROM coupon_change WHERE coupon_id = $1", other)
        await fresh.fetch("UPDATE coupon SET issued_count = 1, remaining = 1 WHERE coupon_id = $1", coupon_id)
        await fresh.fetch(
            "UPDATE ledger_progress SET next_offset = 2, published_offset = 2, last_offset = NULL, "
            "last_timestamp = NULL, last_checksum = NULL WHERE topic = $1 AND partition = $2",
            fresh.topics.line,
            partition,
        )
        away = ("UNAVAILABLE", "LEDGER_UNAVAILABLE", {"RetryInfo"})
        assert shape(await refused(client.issue(other, "ann"))) == away
        assert shape(await refused(client.coupon(other))) == away
        assert shape(await refused(client.get(coupon_id, "lost"))) == away
        assert shape(await refused(client.get(other, "ann"))) == away
        another = request_id()
        failure = await refused(client.issue(coupon_id, "kept", another))
        assert shape(failure) == away
        assert failure.metadata["request_id"] == another
        # Grants still answer.
        again = await client.issue(coupon_id, "kept", mine)
        assert (again.state, again.ticket) == (Issuance.ISSUED, kept.ticket)
        assert (await client.get(coupon_id, "kept")).state == Issuance.ISSUED
        assert (await client.get(coupon_id, "kept", kept.ticket)).state == Issuance.ISSUED
        async with fresh.ledger():
            await fresh.settled()

            async def answers() -> bool:
                try:
                    return bool((await client.get(coupon_id, "lost")).ticket == lost.ticket)
                except grpc.aio.AioRpcError:
                    return False

            await eventually(answers)
            assert (await refused(client.issue(coupon_id, "kept"))).reason == "ALREADY_ISSUED"
            assert (await client.issue(other, "ann", wait=True)).state == Issuance.ISSUED


async def test_garbage_among_the_outcomes_ends_nobody(fresh: System) -> None:
    """Also as the last record there is, which a new issuer reads first."""
    coupon_id = new_id()
    async with fresh.issuer() as client, fresh.ledger():
        await client.create(coupon_id)
        good = (await fresh.records(fresh.topics.outcomes, home(coupon_id)))[0]
        headers = list(good.headers)
        types = [b"coupon.v1.CouponChangedEvent", b"coupon.v1.CouponIssuedEvent", b"coupon.v1.Later", b"\xff"]
        values = [b"\xff\xff", b"\x22\x05LATER", b"", None]
        waiting = asyncio.ensure_future(client.issue(coupon_id, "ann", wait=True))
        for ce_type in types:
            for value in values:
                changed = [(name, ce_type if name == "ce_type" else header) for name, header in headers]
                await fresh.put(fresh.topics.outcomes, home(coupon_id), Message(None, value, changed))
        odd: list[tuple[str, bytes | None]] = [("ce_id", b"9" * 5000), ("ce_type", types[0]), ("ce_time", b"\xff")]
        await fresh.put(fresh.topics.outcomes, home(coupon_id), Message(None, b"\xff", odd))
        assert (await waiting).state == Issuance.ISSUED
        async with fresh.issuer() as another:
            assert (await another.issue(coupon_id, "bob", wait=True)).state == Issuance.ISSUED
        assert (await client.issue(coupon_id, "cem", wait=True)).state == Issuance.ISSUED
