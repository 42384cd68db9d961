"""Prometheus, with our rules, watches a rush and what goes wrong behind it: panels have data, alerts come and go."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from aiokafka import AIOKafkaProducer
from coupon.v1 import coupon_pb2, coupon_pb2_grpc, issuer_pb2, issuer_pb2_grpc

from deploy.observability import dashboards
from services.runtime.kafka import Topics, home_partition
from stack import Services, Stack, free_port
from stack.prometheus import RULES, Prometheus
from tests.conftest import TEST_PARTITIONS
from tests.prometheus import program

PATIENCE_S = 40
WINDOW = "15s"
STOCK = 1_000_000
RUN_MAX = 50
GARBAGE = 3
LEDGER_DOWN = {"FirstcomeServiceDown", "FirstcomeLedgerLagHigh"}
FLOODED = {"FirstcomeDeadLetterBreaker", "FirstcomePartitionHalted"}


def quicker(folder: Path) -> Path:
    """Our rules as they are but for their patience: minutes become seconds."""
    folder.mkdir()
    for path in RULES.glob("*.yaml"):
        text = re.sub(r"^( +)for: .*$", r"\1for: 1s", path.read_text(), flags=re.MULTILINE)
        (folder / path.name).write_text(re.sub(r"\[\d+[mhd]\]", f"[{WINDOW}]", text))
    return folder


class Watched:
    """The three services on a stack, with Prometheus beside them."""

    def __init__(self, stack: Stack, dsn: str, topics: Topics, folder: Path) -> None:
        self.dsn, self.topics, self.kafka = dsn, topics, stack.kafka_bootstrap
        self.services = Services(
            stack.kafka_bootstrap,
            dsn,
            topic_prefix=topics.prefix,
            log_dir=folder,
            env={"FIRSTCOME_DEAD_LETTER_RUN_MAX": str(RUN_MAX)},
        )
        ports = self.services.ports
        targets = {"issuer": [ports.issuer_metrics], "ledger": [ports.ledger_metrics], "dlq": [ports.dlq_metrics]}
        self.prometheus = Prometheus(
            folder / "prometheus", free_port(), targets, interval_s=1, rules=quicker(folder / "rules")
        )
        self.ledger = self.services.processes["ledger"]

    def firing(self) -> set[str]:
        """But for the objective of speed, which a busy machine misses in windows of seconds."""
        query = 'ALERTS{alertstate="firing", alertname!="FirstcomeSettleSloBurn"}'
        return {one["metric"]["alertname"] for one in self.prometheus.query(query)}

    def until(self, holds: Callable[[], bool], what: object) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, f"{what}; firing: {self.firing()}"
            time.sleep(0.3)

    def issue(self, coupon_id: str, users: range, *, wait: bool = False) -> None:
        requests = [
            issuer_pb2.IssueCouponRequest(coupon=f"coupons/{coupon_id}", user_id=f"user-{n}", wait=wait) for n in users
        ]
        with grpc.insecure_channel(self.services.issuer_address) as channel:
            stub: Any = issuer_pb2_grpc.IssuerServiceStub(channel)
            stub.BatchIssueCoupons(issuer_pb2.BatchIssueCouponsRequest(requests=requests), timeout=30)
            asked = issuer_pb2.IssueCouponRequest(coupon=f"coupons/{coupon_id}", user_id=f"one-{users.start}")
            stub.IssueCoupon(asked, timeout=30)

    def create(self, coupon_id: str) -> None:
        coupon = coupon_pb2.Coupon(display_name=coupon_id, total_quantity=STOCK)
        with grpc.insecure_channel(self.services.issuer_address) as channel:
            stub: Any = coupon_pb2_grpc.CouponServiceStub(channel)
            stub.CreateCoupon(coupon_pb2.CreateCouponRequest(coupon_id=coupon_id, coupon=coupon), timeout=30)

    async def garbage(self, count: int, partition: int) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka)
        await producer.start()
        try:
            sent = [await producer.send(self.topics.line, b"\xff" * 9, partition=partition) for _ in range(count)]
            for one in sent:
                await one
        finally:
            await producer.stop()

    async def execute(self, statement: str, *arguments: Any) -> None:
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            await connection.execute(statement, *arguments)
        finally:
            await connection.close()


@pytest.fixture
def watched(stack: Stack, database: str, topics: Topics, tmp_path: Path) -> Iterator[Watched]:
    program("prometheus")
    made = Watched(stack, database, topics, tmp_path)
    with made.services:
        try:
            made.prometheus.start()
            made.prometheus.wait_ready()
            yield made
        finally:
            made.prometheus.stop()


async def test_panels_have_data_in_a_rush_and_alerts_come_and_go_with_their_faults(watched: Watched) -> None:
    coupon_id = f"c-{uuid.uuid4().hex[:8]}"
    partition = home_partition(coupon_id.encode(), TEST_PARTITIONS)
    other = (partition + 1) % TEST_PARTITIONS
    watched.create(coupon_id)
    await watched.garbage(GARBAGE, other)

    # A rush: every panel has data, and no alert fires.
    empty: list[str] = ["not looked at yet"]
    rounds = iter(range(10_000))

    def panels_have_data() -> bool:
        number = next(rounds)
        watched.issue(coupon_id, range(number * 60, number * 60 + 60), wait=number % 2 == 0)
        empty[:] = [title for title, expr in _queries() if not _finite(watched.prometheus.query(expr))]
        return not empty

    watched.until(panels_have_data, empty)
    # A service that has not been scraped yet counts as down, for a second here.
    watched.until(lambda: watched.firing() == set(), "all is well")

    # A flood of garbage, and books that somebody has changed.
    # As many as may be and no more: behind the halt nothing is left, whose age would be told as well.
    await watched.garbage(RUN_MAX - GARBAGE, other)
    await watched.execute(
        "UPDATE user_coupon SET sequence = 999999999 WHERE coupon_id = $1 AND sequence = 1", coupon_id
    )
    wrong = FLOODED | {"FirstcomeBrokenPromise"}
    watched.until(lambda: watched.firing() == wrong, f"not {wrong}")
    await watched.execute(
        "UPDATE user_coupon SET sequence = 1 WHERE coupon_id = $1 AND sequence = 999999999", coupon_id
    )
    watched.until(lambda: watched.firing() == FLOODED, "the books are right again")
    assert watched.ledger.stop()

    # The ledger stays down: the issuer still sees the line grow old.
    watched.issue(coupon_id, range(1_000_000, 1_000_010))
    watched.until(lambda: watched.firing() == LEDGER_DOWN, f"not {LEDGER_DOWN}")
    # As the breaker's alert says: a restart with 0 lets them through.
    watched.ledger.set("FIRSTCOME_DEAD_LETTER_RUN_MAX", "0")
    watched.ledger.start()
    watched.ledger.wait_ready()
    watched.until(lambda: watched.firing() == set(), "all is well again")


def _queries() -> Iterator[tuple[str, str]]:
    for dashboard in dashboards.ALL:
        for row in dashboard.rows.values():
            for panel in row:
                for query in panel.queries:
                    yield f"{dashboard.title} / {panel.title}", query.expr.replace("$__rate_interval", WINDOW)


def _finite(vector: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(one["value"][1])) for one in vector)
