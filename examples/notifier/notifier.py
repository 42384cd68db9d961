"""The loop: read outcomes, remember the winners, tell them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from coupon.v1 import events_pb2
from google.protobuf.message import DecodeError

from examples.notifier.store import Store, Win

ISSUED = b"coupon.v1.CouponIssuedEvent"
POLL_RECORDS_MAX = 1_000
POLL_MS = 500
REQUEST_TIMEOUT_MS = 10_000
Tell = Callable[[Win], None]


class OutcomesLost(Exception):
    """The topic is not there, or no longer has what comes next: its retention deleted it while nobody read."""


async def notify(
    bootstrap: str, topic: str, store: Store, tell: Tell, stopping: asyncio.Event, *, until_end: bool = False
) -> None:
    """Tell winners until `stopping`; with `until_end`, until all is read that was there at the start.

    `tell` may be called again for a win after a crash just behind it, with the same `ce_id`, and never otherwise.
    Raises OutcomesLost, aiokafka's KafkaError.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        client_id="notifier",
        group_id=None,  # the offsets are kept beside what was done with them, not at the broker
        enable_auto_commit=False,
        auto_offset_reset="none",
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    await consumer.start()
    try:
        ends = await _take_positions(consumer, topic, store)
        tell_untold(store, tell)  # what a crash has left
        while not stopping.is_set() and not (until_end and await _has_reached(consumer, ends)):
            polled = await consumer.getmany(timeout_ms=POLL_MS, max_records=POLL_RECORDS_MAX)
            for tp, records in polled.items():
                store.take_in(tp.topic, tp.partition, records[-1].offset + 1, wins_in(records))
            tell_untold(store, tell)
    finally:
        await consumer.stop()


def wins_in(records: Iterable[Any]) -> Sequence[Win]:
    """The winners among outcomes. Other types are for others; one that is newer than this program is no fault."""
    wins = []
    for record in records:
        headers = dict(record.headers)
        if headers.get("ce_type") != ISSUED:
            continue
        try:
            ce_id = headers["ce_id"].decode()
            event = events_pb2.CouponIssuedEvent.FromString(record.value or b"")
        except (KeyError, ValueError, DecodeError) as error:
            print(f"skipped {record.topic}/{record.partition}/{record.offset}: {error!r}", file=sys.stderr)
            continue
        wins.append(Win(ce_id, event.coupon_id, event.user_id, event.sequence))
    return wins


def tell_untold(store: Store, tell: Tell) -> None:
    """Tell, then note that it was told: the other way round a crash between the two would leave a winner untold."""
    while wins := store.untold(POLL_RECORDS_MAX):
        for win in wins:
            tell(win)
        store.note_told(wins)


async def _take_positions(consumer: Any, topic: str, store: Store) -> dict[TopicPartition, int]:
    """Seek to where the store says, or to the beginning; returns where each partition ends now."""
    if topic not in await consumer.topics():
        raise OutcomesLost(f"there is no topic {topic}")
    await consumer.beginning_offsets([TopicPartition(topic, 0)])  # with it aiokafka learns which others there are
    tps = [TopicPartition(topic, partition) for partition in sorted(consumer.partitions_for_topic(topic))]
    begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    stored = store.positions(topic)
    positions = {tp: stored.get(tp.partition, begins[tp]) for tp in tps}
    for tp, position in positions.items():
        if not begins[tp] <= position <= ends[tp]:
            raise OutcomesLost(
                f"{topic}/{tp.partition} has {begins[tp]} to {ends[tp]}, not {position}: let the range be published "
                "again (firstcome replay republish) and read that topic with --topic; nobody is told twice for it"
            )
    consumer.assign(tps)
    for tp, position in positions.items():
        consumer.seek(tp, position)
    return dict(ends)


async def _has_reached(consumer: Any, ends: dict[TopicPartition, int]) -> bool:
    return all([await consumer.position(tp) >= end for tp, end in ends.items()])
