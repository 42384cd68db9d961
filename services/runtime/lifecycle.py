"""Starting and stopping a service, the same way for all.

Shutdown order: NOT_SERVING, stop intake, finish the batch, commit, close; by a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from services.runtime import failpoints, instruments, kafka_security, metrics, telemetry
from services.runtime import log as logs
from services.runtime.config import Common, ConfigError
from services.runtime.kafka import KafkaAway, MissingTopics, Topics, WrongTopics, check_topics
from services.runtime.pace import Pace
from services.runtime.postgres import DatabaseAway, WrongRevision, check_revision

C = TypeVar("C")
log = logs.get_logger(__name__)

GC_THRESHOLD_OBJECTS = 100_000


class StartupError(Exception):
    """The service can't start; the message says what to do."""


class Unfinished(Exception):
    """A command that ends by itself could not finish; the message says what to do."""


class Stopped(Exception):
    """Told to stop before it had started."""


def main(
    service: str,
    read_config: Callable[[Mapping[str, str]], C],
    common: Callable[[C], Common],
    serve: Callable[[C, asyncio.Event], Awaitable[None]],
) -> None:
    """Run a service until SIGTERM or SIGINT; exits 1 with one sentence if it can't start or dies."""
    faulthandler.enable()
    try:
        config = read_config(os.environ)
        failpoints.arm(os.environ.get("FIRSTCOME_FAILPOINT"))
    except (ConfigError, failpoints.BadFailpoint) as error:
        sys.exit(f"{service}: {error}")
    logs.configure(service, common(config).log_level)
    if (armed := failpoints.armed()) is not None:
        log.warning("failpoint_armed", name=armed)
    telemetry.configure(service, common(config).kafka_bootstrap, common(config).postgres_dsn)
    registry = instruments.registry_of(service, metrics.of(service))
    kafka_security.configure(common(config).kafka_tls)
    try:
        with instruments.serving(registry, common(config).metrics_listen):
            uvloop.run(_run(service, config, serve))
    except (StartupError, WrongTopics, WrongRevision, instruments.NotServed) as error:
        log.critical("not_started", reason=str(error))
        sys.exit(f"{service}: {error}")
    except Unfinished as error:
        log.error("unfinished", reason=str(error))
        sys.exit(f"{service}: {error}")
    finally:
        telemetry.shutdown()


async def _run(service: str, config: C, serve: Callable[[C, asyncio.Event], Awaitable[None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    # A batch makes a hundred thousand short-lived objects, which the default threshold would search 200 times.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD_OBJECTS, 20, 50)
    log.info("starting", pid=os.getpid())
    watching = asyncio.create_task(kafka_security.watch())
    with contextlib.suppress(Stopped):
        await serve(config, stopping)
    watching.cancel()
    log.info("stopped")


async def wait_for_dependencies(config: Common, engine: AsyncEngine, stopping: asyncio.Event) -> int:
    """The line's partition count, once Kafka and PostgreSQL answer and have this release's topics and tables.

    Raises WrongTopics at once, StartupError when the time is over, Stopped when told to stop before.
    """
    pace = Pace(stopping, cap_s=1.0)
    deadline = asyncio.get_running_loop().time() + config.startup_timeout_s
    while True:
        try:
            await check_revision(engine)
            return await check_topics(config.kafka_bootstrap, Topics(config.topic_prefix))
        except (KafkaAway, DatabaseAway, MissingTopics, WrongRevision) as error:
            if stopping.is_set():
                raise Stopped from error
            if asyncio.get_running_loop().time() > deadline:
                raise StartupError(f"not ready within {config.startup_timeout_s} s: {error}") from error
            log.info("waiting", reason=str(error))
            await pace.failed()


async def first(background: asyncio.Task[None], stopping: asyncio.Event, until: Awaitable[None] | None = None) -> None:
    """Return at `stopping`, or when `until` is done; raise what the background task dies of."""
    waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(stopping.wait())]
    if until is not None:
        waiting.append(asyncio.ensure_future(until))
    try:
        await asyncio.wait([background, *waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in waiting:
            future.cancel()
    if background.done():
        background.result()
        raise RuntimeError(f"{background.get_name()} ended by itself")
