"""JSON logs: static event names with fields, and the trace id where there is one."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

from services.runtime import trace_context

SELDOM_S = 1.0


def _add_trace(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if (context := trace_context.trace_of_call()) is not None:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def configure(service: str, level: str) -> None:
    """Send our logs and the libraries' to stderr, a JSON object a line."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                lambda _logger, _method, event: {"service": service, **event},
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # aiokafka logs each retry of its own; ours say the same once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose first argument is a static event name."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


class Seldom:
    """For what may happen to every request of a rush: says it once a second at most, and how often it was meanwhile."""

    def __init__(self, name: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._log = get_logger(name)
        self._clock_s = clock_s
        self._said: dict[str, tuple[float, int]] = {}

    def warning(self, event: str, **fields: Any) -> None:
        """`count`: how often it has happened since it was last said, this time included."""
        if count := self._due(event):
            self._log.warning(event, count=count, **fields)

    def error(self, event: str, **fields: Any) -> None:
        if count := self._due(event):
            self._log.error(event, count=count, **fields)

    def _due(self, event: str) -> int:
        now_s = self._clock_s()
        said_s, kept = self._said.get(event, (now_s - SELDOM_S, 0))
        if now_s - said_s < SELDOM_S:
            self._said[event] = said_s, kept + 1
            return 0
        self._said[event] = now_s, 0
        return kept + 1
