"""Who calls when, for what: the whole rush, fixed by a seed before it begins."""

from __future__ import annotations

import math
import random
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

RUSH_S = 10.0
"""How long people keep arriving."""
RUSH_DECAY_S = 2.5
"""By this time after the opening 63 % of them have arrived (the rest of an exponential's tail is cut off)."""
REPEAT_EVERY = 10
REPEAT_AFTER_S = (0.02, 0.5)
"""Somebody clicks twice: the same request once more, perhaps before the first was answered."""
SECOND_TRY_EVERY = 10
SECOND_TRY_AFTER_S = (0.5, 3.0)
WAIT_EVERY = 20


@dataclass(frozen=True, slots=True)
class Campaign:
    """A coupon to create, and what share of the people want it (any scale)."""

    coupon_id: str
    display_name: str
    stock: int
    share: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call, `at_s` seconds after the opening."""

    at_s: float
    coupon_id: str
    user_id: str
    request_id: str
    wait: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All calls in the order of their arrival."""

    campaigns: tuple[Campaign, ...]
    arrivals: tuple[Arrival, ...]
    wanted: Mapping[str, int]
    """Coupon id to the number of different people who want it."""

    @property
    def grants_expected(self) -> int:
        return sum(min(campaign.stock, self.wanted.get(campaign.coupon_id, 0)) for campaign in self.campaigns)


def make_plan(seed: int, campaigns: tuple[Campaign, ...], people: int) -> Plan:
    """The rush of `people` on the campaigns: the same for the same arguments."""
    rng = random.Random(seed)
    shares = [campaign.share for campaign in campaigns]
    calls: list[Arrival] = []
    wanted: Counter[str] = Counter()
    for number in range(1, people + 1):
        campaign = rng.choices(campaigns, shares)[0]
        wanted[campaign.coupon_id] += 1
        user_id = f"user-{number:05d}"
        at_s = _arrival_s(rng)
        calls.append(_call(rng, at_s, campaign.coupon_id, user_id, len(calls)))
        if number % SECOND_TRY_EVERY == 0:
            later_s = at_s + rng.uniform(*SECOND_TRY_AFTER_S)
            calls.append(_call(rng, later_s, campaign.coupon_id, user_id, len(calls)))
    repeats = [
        Arrival(call.at_s + rng.uniform(*REPEAT_AFTER_S), call.coupon_id, call.user_id, call.request_id, wait=call.wait)
        for call in calls[::REPEAT_EVERY]
    ]
    arrivals = sorted(calls + repeats, key=lambda call: call.at_s)
    return Plan(campaigns, tuple(arrivals), dict(wanted))


def _arrival_s(rng: random.Random) -> float:
    """A time from an exponential distribution that is cut off at RUSH_S."""
    share = rng.random() * (1 - math.exp(-RUSH_S / RUSH_DECAY_S))
    return -RUSH_DECAY_S * math.log1p(-share)


def _call(rng: random.Random, at_s: float, coupon_id: str, user_id: str, number: int) -> Arrival:
    request_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return Arrival(at_s, coupon_id, user_id, request_id, wait=number % WAIT_EVERY == 0)
