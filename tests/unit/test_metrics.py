"""The list of metrics, and how Prometheus sees them."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.runtime import instruments, metrics
from services.runtime.instruments import Counter, Gauge, Histogram, NotServed
from services.runtime.waiting import Waiting
from stack import free_port

REPOSITORY = Path(__file__).parents[2]
SERVICES = ("issuer", "ledger", "dlq")


def read(port: int) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels, in the order of the labels' names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def made() -> Iterator[tuple[Counter, Gauge, Histogram, int]]:
    counter = Counter("firstcome.test", "Counted.", labels=["reason"])
    gauge = Gauge("firstcome.test.lag", "Held.", unit="s", labels=["topic", "partition"])
    histogram = Histogram("firstcome.test.duration", "Lasted.", unit="s", labels=["to"], buckets=(0.1, 1.0))
    registry = instruments.registry_of("test", [counter, gauge, histogram])
    port = free_port()
    with instruments.serving(registry, f"127.0.0.1:{port}"):
        yield counter, gauge, histogram, port


def test_prometheus_reads_what_was_counted_under_the_documented_names(
    made: tuple[Counter, Gauge, Histogram, int],
) -> None:
    counter, gauge, histogram, port = made
    counter.add(2, "SOLD_OUT")
    counter.add(3, "SOLD_OUT")
    gauge.replace({("line", "0"): 1.5, ("line", "1"): 2.0}, "line")
    gauge.replace({("dlq", "0"): 7.0}, "dlq")
    gauge.replace({("line", "1"): 3.0}, "line")
    histogram.record(0.1, "a", count=4_000)
    histogram.record(0.5, "a")
    histogram.record(9.0, "a")
    found = read(port)
    assert found[counter.prometheus_name, "SOLD_OUT"] == 5
    lags = {labels: value for (name, *labels_), value in found.items() for labels in [tuple(labels_)] if "lag" in name}
    assert lags == {("0", "dlq"): 7.0, ("1", "line"): 3.0}, "a partition that went elsewhere is gone"
    name = histogram.prometheus_name
    assert name == "firstcome_test_duration_seconds"
    assert [found[f"{name}_bucket", le, "a"] for le in ("0.1", "1.0", "+Inf")] == [4_000, 4_001, 4_002]
    assert found[f"{name}_count", "a"] == 4_002
    assert found[f"{name}_sum", "a"] == pytest.approx(409.5)
    assert found["process_cpu_seconds_total",] > 0


def test_a_taken_port_is_named_with_its_setting() -> None:
    registry = instruments.registry_of("test", [])
    listen = f"127.0.0.1:{free_port()}"
    with (
        instruments.serving(registry, listen),
        pytest.raises(NotServed, match=f"{listen}.*FIRSTCOME_METRICS_LISTEN"),
        instruments.serving(registry, listen),
    ):
        pass


def test_the_list_is_whole_and_documented() -> None:
    names = [one.prometheus_name for one in metrics.ALL]
    assert len(set(names)) == len(names) > 30
    assert {one for service in SERVICES for one in metrics.of(service)} == set(metrics.ALL)
    page = (REPOSITORY / "docs/metrics.md").read_text()
    assert page == metrics.page(), "run make docs/metrics.md"
    labels = {label for one in metrics.ALL for label in one.labels}
    assert not labels & {"user", "user_id", "request_id", "ticket", "trace_id"}


def test_buckets_have_the_limits_that_are_promised() -> None:
    assert 1.0 in metrics.SETTLE_SECONDS.buckets
    for one in metrics.ALL:
        if isinstance(one, Histogram):
            assert list(one.buckets) == sorted(set(one.buckets))


def test_waiting_is_told_from_the_records_own_time_once_it_is_read() -> None:
    waiting = Waiting()
    assert waiting.seconds(10, 10, 100.0) == 0
    assert waiting.seconds(10, 15, 101.0) == 0  # just seen
    assert waiting.seconds(10, 20, 111.0) == 10
    waiting.begun(10, 95_000)
    assert waiting.seconds(10, 20, 111.0) == 16
    assert waiting.seconds(15, 20, 111.0) == 0, "the first five are done; the others were seen just now"
    assert waiting.seconds(15, 20, 114.0) == 3
    assert waiting.seconds(20, 20, 115.0) == 0
