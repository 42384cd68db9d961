"""What the Redis system keeps in Redis: who has asked for a coupon, what is left of it, who is still to be stored."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from baseline.redis_commands import Command, SharedConnection

QUEUE = "coupon-issue-queue"
STOCK_PUSHED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Wish:
    """A user asks for a coupon."""

    coupon_id: str
    user_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Granted:
    """One of the queue. `sequence`: which piece of the stock it is, from 1."""

    coupon_id: str
    user_id: str
    request_id: str
    sequence: int


def users_key(coupon_id: str) -> str:
    return f"coupon-issue-users:{coupon_id}"


def stock_key(coupon_id: str) -> str:
    return f"coupon-stock:{coupon_id}"


class Stock:
    """The three steps of issuing: SADD, LPOP, RPUSH. Nothing holds them together: a crash between two shows."""

    def __init__(self, connection: SharedConnection) -> None:
        self._connection = connection

    async def fill(self, coupon_id: str, total: int) -> None:
        """Put `total` pieces of stock on the coupon's list. Raises RedisAway."""
        for start in range(1, total + 1, STOCK_PUSHED_AT_ONCE):
            pieces = range(start, min(start + STOCK_PUSHED_AT_ONCE, total + 1))
            await self._connection.run([("RPUSH", stock_key(coupon_id), *pieces)])

    async def take(self, wishes: Sequence[Wish]) -> list[Granted | str]:
        """For each wish the grant, or ALREADY_ISSUED or SOLD_OUT.

        Who finds nothing left stays in the set of users, as the design has it. Raises RedisAway: then what became of
        the wishes is unknown.
        """
        answers: list[Granted | str] = ["ALREADY_ISSUED"] * len(wishes)
        added = await self._connection.run([("SADD", users_key(w.coupon_id), w.user_id) for w in wishes])
        first_of_user: dict[str, list[int]] = defaultdict(list)
        for index, (wish, new) in enumerate(zip(wishes, added, strict=True)):
            if new:
                first_of_user[wish.coupon_id].append(index)
        if not first_of_user:
            return answers
        pops: list[Command] = [("LPOP", stock_key(coupon_id), len(who)) for coupon_id, who in first_of_user.items()]
        popped = await self._connection.run(pops)
        queued: list[Granted] = []
        for (coupon_id, who), pieces in zip(first_of_user.items(), popped, strict=True):
            left = [int(piece) for piece in pieces or ()]
            for index in who[len(left) :]:
                answers[index] = "SOLD_OUT"
            for index, sequence in zip(who, left, strict=False):
                wish = wishes[index]
                grant = Granted(coupon_id, wish.user_id, wish.request_id, sequence)
                answers[index] = grant
                queued.append(grant)
        if queued:
            await self._connection.run([("RPUSH", QUEUE, *(json.dumps(asdict(grant)) for grant in queued))])
        return answers
