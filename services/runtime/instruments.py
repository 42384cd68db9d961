"""What metrics are made of: plain numbers in memory, which OpenTelemetry reads when Prometheus asks for them.

An OpenTelemetry counter costs 3 to 8 µs an addition, as much as settling half a record, and a histogram takes one value
at a time. So the services count in dictionaries; counters and gauges are OpenTelemetry's observable instruments over
those, and histograms, for which it has no such kind, stand beside them in the same registry.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, start_http_server
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from services.runtime.log import get_logger

log = get_logger(__name__)

SAMPLE_INTERVAL_S = 1.0
_SUFFIXES = {"s": "_seconds", "By": "_bytes"}


class NotServed(Exception):
    """Metrics can't be served where they should be."""


class Instrument:
    """A metric by its OpenTelemetry name. `services` says who has it, for the list in the docs."""

    kind = ""

    def __init__(
        self, name: str, description: str, *, unit: str = "", labels: Sequence[str] = (), services: str = "all"
    ) -> None:
        self.name = name
        self.description = description
        self.unit = unit
        self.labels = tuple(labels)
        self.services = services

    @property
    def prometheus_name(self) -> str:
        """The name under which Prometheus has it; a histogram's is followed by _bucket, _sum and _count."""
        return self.name.replace(".", "_") + _SUFFIXES.get(self.unit, "")


class Counter(Instrument):
    """Only grows."""

    kind = "counter"

    def __init__(self, *arguments: Any, start: Iterable[tuple[str, ...]] = (), **options: Any) -> None:
        """`start`: the labels that are there from the beginning, for what comes to be as 1 has not increased."""
        super().__init__(*arguments, **options)
        self.values: dict[tuple[str, ...], float] = dict.fromkeys(start, 0)

    @property
    def prometheus_name(self) -> str:
        return super().prometheus_name + "_total"

    def add(self, amount: float, *labels: str) -> None:
        """`labels`: the values, in the order of the names."""
        self.values[labels] = self.values.get(labels, 0) + amount


class Gauge(Counter):
    """What holds now."""

    kind = "gauge"

    @property
    def prometheus_name(self) -> str:
        return super(Counter, self).prometheus_name

    def set(self, value: float, *labels: str) -> None:
        self.values[labels] = value

    def replace(self, values: Mapping[tuple[str, ...], float], *labels: str) -> None:
        """All values whose labels begin with `labels`, at once: what is not among them is gone."""
        kept = {key: value for key, value in self.values.items() if key[: len(labels)] != labels}
        self.values = {**kept, **values}


class Histogram(Instrument):
    """Counts of values by the least of `buckets` that they do not exceed."""

    kind = "histogram"

    def __init__(self, *arguments: Any, buckets: Sequence[float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.buckets = tuple(buckets)
        self.counts: dict[tuple[str, ...], list[int]] = {}
        self.sums: dict[tuple[str, ...], float] = {}

    def record(self, value: float, *labels: str, count: int = 1) -> None:
        """`count` equal values."""
        counts = self.counts.get(labels)
        if counts is None:
            self.sums[labels] = 0.0  # before the counts, by which another thread finds it
            counts = self.counts[labels] = [0] * (len(self.buckets) + 1)
        counts[bisect.bisect_left(self.buckets, value)] += count
        self.sums[labels] += value * count


class Histograms(Collector):
    """Histograms as Prometheus reads them."""

    def __init__(self, histograms: Iterable[Histogram]) -> None:
        self._histograms = tuple(histograms)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        for one in self._histograms:
            family = HistogramMetricFamily(one.prometheus_name, one.description, labels=one.labels)
            for labels, counts in list(one.counts.items()):
                running, buckets = 0, []
                for bound, count in zip([*one.buckets, "+Inf"], list(counts), strict=True):
                    running += count
                    buckets.append((str(bound), running))
                family.add_metric(labels, buckets, one.sums[labels])
            yield family


def registry_of(service: str, instruments: Iterable[Instrument]) -> CollectorRegistry:
    """What Prometheus is given: these instruments, and the process's own figures."""
    instruments = tuple(instruments)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(Histograms(one for one in instruments if isinstance(one, Histogram)))
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    resource = Resource.create({"service.name": f"firstcome-{service}"})
    meter = MeterProvider([reader], resource=resource, shutdown_on_exit=False).get_meter("firstcome")
    for one in instruments:
        if isinstance(one, Counter):
            _observe(meter, one)
    return registry


def _observe(meter: Meter, one: Counter) -> None:
    def read(_: CallbackOptions) -> list[Observation]:
        return [
            Observation(value, dict(zip(one.labels, labels, strict=True))) for labels, value in list(one.values.items())
        ]

    make = meter.create_observable_gauge if isinstance(one, Gauge) else meter.create_observable_counter
    make(one.name, [read], one.unit, one.description)


@contextlib.contextmanager
def serving(registry: CollectorRegistry, listen: str | None) -> Iterator[None]:
    """Answer Prometheus on <host>:<port>, in a thread: also while the service's own loop is stuck. Raises NotServed."""
    if listen is None:
        yield
        return
    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise NotServed(f"can't serve metrics on {listen}: {error.strerror}; see FIRSTCOME_METRICS_LISTEN") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Sampler:
    """Reads state into gauges once a second, on the service's loop, and measures how late the loop lets it."""

    def __init__(self, lag: Gauge) -> None:
        self._lag = lag
        self._samples: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, sample: Callable[[], None]) -> None:
        """`sample` must be quick, and sets gauges."""
        self._samples.append(sample)

    def start(self, *beside: Coroutine[Any, Any, None]) -> None:
        """Sample from now on; what runs `beside` it ends with it."""
        self._tasks = [asyncio.create_task(one) for one in (self._run(), *beside)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                log.error("watch_failed", exc_info=ended)

    async def _run(self) -> None:
        while True:
            due_s = time.monotonic() + SAMPLE_INTERVAL_S
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            self._lag.set(max(0.0, time.monotonic() - due_s))
            for sample in self._samples:
                try:
                    sample()
                except Exception as error:
                    log.error("sample_failed", exc_info=error)
