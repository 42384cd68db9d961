"""The demo on a running system: create, rush, wait, verify, tell."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console

from checker import HistoryWriter, Report, verify
from demo.garbage import make_garbage, put_garbage
from demo.plan import RUSH_DECAY_S, Plan
from demo.rush import Answers, Callers, callers
from demo.screen import Bar, Moment, RushScreen, print_refusals, print_sales, print_verdicts
from demo.tables import Tables
from demo.trace import is_whole, print_trace
from demo.verdict import Verdict, judge
from stack.otlp import TraceReceiver

SCREEN_EVERY_S = 0.25
SETTLE_TIMEOUT_S = 60.0
HEALTH_EVERY_S = 0.5
LINE_TOPIC = "coupon.issue-requests.v1"


class ServiceEnded(Exception):
    """A service ended in the middle of it; the message says which, and the end of its log."""


@dataclass(frozen=True, slots=True)
class System:
    """Where the system is. `ended` names a service that has ended and the end of its log, or None; `traces` receives
    what the services tell of themselves."""

    kafka: str
    postgres: str
    issuer: str
    partitions: int
    topic_prefix: str
    ended: Callable[[], str | None]
    traces: TraceReceiver | None = None


async def show(system: System, plan: Plan, history_path: Path, answers_to: list[Answers], console: Console) -> Verdict:
    """Run the rush and print what came of it. Raises ServiceEnded, grpc.aio.AioRpcError, KafkaError, OSError.

    `answers_to` receives the answers at the start, for a caller who wants to tell of a rush that was cut short.
    """
    rush = asyncio.create_task(_rush(system, plan, history_path, answers_to, console))
    watch = asyncio.create_task(_watch(system))
    try:
        await asyncio.wait({rush, watch}, return_when=asyncio.FIRST_COMPLETED)
        # A service that ended explains whatever else failed.
        if ended := system.ended():
            raise ServiceEnded(ended)
        return await rush
    finally:
        for task in (rush, watch):
            task.cancel()
        await asyncio.gather(rush, watch, return_exceptions=True)


async def _watch(system: System) -> None:
    while True:
        if system.ended():
            return
        await asyncio.sleep(HEALTH_EVERY_S)


async def _rush(system: System, plan: Plan, history_path: Path, answers_to: list[Answers], console: Console) -> Verdict:
    tables = await Tables.connect(system.postgres)
    try:
        with HistoryWriter(history_path) as history:
            async with callers(system.issuer, history) as people:
                answers_to.append(people.answers)
                coupons = [await people.create(campaign) for campaign in plan.campaigns]
                # A coupon's etag is the ticket of its creation: its partition is in front.
                partition = int(coupons[0].etag.partition("-")[0])
                garbage = make_garbage(plan.campaigns[0].coupon_id, partition, system.partitions)
                topic = system.topic_prefix + LINE_TOPIC
                with RushScreen() as screen:
                    display = asyncio.create_task(_display(screen, people, tables, plan, topic))
                    try:
                        async with asyncio.TaskGroup() as work:
                            work.create_task(people.rush(plan.arrivals))
                            work.create_task(put_garbage(system.kafka, topic, garbage, RUSH_DECAY_S))
                    finally:
                        display.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            await display
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        screen.show(await _moment(people, tables, plan, topic), last=True)
        report = await _verify(system, history_path, console)
        _tell(console, people.answers, report)
        print_sales(console, await tables.sales(), people.answers.started_ns / 1e9)
        print_refusals(console, people.answers)
        spans = system.traces.traces().get(people.traced.trace_id, []) if system.traces is not None else []
        if is_whole(spans):
            print_trace(console, people.traced, spans)
        print_verdicts(console, report)
        return judge(people.answers, report, grants_expected=plan.grants_expected, garbage_sent=len(garbage))
    finally:
        await tables.close()


async def _verify(system: System, history_path: Path, console: Console) -> Report:
    with console.status("verifying from outside"):
        return await verify(
            system.kafka,
            system.postgres,
            topic_prefix=system.topic_prefix,
            history=history_path,
            drain_timeout_s=SETTLE_TIMEOUT_S,
        )


async def _display(screen: RushScreen, people: Callers, tables: Tables, plan: Plan, topic: str) -> None:
    while True:
        # The issuer may be too busy for us now: what is shown is of no consequence.
        with contextlib.suppress(grpc.aio.AioRpcError):
            screen.show(await _moment(people, tables, plan, topic))
        await asyncio.sleep(SCREEN_EVERY_S)


async def _moment(people: Callers, tables: Tables, plan: Plan, topic: str) -> Moment:
    answers = people.answers
    elapsed_s = time.time() - answers.started_ns / 1e9 if answers.started_ns else 0.0
    bars = tuple(
        Bar(coupon.name.removeprefix("coupons/"), coupon.issued_count, coupon.total_quantity)
        for coupon in await people.coupons()
    )
    return Moment(len(plan.arrivals), answers, await tables.settled(topic), bars, elapsed_s)


def _tell(console: Console, answers: Answers, report: Report) -> None:
    last_us = report.counts.last_settled_us
    if last_us is not None:
        seconds = last_us / 1e6 - answers.started_ns / 1e9
        console.print(
            f"\n{answers.calls:,} calls, {answers.with_ticket:,} of them with a place in the line; "
            f"[bold]{seconds:.2f} s[/] from the first call to the last row.\n"
        )
