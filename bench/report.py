"""The report: every figure beside its limit, the Redis system beside ours, and what kill -9 did to both."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import comparison, plots
from bench.results import PERCENTILES, Results
from bench.table import Figures, section, table

BEGIN, END = "<!-- make bench ARGS=--update-docs: from here -->", "<!-- to here -->"
SUMMARY = (
    "unary_ratio", "cached_ratio", "batch_settled_per_s", "ledger_ratio", "settled_p99_ms", "tail_s", "growth_ratio",
    "rss_max_mb", "cpu_us_per_settled", "telemetry_ratio", "baseline_unary_ratio", "baseline_batched_settled_ratio",
    "baseline_settled_ratio",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, what it is measured against in the same run, their ratio, and what is aimed at: keys, but for texts."""

    what: str
    figure: str
    unit: str
    limit: str = ""
    limit_is: str = ""
    ratio: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def judged(self) -> str:
        """The key that the goal speaks of."""
        return self.ratio or self.figure


GOALS = (
    Goal("unary IssueCoupon, 200 callers", "unary_per_s", "calls/s", "noop_per_s",
         "a call that does nothing, behind the same interceptors on our server", "unary_ratio", at_least=0.75),
    Goal("the same", "unary_per_s", "calls/s", "noop_grpc_per_s", "that call behind them, on grpc.aio's own server",
         "unary_grpc_ratio"),
    Goal("the same", "unary_per_s", "calls/s", "noop_bare_per_s", "a bare grpc.aio call that does nothing",
         "unary_bare_ratio"),
    Goal("the same by 100 callers", "unary_few_per_s", "calls/s", "noop_few_per_s",
         "a call that does nothing, behind the same interceptors", "unary_few_ratio"),
    Goal("sold-out answers, duplicate look-up included", "cached_per_s", "calls/s", "noop_per_s",
         "a call that does nothing, behind the same interceptors", "cached_ratio", at_least=0.8),
    Goal("the same", "cached_per_s", "calls/s", "noop_grpc_per_s", "that call behind them, on grpc.aio's own server",
         "cached_grpc_ratio"),
    Goal("the same", "cached_per_s", "calls/s", "noop_refusing_per_s",
         "a refusal that looks nothing up, behind the same interceptors", "cached_refusing_ratio"),
    Goal("batches of 1,000, one hot coupon: accepted", "batch_accepted_per_s", "requests/s", "raw_produce_per_s",
         "the same records appended by a producer alone", "produce_ratio"),
    Goal("the same: settled, outcomes acknowledged", "batch_settled_per_s", "requests/s", "raw_insert_per_s",
         "the same rows inserted raw", at_least=25_000),
    Goal("batches of 100: settled", "batch100_settled_per_s", "requests/s"),
    Goal("1,000 coupons, batches of 1,000: settled", "many_settled_per_s", "requests/s"),
    Goal("the ledger drains a backlog", "ledger_per_s", "requests/s", "raw_insert_per_s",
         "the same rows, keys and batch size inserted raw", "ledger_ratio", at_least=0.6),
    Goal("settled at half of saturation (of calls that wait), 99th percentile", "settled_p99_ms", "ms", at_most=100),
    Goal("the same at half of what calls that do not wait saturate at", "settled_of_accepted_p99_ms", "ms"),
    Goal("a rush: last row after the last call", "tail_s", "s", at_most=1),
    Goal("settled at the largest table", "growth_ratio", "of the smallest", at_least=0.8),
    Goal("most memory of a service process", "rss_max_mb", "MB", at_most=300),
    Goal("tracing 1 %: unary", "telemetry_ratio", "of without"),
    Goal("tracing 1 %: batches, settled", "telemetry_batch_ratio", "of without"),
)  # fmt: skip
_LATENCIES = (
    ("accepted", "accepted, half of saturation"),
    ("accepted_at_80", "accepted, 80 % of saturation"),
    ("settled", "settled (calls that wait), half of their saturation"),
    ("settled_of_accepted", "the same, half of what calls that do not wait saturate at"),
    ("rush", "rush, batches and single calls"),
    ("sold_out_storm", "sold-out storm"),
    ("duplicate_storm", "duplicate storm"),
    ("baseline_accepted", "Redis system: answered, half of its saturation"),
    ("baseline_settled", "Redis system: stored, half of its saturation"),
    ("baseline_rush", "Redis system: rush"),
)
_CPU = (
    ("one hot coupon", "cpu_us_per_settled", "cpu_us_per_settled_{}"),
    ("1,000 coupons", "many_cpu_us_per_settled", "many_cpu_us_{}"),
    ("1,000 coupons, two issuers and two ledgers", "two_cpu_us_per_settled", "two_cpu_us_{}"),
    ("Redis system, one hot coupon", "baseline_cpu_us_per_settled", "baseline_cpu_us_{}"),
)
_PROCESSES = ("issuer", "api", "ledger", "scheduler", "dlq", "kafka", "redis", "postgres", "clients")


def write(results: Results, folder: Path) -> str:
    """report.md and the plots; returns the report."""
    drawn = plots.draw(results.series, folder)
    pictures = [f"![{path.stem}]({path.name})" for path in drawn]
    text = "\n\n".join([_page(results), *(["## Plots", *pictures] if pictures else [])]) + "\n"
    (folder / "report.md").write_text(text)
    return text


