"""Every metric that the services have. docs/metrics.md is made from this list.

No label has a value for each user, request or ticket; `coupon` is of the busiest few, `partition` of the partitions.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.domain.model import ParkReason
from services.runtime.instruments import Counter, Gauge, Histogram, Instrument, Sampler

_CALL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SETTLE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_BATCH_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000)

COUPONS_MAX = 20
"""Of how many coupons, the busiest, there are figures."""
LINE = "line"
DLQ = "dlq"
"""Values of the label `topic`."""
KAFKA = "kafka"
POSTGRES = "postgres"
"""Values of the label `dependency`."""
UNAVAILABLE = ("KAFKA_UNAVAILABLE", "DATABASE_UNAVAILABLE", "LEDGER_UNAVAILABLE", "OVERLOADED")
"""Answers that mean: call again. With INTERNAL they are what the promise of availability counts."""

# Of every service

LOOP_LAG = Gauge("firstcome.event_loop.lag", "How late the event loop ran what was due in the last second.", unit="s")
DEPENDENCY_ERRORS = Counter(
    "firstcome.dependency.errors",
    "Failures to reach kafka or postgres, or to be served in time.",
    labels=["dependency"],
    start=[(KAFKA,), (POSTGRES,)],
)
POOL_CONNECTIONS = Gauge("firstcome.postgres.connections", "Connections of the pool: used or idle.", labels=["state"])
POOL_CONNECTIONS_MAX = Gauge("firstcome.postgres.connections.max", "Connections that the pool may have.")
PRODUCER_RECYCLES = Counter(
    "firstcome.producer.recycles",
    "Kafka producers that were replaced, since an error might have wedged them.",
    start=[()],
)

# Of issuer and dlq: calls

CALL_SECONDS = Histogram(
    "rpc.server.call.duration",
    "Duration of calls. error_type: the reason in ErrorInfo, empty where there is none.",
    unit="s",
    labels=["rpc_method", "rpc_response_status_code", "error_type"],
    buckets=_CALL_BUCKETS_S,
    services="issuer, dlq",
)
CALLS_IN_FLIGHT = Gauge("firstcome.calls.in_flight", "Calls under way.", services="issuer, dlq")
CALLS_IN_FLIGHT_MAX = Gauge(
    "firstcome.calls.in_flight.max", "Calls that may be under way; above it: OVERLOADED.", services="issuer, dlq"
)

# Of the issuer

ANSWERS = Counter(
    "firstcome.issue.answers",
    "Issue requests by answer: a state (ACCEPTED, ISSUED, PARKED) or the error's reason. Each of a batch counts.",
    labels=["answer"],
    services="issuer",
    start=[(one,) for one in ("ACCEPTED", "ISSUED", "INTERNAL", *UNAVAILABLE)],
)
WAITERS = Gauge("firstcome.waiters", "Calls that wait for a verdict.", services="issuer")
WAITERS_MAX = Gauge("firstcome.waiters.max", "Calls that may wait for a verdict.", services="issuer")
GATHERED = Histogram(
    "firstcome.gathered",
    "How many items went together: look_up and verdicts into a query, append into the line.",
    labels=["queue"],
    buckets=_BATCH_BUCKETS,
    services="issuer",
)
UNSETTLED_RECORDS = Gauge(
    "firstcome.unsettled.records",
    "Records that this issuer put into the partition and that are not known to be settled, with all ahead of them.",
    labels=["partition"],
    services="issuer",
)
UNSETTLED_SECONDS = Gauge(
    "firstcome.unsettled",
    "For how long there have been unsettled records in the partition without any being settled.",
    unit="s",
    labels=["partition"],
    services="issuer",
)
COUPON_LINE = Gauge(
    "firstcome.coupon.line.records",
    f"Unsettled records in front of whoever comes now for the coupon; of the {COUPONS_MAX} busiest.",
    labels=["coupon"],
    services="issuer",
)
COUPON_REMAINING = Gauge(
    "firstcome.coupon.remaining", f"Stock left; of the {COUPONS_MAX} busiest.", labels=["coupon"], services="issuer"
)
COUPON_ISSUED = Gauge(
    "firstcome.coupon.issued", f"Coupons given; of the {COUPONS_MAX} busiest.", labels=["coupon"], services="issuer"
)
COUPON_STOCK = Gauge(
    "firstcome.coupon.stock", f"Stock in total; of the {COUPONS_MAX} busiest.", labels=["coupon"], services="issuer"
)
OUTCOME_CHECKS = Counter(
    "firstcome.outcome.checks",
    "Published outcomes that were compared with the ledger's row of the ticket: agree or disagree.",
    labels=["result"],
    services="issuer",
    start=[("agree",), ("disagree",)],
)

# Of the ledger

VERDICTS = Counter(
    "firstcome.verdicts",
    "Records settled. verdict: ISSUED, REJECTED, PARKED or CHANGED; reason: why it is no, or APPLIED.",
    labels=["verdict", "reason"],
    services="ledger",
    start=[("ISSUED", ""), *(("PARKED", reason.value) for reason in ParkReason)],
)
SETTLE_SECONDS = Histogram(
    "firstcome.accept_to_settle",
    "From the broker's time of a record to the commit of its verdict, by the ledger's clock.",
    unit="s",
    buckets=_SETTLE_BUCKETS_S,
    services="ledger",
)
BATCH_RECORDS = Histogram(
    "firstcome.batch.records", "Records settled in one transaction.", buckets=_BATCH_BUCKETS, services="ledger"
)
TRANSACTION_SECONDS = Histogram(
    "firstcome.transaction.duration",
    "Duration of the settling transactions that committed.",
    unit="s",
    buckets=_CALL_BUCKETS_S,
    services="ledger",
)
UNPUBLISHED_RECORDS = Gauge(
    "firstcome.unpublished.records",
    "Records whose verdict is committed and not yet known to be published.",
    labels=["topic", "partition"],
    services="ledger",
)
PARKED_RUN = Gauge(
    "firstcome.parked.run",
    "How many records in a row were newly parked.",
    labels=["topic", "partition"],
    services="ledger",
)
PARKED_RUN_MAX = Gauge(
    "firstcome.parked.run.max", "How many pause the partition (FIRSTCOME_DEAD_LETTER_RUN_MAX).", services="ledger"
)
BROKEN_PROMISES = Gauge(
    "firstcome.broken_promises",
    "Coupons whose books are wrong. oversold: more granted than there are; books: grants, count and stock disagree.",
    labels=["promise"],
    services="ledger",
)

# Of ledger (topic line) and dlq (topic dlq): work on partitions

_WORKERS = "ledger, dlq"
LAG_RECORDS = Gauge(
    "firstcome.lag.records", "Records not yet worked on.", labels=["topic", "partition"], services=_WORKERS
)
LAG_SECONDS = Gauge(
    "firstcome.lag",
    "For how long the oldest of them has waited; 0 where there is none.",
    unit="s",
    labels=["topic", "partition"],
    services=_WORKERS,
)
HALTED = Gauge(
    "firstcome.partition.halted",
    "1 where the partition stands still until a person has looked.",
    labels=["topic", "partition"],
    services=_WORKERS,
)
RETRIES = Counter(
    "firstcome.partition.retries",
    "How often work on a partition was interrupted and tried again in place.",
    labels=["topic", "partition"],
    services=_WORKERS,
)
FENCED = Counter(
    "firstcome.fenced.batches",
    "Batches that were refused by the compare-and-set, since another process had taken the partition over.",
    labels=["topic", "partition"],
    services=_WORKERS,
)

# Of the dlq

DEAD_LETTERS = Gauge("firstcome.dead_letters", "Dead letters by state.", labels=["state"], services="dlq")
DEAD_LETTER_AGE = Gauge(
    "firstcome.dead_letter.oldest",
    "Since when the oldest dead letter is in the state's care: its first failure; of RETRYING, PARKED and REDRIVEN.",
    unit="s",
    labels=["state"],
    services="dlq",
)
FILED = Counter(
    "firstcome.dead_letters.filed",
    "Failures that were filed, by the line's reason and the state that they led to.",
    labels=["reason", "state"],
    services="dlq",
    start=[(reason.value, "PARKED") for reason in ParkReason],
)
REDRIVES = Counter("firstcome.redrives", "Dead letters that were put into the line again.", services="dlq", start=[()])
RESOLVED = Counter(
    "firstcome.dead_letters.resolved", "Dead letters whose redrive got a verdict.", services="dlq", start=[()]
)

REPLAY_JOBS = Gauge("firstcome.replay.jobs", "Replay jobs by kind and state.", labels=["kind", "state"], services="dlq")
REPLAY_DONE = Counter(
    "firstcome.replay.done",
    "Dead letters or records that ended replay jobs have worked on, by kind.",
    labels=["kind"],
    services="dlq",
    start=[("REDRIVE",), ("AUDIT",), ("REPUBLISH",)],
)
REPLAY_DIFFERENCES = Counter(
    "firstcome.replay.differences",
    "Tickets for which audits found other rows in the tables than the log gives.",
    services="dlq",
    start=[()],
)

ALL: Sequence[Instrument] = tuple(value for value in list(globals().values()) if isinstance(value, Instrument))


def of(service: str) -> list[Instrument]:
    """Those that the service has."""
    return [one for one in ALL if one.services == "all" or service in one.services.split(", ")]


def sampler() -> Sampler:
    """A sampler that measures LOOP_LAG; start it on the service's loop."""
    return Sampler(LOOP_LAG)


def page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Each service answers Prometheus at `/metrics` of `FIRSTCOME_METRICS_LISTEN`. Beside these it has the",
        "process's own (`process_*`, `python_gc_*`) and `target_info`. A histogram's name is followed by `_bucket`,",
        "`_sum` and `_count`; its buckets hold the limits that alerts ask for. No label names a user or a ticket.",
        "Made by `make docs/metrics.md`.",
        "",
        "| metric | kind | labels | services | what |",
        "|---|---|---|---|---|",
    ]
    for one in ALL:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        lines.append(f"| `{one.prometheus_name}` | {one.kind} | {labels} | {one.services} | {one.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
