"""The Redis system beside ours: the design's own comparison with what was measured, and what kill -9 did to both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.results import Results
from bench.table import Figures, section, table

_FAULTS = {
    "api": "API, three times",
    "store": "what writes rows, three times",
    "database": "PostgreSQL, once",
    "stock": "Kafka or Redis, once",
}


_FAULTS_ARE = (
    "A rush by schedule; everybody who gets no clear answer calls again with the same request_id. *Lost*: told yes "
    "and no row. *Blocked*: without a row, not told that it is sold out, and refused as a duplicate when calling "
    "anew in the end. *Unsold*: stock left although people were refused. *Silence*: the longest time without an "
    "answer. The Redis system's scheduler stores one at a time here, which loses the least; its snapshot is from "
    "before the rush."
)


def page(results: Results, heading: str) -> list[str]:
    """The paragraphs and tables."""
    figure = Figures(results.figures)
    columns = ("", "Redis system", "firstcome", "measured: Redis system to firstcome")
    return [
        *section(
            f"{heading}# kill -9 at the same moments", _FAULTS_ARE, table(_FAULT_COLUMNS, _fault_rows(results.faults))
        ),
        *section(
            f"{heading}# The same load on both",
            "",
            table(("", "Redis system", "firstcome", ""), _beside(figure)),
        ),
        *(section(f"{heading}# The two designs", "", table(columns, _comparison(figure))) if results.faults else []),
    ]


def _comparison(figure: Figures) -> Iterable[Sequence[str]]:
    yield (
        "duplicate check",
        "Redis Set, before anything is granted",
        "look-up in `user_coupon`; the unique key decides",
        "refused as duplicates for ever, with nothing, after kills of the API: "
        f"{figure('fault_api_redis_blocked')} to {figure('fault_api_firstcome_blocked')}; "
        f"duplicate storm: p99 {figure('duplicate_storm_p99_ms')} ms",
    )
    yield (
        "stock",
        "Redis List (LPOP)",
        "in the ledger's transaction, checked against the rows",
        f"oversold after a kill of what holds the stock: {figure('fault_stock_redis_oversold')} to "
        f"{figure('fault_stock_firstcome_oversold')}; unsold after kills of the API: "
        f"{figure('fault_api_redis_unsold')} to {figure('fault_api_firstcome_unsold')}",
    )
    yield (
        "processing",
        "Redis queue and scheduler",
        "Kafka and ledger, into PostgreSQL",
        f"settled/s: {figure('baseline_batched_settled_per_s')} (storing 1,000 at once), "
        f"{figure('baseline_settled_per_s')} (one at a time, as drawn) to {figure('batch_settled_per_s')}",
    )
    yield (
        "transaction",
        "none",
        "position, verdicts and stock in one",
        f"told yes and not stored, after kills of what writes rows: {figure('fault_store_redis_lost')} to "
        f"{figure('fault_store_firstcome_lost')}; of PostgreSQL: {figure('fault_database_redis_lost')} to "
        f"{figure('fault_database_firstcome_lost')}",
    )
    yield (
        "reprocessing",
        "none: what the scheduler has taken is in its memory alone",
        "every record stays in the line",
        f"a ledger that was away settled {figure('ledger_requests')} requests at {figure('ledger_per_s')}/s; lost by a "
        f"kill of Kafka or Redis: {figure('fault_stock_redis_lost')} to {figure('fault_stock_firstcome_lost')}",
    )
    yield (
        "other systems",
        "would have to read the table",
        "an outcome for every verdict on Kafka",
        f"the {figure('batch_requests')} settled above include the broker's acknowledgement of their outcomes",
    )


def _beside(figure: Figures) -> Iterable[Sequence[str]]:
    rows = (
        ("unary calls/s, 200 callers", "baseline_unary_per_s", "unary_per_s", True),
        ("batches of 1,000: answered/s", "baseline_accepted_per_s", "batch_accepted_per_s", True),
        ("batches of 1,000: settled/s", "baseline_batched_settled_per_s", "batch_settled_per_s", True),
        ("CPU a settled request, µs", "baseline_cpu_us_per_settled", "cpu_us_per_settled", False),
        ("answered p99 at half of saturation, ms", "baseline_accepted_p99_ms", "accepted_p99_ms", False),
        ("verdict known p99 at half of saturation (ours: of calls that wait), ms", "baseline_accepted_p99_ms",
         "settled_p99_ms", False),
        ("stored p99, the same, ms", "baseline_settled_p99_ms", "settled_p99_ms", False),
        ("last row after the last call of a rush, s", "baseline_tail_s", "tail_s", False),
        ("longest silence, kills of the API, s", "fault_api_redis_standstill_s",
         "fault_api_firstcome_standstill_s", False),
        ("longest silence, kill of Redis or Kafka, s", "fault_stock_redis_standstill_s",
         "fault_stock_firstcome_standstill_s", False),
        ("longest silence, kill of PostgreSQL, s", "fault_database_redis_standstill_s",
         "fault_database_firstcome_standstill_s", False),
    )  # fmt: skip
    for name, theirs, ours, more_is_better in rows:
        if figure.has(theirs, ours):
            mine, its = figure.number(ours), figure.number(theirs)
            better = "even" if mine == its else "firstcome" if (mine > its) == more_is_better else "Redis system"
            yield name, figure(theirs), figure(ours), f"better: {better}"


_FAULT_COLUMNS = (
    "killed", "system", "told yes", "stored", "of stock", "lost", "oversold", "twice", "unsold", "blocked",
    "unanswered", "silence, s",
)  # fmt: skip


def _fault_rows(faults: Iterable[Mapping[str, float | int | str]]) -> Iterable[Sequence[str]]:
    for found in sorted(faults, key=lambda one: (list(_FAULTS).index(str(one["fault"])), str(one["system"]))):
        keys = (
            "told_issued", "stored", "stock", "lost", "oversold", "twice", "unsold", "blocked", "unanswered",
            "standstill_s",
        )  # fmt: skip
        killed = f"{_FAULTS[str(found['fault'])]}: {found['killed']}"
        yield killed, str(found["system"]), *(f"{found[key]:,}" for key in keys)
