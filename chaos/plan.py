"""Who calls when, for what, in which way, and what operators do meanwhile: fixed by a seed before it begins."""

from __future__ import annotations

import itertools
import random
import uuid
from dataclasses import dataclass
from enum import Enum

from aiokafka.partitioner import murmur2

PARTITIONS = 4
PEOPLE_PER_S = 90
HOT_COUPONS = 3
HOT_STOCK = 60
STEADY_STOCK = 100_000
LIVE_STOCK = 120
BATCH_REQUESTS = 12
REPEAT_EVERY = 10
REPEAT_AFTER_S = (0.02, 0.5)
"""Somebody clicks twice: the same request once more, perhaps before the first was answered."""
SECOND_TRY_EVERY = 12
SECOND_TRY_AFTER_S = (0.5, 3.0)
CHANGE_EVERY_S = 0.6


class Way(Enum):
    """How a request is made."""

    UNARY = "unary"
    WAIT = "wait"
    BATCH = "batch"
    LOOK_UP = "look-up"
    """Unary, and GetIssuance a little later."""


@dataclass(frozen=True, slots=True)
class Coupon:
    """A coupon to create."""

    coupon_id: str
    stock: int


@dataclass(frozen=True, slots=True)
class Request:
    """One user's wish; its identity is all three."""

    coupon_id: str
    user_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Act:
    """A call, `at_s` seconds after the opening; several requests in a batch."""

    at_s: float
    way: Way
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator does: ADJUST by `delta`, PAUSE, RESUME or RENAME."""

    at_s: float
    action: str
    coupon_id: str
    delta: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The rush. `acts` and `changes` in the order of time."""

    coupons: tuple[Coupon, ...]
    acts: tuple[Act, ...]
    changes: tuple[Change, ...]
    duration_s: float

    @property
    def live(self) -> str:
        """The coupon that operators change."""
        return self.coupons[-1].coupon_id


def make_plan(rng: random.Random, duration_s: float) -> Plan:
    """A rush of so many seconds: steady coupons in every partition, hot ones that sell out, one that is changed."""
    steady = [Coupon(coupon_at(partition, "steady"), STEADY_STOCK) for partition in range(PARTITIONS)]
    hot = [Coupon(f"hot-{number}", HOT_STOCK) for number in range(HOT_COUPONS)]
    live = Coupon("live", LIVE_STOCK)
    coupons = (*steady, *hot, live)
    weights = [10] * len(steady) + [15] * len(hot) + [15]
    singles: list[tuple[float, Request]] = []
    for number in range(int(duration_s * PEOPLE_PER_S)):
        coupon = rng.choices(coupons, weights)[0]
        at_s = rng.uniform(0, duration_s)
        user_id = f"user-{number:05d}"
        singles.append((at_s, Request(coupon.coupon_id, user_id, new_uuid(rng))))
        if number % SECOND_TRY_EVERY == 0:
            later_s = at_s + rng.uniform(*SECOND_TRY_AFTER_S)
            singles.append((later_s, Request(coupon.coupon_id, user_id, new_uuid(rng))))
    singles.sort(key=lambda single: single[0])
    acts = list(_acts(rng, singles))
    acts += [
        Act(act.at_s + rng.uniform(*REPEAT_AFTER_S), act.way, act.requests)
        for act in acts[::REPEAT_EVERY]
    ]  # fmt: skip
    changes = _changes(rng, live.coupon_id, duration_s)
    return Plan(coupons, tuple(sorted(acts, key=lambda act: act.at_s)), changes, duration_s)


def coupon_at(partition: int, prefix: str) -> str:
    """An id that Kafka's default partitioner gives that partition."""
    names = (f"{prefix}-{number}" for number in itertools.count())
    return next(name for name in names if (murmur2(name.encode()) & 0x7FFFFFFF) % PARTITIONS == partition)


def _acts(rng: random.Random, singles: list[tuple[float, Request]]) -> list[Act]:
    acts: list[Act] = []
    left = list(reversed(singles))
    while left:
        at_s, request = left.pop()
        way = rng.choices((Way.UNARY, Way.WAIT, Way.LOOK_UP, Way.BATCH), (70, 18, 7, 2))[0]
        requests = [request]
        if way is Way.BATCH:
            while left and len(requests) < BATCH_REQUESTS:
                requests.append(left.pop()[1])
        acts.append(Act(at_s, way, tuple(requests)))
    return acts


def _changes(rng: random.Random, coupon_id: str, duration_s: float) -> tuple[Change, ...]:
    changes: list[Change] = []
    at_s = CHANGE_EVERY_S
    while at_s < duration_s:
        action = rng.choice(("ADJUST", "ADJUST", "PAUSE", "RESUME", "RENAME"))
        changes.append(Change(at_s, action, coupon_id, rng.choice((-15, -5, 5, 25)), new_uuid(rng)))
        at_s += rng.uniform(0.5, 1.5) * CHANGE_EVERY_S
    return (*changes, Change(duration_s, "RESUME", coupon_id, 0, new_uuid(rng)))


def new_uuid(rng: random.Random) -> str:
    """A request_id."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
