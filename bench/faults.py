"""kill -9 at the same moments in both systems during a rush, and what each lost, oversold, or blocked for ever.

What people were told is compared with the rows that are there in the end. The Redis system runs as it is drawn, its
scheduler storing one row at a time: that loses the least.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from coupon.v1 import issuer_pb2, issuer_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from bench.batches import ONE_AT_A_TIME
from bench.session import Session
from bench.systems import Firstcome, RedisSystem, System
from checker import HistoryWriter
from stack import ServiceProcess
from stack.engine import Engine

DOWN_S = 0.5
"""How long what was killed stays down before it is started again."""
CALL_TIMEOUT_S = 20.0
PATIENCE_S = 60.0
"""How long somebody tries to get an answer."""
RETRY_S = 0.3
QUIET_S = 1.5
"""So long without a new row, and with an empty queue: the Redis system is done."""
STORED_TIMEOUT_S = 60.0
"""What the Redis system has not stored so long after the last call counts as lost."""
BACK_TIMEOUT_S = 15.0
LOOK_S = 0.05
SNAPSHOT_TIMEOUT_S = 20.0
OFTEN, ONCE = (0.2, 0.5, 0.8), (0.5,)
_FINAL = ("SOLD_OUT", "ALREADY_ISSUED")
_CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(frozen=True, slots=True)
class Kill:
    """Which part of each system is killed, and at which shares of the rush."""

    name: str
    ours: str
    redis: str
    moments: Sequence[float]


KILLS = (
    Kill("api", "issuer", "api", OFTEN),
    Kill("store", "ledger", "scheduler", OFTEN),
    Kill("database", "postgres", "postgres", ONCE),
    Kill("stock", "kafka", "redis", ONCE),
)
"""`store`: what writes rows. `stock`: what holds the stock, or the requests that have a place and no verdict yet."""
_ROWS: Mapping[str, str] = {
    "firstcome": "SELECT user_id FROM user_coupon WHERE coupon_id = $1",
    "redis": "SELECT user_id FROM baseline.issued_coupon WHERE coupon_id = $1",
}


@dataclass(slots=True)
class _People:
    """Who was told what in the end: ISSUED, SOLD_OUT, ALREADY_ISSUED or, of those who gave up, NONE."""

    told: dict[str, str] = field(default_factory=dict)
    ever_issued: set[str] = field(default_factory=set)
    answered_s: list[float] = field(default_factory=list)


async def scenario(session: Session) -> None:
    """One system of each kind; each kill has a coupon of its own."""
    async with session.firstcome() as ours:
        # Else the first of both to be killed would replay what other scenarios have written in the last minutes.
        await ours.query("CHECKPOINT")
        histories = [await _case(session, ours, kill, kill.ours) for kill in KILLS]
        await session.check("faults", ours, histories)
    async with session.redis(batch=ONE_AT_A_TIME) as redis:
        for kill in KILLS:
            await _case(session, redis, kill, kill.redis)


async def _case(session: Session, system: System, kill: Kill, part: str) -> Path:
    lengths = session.lengths
    coupon_id = f"fault-{kill.name}"
    history_path = session.logs / f"{system.name}-{kill.name}.jsonl"
    await system.create([coupon_id], lengths.fault_stock)
    if isinstance(system, RedisSystem) and part == "redis":
        await _snapshot(system)
    people = _People()
    async with grpc.aio.insecure_channel(system.address, options=_CHANNEL) as channel:
        stub: Any = issuer_pb2_grpc.IssuerServiceStub(channel)
        with HistoryWriter(history_path) as history:
            caller = _Caller(stub, coupon_id, people, history)
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as running:
                running.create_task(_kill(system, part, [began_s + m * lengths.fault_s for m in kill.moments]))
                running.create_task(_arrive(caller, began_s, lengths.fault_people, lengths.fault_s))
        await _done(system)
        rows = Counter(row[0] for row in await system.query(_ROWS[system.name], coupon_id))
        without = [user for user, told in people.told.items() if user not in rows and told != "SOLD_OUT"]
        again = await asyncio.gather(*(caller.again(user) for user in without))
    found: dict[str, float | int | str] = {
        "fault": kill.name,
        "system": system.name,
        "killed": part,
        "kills": len(kill.moments),
        "stock": lengths.fault_stock,
        "told_issued": len(people.ever_issued),
        "stored": rows.total(),
        "lost": len(people.ever_issued - rows.keys()),
        "oversold": max(rows.total() - lengths.fault_stock, len(people.ever_issued) - lengths.fault_stock, 0),
        "twice": rows.total() - len(rows),
        "unsold": max(min(lengths.fault_stock, lengths.fault_people) - rows.total(), 0),
        "blocked": again.count("ALREADY_ISSUED"),
        "unanswered": sum(told == "NONE" for told in people.told.values()),
        "standstill_s": round(_longest_gap_s(people.answered_s), 2),
    }
    session.results.faults.append(found)
    session.say("  " + " ".join(f"{name}={value}" for name, value in found.items()))
    measured = ("lost", "oversold", "twice", "unsold", "blocked", "unanswered")
    session.results.put(
        **{f"fault_{kill.name}_{system.name}_{name}": found[name] for name in (*measured, "standstill_s")}
    )
    broken = {name: found[name] for name in measured if found[name]}
    if broken and isinstance(system, Firstcome):
        session.results.fail(f"faults: after a kill of {part}: {broken}")
    return history_path


class _Caller:
    """Calls for one person until the answer is final; an uncertain answer is asked again with the same request_id."""

    def __init__(self, stub: Any, coupon_id: str, people: _People, history: HistoryWriter) -> None:
        self._stub = stub
        self._coupon_id = coupon_id
        self._people = people
        self._history = history

    async def come(self, user_id: str) -> None:
        """Until there is an answer, or patience ends."""
        request_id = str(uuid.uuid4())
        gives_up_s = time.monotonic() + PATIENCE_S
        told = "NONE"
        while time.monotonic() < gives_up_s:
            said = await self._call(user_id, request_id)
            if said in ("ISSUED", *_FINAL):
                told = said
                self._people.answered_s.append(time.monotonic())
                break
            await asyncio.sleep(RETRY_S * (1 + random.random()))
        self._people.told[user_id] = told
        if told == "ISSUED":
            self._people.ever_issued.add(user_id)

    async def again(self, user_id: str) -> str:
        """What somebody without a row is told who asks anew."""
        request = self._request(user_id, str(uuid.uuid4()))
        try:
            answer = await self._stub.IssueCoupon(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return _reason(error)
        return str(issuer_pb2.Issuance.State.Name(answer.state))

    async def _call(self, user_id: str, request_id: str) -> str:
        call = self._history.invoke(self._coupon_id, user_id, request_id)
        try:
            answer = await self._stub.IssueCoupon(self._request(user_id, request_id), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
            if reason in _FINAL:
                self._history.fail(call, reason, _ticket(error))
            else:
                self._history.unknown(call, reason)
            return reason
        state = str(issuer_pb2.Issuance.State.Name(answer.state))
        self._history.ok(call, answer.ticket or None, state, answer.sequence or None)
        return state

    def _request(self, user_id: str, request_id: str) -> issuer_pb2.IssueCouponRequest:
        return issuer_pb2.IssueCouponRequest(
            coupon=f"coupons/{self._coupon_id}", user_id=user_id, request_id=request_id, wait=True
        )


async def _arrive(caller: _Caller, began_s: float, count: int, seconds: float) -> None:
    async with asyncio.TaskGroup() as calls:
        for number in range(count):
            early_s = began_s + seconds * number / count - time.monotonic()
            if early_s > 0:
                await asyncio.sleep(early_s)
            calls.create_task(caller.come(f"person-{number:05d}"))


async def _kill(system: System, part: str, moments_s: Sequence[float]) -> None:
    victim: Engine | ServiceProcess
    stack = system.stack
    engines: dict[str, Engine] = {"postgres": stack.postgres, "kafka": stack.kafka}
    if part == "redis":
        engines["redis"] = stack.redis
    victim = engines[part] if part in engines else system.processes[part]
    settled = -1
    for moment_s in moments_s:
        await asyncio.sleep(max(moment_s - time.monotonic(), 0))
        # In the middle of its work, not while it is still coming back from the kill before.
        ends_s = time.monotonic() + BACK_TIMEOUT_S
        while await system.settled() == settled and time.monotonic() < ends_s:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(victim.kill)
        await asyncio.sleep(DOWN_S)
        await asyncio.to_thread(victim.start)
        await asyncio.to_thread(victim.wait_ready)
        settled = await system.settled()


async def _snapshot(redis: RedisSystem) -> None:
    """What Redis does by itself some time after the coupon was made: the sale is opened long after."""
    before = await redis.redis.lastsave()
    await asyncio.sleep(1.1)  # the time of the last snapshot has whole seconds
    await redis.redis.bgsave()
    ends_s = time.monotonic() + SNAPSHOT_TIMEOUT_S
    while await redis.redis.lastsave() == before:
        if time.monotonic() > ends_s:
            raise TimeoutError("Redis made no snapshot")
        await asyncio.sleep(LOOK_S)


async def _done(system: System) -> None:
    if isinstance(system, Firstcome):
        await system.until_settled()
        return
    quiet_since_s, last = time.monotonic(), -1
    ends_s = quiet_since_s + STORED_TIMEOUT_S
    while time.monotonic() < min(quiet_since_s + QUIET_S, ends_s):
        if (now := await system.accepted()) != last or await system.settled() != now:
            quiet_since_s, last = time.monotonic(), now
        await asyncio.sleep(LOOK_S)


def _reason(error: grpc.aio.AioRpcError) -> str:
    info = _info(error)
    return info.reason if info is not None else error.code().name


def _ticket(error: grpc.aio.AioRpcError) -> str | None:
    info = _info(error)
    return info.metadata.get("ticket") if info is not None else None


def _info(error: grpc.aio.AioRpcError) -> Any:
    status = rpc_status.from_call(error)
    for packed in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return info
    return None


def _longest_gap_s(moments_s: Sequence[float]) -> float:
    ordered = sorted(moments_s)
    return max((later - one for one, later in itertools.pairwise(ordered)), default=0.0)
