"""Records that nobody should put on the line, one of each kind, put there past the issuer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from coupon.v1 import events_pb2

SEND_TIMEOUT_S = 10.0
LARGE_BYTES = 70_000
ISSUE_TYPE = b"coupon.v1.CouponIssueRequestedEvent"
CHANGE_TYPE = b"coupon.v1.CouponChangeRequestedEvent"


@dataclass(frozen=True, slots=True)
class Garbage:
    """A record and what is wrong with it."""

    what: str
    partition: int
    key: bytes | None
    value: bytes | None
    ce_type: bytes | None


def make_garbage(coupon_id: str, partition: int, partition_count: int) -> tuple[Garbage, ...]:
    """Broken records for the coupon's own partition, and one for another."""
    key = coupon_id.encode()

    def issue(coupon: str = coupon_id, user: str = "garbage-user", request: str = str(uuid.UUID(int=1))) -> bytes:
        event = events_pb2.CouponIssueRequestedEvent(coupon_id=coupon, user_id=user, request_id=request)
        return event.SerializeToString()

    change = events_pb2.CouponChangeRequestedEvent(coupon_id=coupon_id, request_id=str(uuid.UUID(int=2)))
    elsewhere = (partition + 1) % partition_count
    found = [
        Garbage("bytes that are no message", partition, key, b"\xff\xfe not protobuf", ISSUE_TYPE),
        Garbage("a message cut off", partition, key, issue()[:-3], ISSUE_TYPE),
        Garbage("a change without an action", partition, key, change.SerializeToString(), CHANGE_TYPE),
        Garbage("an empty value", partition, key, b"", ISSUE_TYPE),
        Garbage("no value", partition, key, None, ISSUE_TYPE),
        Garbage("an unknown type", partition, key, issue(), b"coupon.v1.CouponIssuedEvent"),
        Garbage("no type", partition, key, issue(), None),
        Garbage("no user", partition, key, issue(user=""), ISSUE_TYPE),
        Garbage("a user id with a space", partition, key, issue(user="no such user"), ISSUE_TYPE),
        Garbage("a request id that is no UUID", partition, key, issue(request="once"), ISSUE_TYPE),
        Garbage("another coupon's key", partition, b"another-coupon", issue(), ISSUE_TYPE),
        Garbage("more than 64 KiB", partition, key, issue(user="u" * LARGE_BYTES), ISSUE_TYPE),
    ]
    if elsewhere != partition:
        found.append(Garbage("another partition", elsewhere, key, issue(), ISSUE_TYPE))
    return tuple(found)


async def put_garbage(bootstrap: str, topic: str, garbage: Sequence[Garbage], over_s: float) -> None:
    """Put the records on the topic one by one, spread over some seconds. Raises KafkaError, TimeoutError."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await producer.start()
    try:
        for record in garbage:
            headers = [] if record.ce_type is None else [("ce_type", record.ce_type)]
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await producer.send_and_wait(
                    topic, key=record.key, value=record.value, partition=record.partition, headers=headers
                )
            await asyncio.sleep(over_s / len(garbage))
    finally:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await producer.stop()