def update_docs(results: Results, docs: Path) -> None:
    """Put the report between the marks of the page. Raises ValueError if it has none."""
    page = docs.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{docs} lacks the lines {BEGIN!r} and {END!r}")
    docs.write_text(f"{before}{BEGIN}\n\n{_page(results, heading='##')}\n\n{END}{after}")


def summary(results: Results) -> str:
    """One line: the figures that matter most, or all there are of a part."""
    keys = [key for key in SUMMARY if key in results.figures]
    told = " ".join(f"{key}={results.figures[key]}" for key in keys)
    failed = f" failures={len(results.failures)}" if results.failures else ""
    return f"BENCH {'FAILED' if results.failures else 'OK'} {told}{failed}"


def _page(results: Results, heading: str = "#") -> str:
    figure = Figures(results.figures)
    memory_gb = psutil.virtual_memory().total / (1 << 30)
    parts = [
        f"{heading} Measured",
        f"One run on one machine with {os.cpu_count()} cores and {memory_gb:.0f} GiB, everything on it: callers, "
        f"services, Kafka, PostgreSQL, Redis. Python {platform.python_version()}; tracing at 1 %; PostgreSQL with "
        "shared_buffers 1 GB and max_wal_size 8 GB. After each scenario of ours the checker looked at every record: "
        f"{_checked(results)}.",
        table(("what", "figure", "its limit in the same run", "ratio", "goal", ""), _goal_rows(figure)),
        *_runs(figure),
        *section(
            f"{heading}# Latency",
            "Milliseconds from the time at which a call was to leave by its schedule (Poisson), so that waiting for a "
            f"slow answer counts. Saturation: {figure('saturation_per_s')} calls/s, of calls that wait "
            f"{figure('waiting_saturation_per_s')}, of the Redis system {figure('baseline_saturation_per_s')}.",
            table(("", *PERCENTILES), _latency_rows(figure)),
        ),
        *section(
            f"{heading}# CPU time",
            "Microseconds of CPU a settled request, by process. On two cores a second issuer and ledger add no speed; "
            "what a request costs with them tells what they would bring on cores of their own.",
            table(("", "all servers", *_PROCESSES), _cpu_rows(figure)),
        ),
        *section(f"{heading}# A growing table", "", table(("rows", "settled/s"), _growth_rows(results))),
        *comparison.page(results, heading),
    ]
    if results.failures:
        parts += [f"{heading}# What went wrong", "\n".join(f"- {failure}" for failure in results.failures)]
    return "\n\n".join(part for part in parts if part)


def _runs(figure: Figures) -> Iterable[str]:
    """What stands behind single figures of the table."""
    if figure.has("unary_slices"):
        yield f"Unary to no-op, slice by slice: {figure('unary_slices')}."
    if figure.has("growth_rounds"):
        yield (
            f"Settled at the largest table to the smallest, round by round: {figure('growth_rounds')}; "
            f"in the rounds before, right behind a checkpoint: {figure('growth_warm_rounds')}."
        )
    if figure.has("raw_insert_runs"):
        yield (
            "The ledger drains its backlog alone, without issuer and dlq, as the rows are inserted raw. "
            f"Raw inserts, rows/s: {figure('raw_insert_runs')}. A request of the backlog takes "
            f"{figure('ledger_cpu_us')} µs of CPU in the ledger and {figure('ledger_postgres_cpu_us')} in PostgreSQL."
        )


def _checked(results: Results) -> str:
    found = [value for key, value in results.figures.items() if key.startswith("checker_")]
    return f"{found.count('OK')} of {len(found)} times every promise held"


def _goal_rows(figure: Figures) -> Iterable[Sequence[str]]:
    for goal in GOALS:
        if not figure.has(goal.figure):
            continue
        limit = f"{figure(goal.limit)} {goal.unit}: {goal.limit_is}" if goal.limit and figure.has(goal.limit) else ""
        aim, met = "", ""
        if figure.has(goal.judged):
            value = figure.number(goal.judged)
            if goal.at_least is not None:
                aim, met = f"≥ {goal.at_least:,g}", "met" if value >= goal.at_least else "missed"
            if goal.at_most is not None:
                aim, met = f"≤ {goal.at_most:,g}", "met" if value <= goal.at_most else "missed"
        ratio = figure(goal.ratio) if goal.ratio else ""
        yield goal.what, f"{figure(goal.figure)} {goal.unit}", limit, ratio, aim, met


def _latency_rows(figure: Figures) -> Iterable[Sequence[str]]:
    for key, name in _LATENCIES:
        if figure.has(f"{key}_p50_ms"):
            yield name, *(figure(f"{key}_{short}_ms") for short in PERCENTILES)


def _cpu_rows(figure: Figures) -> Iterable[Sequence[str]]:
    for name, total, each in _CPU:
        if figure.has(total):
            keys = [each.format(process) for process in _PROCESSES]
            yield name, figure(total), *(figure(key) if figure.has(key) else "" for key in keys)


def _growth_rows(results: Results) -> Iterable[Sequence[str]]:
    for rows, per_s in results.series.get("growth", {}).get("settled", []):
        yield f"{rows:,.0f}", f"{per_s:,.0f}"
